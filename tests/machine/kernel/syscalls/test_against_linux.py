"""The system calls against the real Linux under the tests: the same little programs, the same answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from asikit.machine.kernel import Machine
from tests.machine.kernel.syscalls.cases import CASES, CONTENT

if TYPE_CHECKING:
    from asikit.machine.user.user import User


@pytest.fixture(scope="session")
def linux() -> dict[str, list[str]]:
    """Return what each case noted on this computer."""
    command = [sys.executable, "-m", "tests.machine.kernel.syscalls.host"]
    root = Path(__file__).parents[4]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    return cast("dict[str, list[str]]", json.loads(done.stdout))


@pytest.mark.parametrize("asi", [True, False], ids=["asi", "no-asi"])
@pytest.mark.parametrize("name", CASES)
def test_model_answers_as_linux(name: str, *, asi: bool, linux: dict[str, list[str]]) -> None:
    """Return values, errno's and data of each case are those of Linux, with ASI on and off."""
    noted: list[str] = []

    def case(user: User) -> None:
        CASES[name](user, lambda value: noted.append(repr(value)))

    machine = Machine(asi=asi, debug=True)
    machine.file("/dir/data", CONTENT)
    process = machine.process(case)
    machine.run()
    assert (noted, process.exit_code) == (linux[name], 0)


@pytest.mark.parametrize("timer_period", [300, 2000])
@pytest.mark.parametrize("name", CASES)
def test_results_are_the_same_with_and_without_asi(name: str, timer_period: int) -> None:
    """Everything that programs see, their order of execution included, is the same byte for byte (I10)."""
    results: list[bytes] = []
    for asi in (True, False):
        machine = Machine(asi=asi, debug=True, timer_period=timer_period)
        machine.file("/dir/data", CONTENT)
        machine.process(lambda user: CASES[name](user, lambda _: None))
        machine.run()
        results.append(machine.report().results)
    assert results[0] == results[1]
    assert b"exit status 0" in results[0]
