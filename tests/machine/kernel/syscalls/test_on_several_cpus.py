"""Programs that sleep and wake one another give Linux' answers in any interleaving of CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.machine.kernel import Machine
from tests.machine.kernel.syscalls.cases import CASES, CONTENT

if TYPE_CHECKING:
    from asikit.machine.user.user import User

EXPECTED = {
    "pipe_between_processes": ["True", "1"],
    "futex_between_processes": ["5"],
    "threads": ["(b'thread', 1, 1)", "b'\\x00\\x01\\x02\\x03'", "True"],
    "orphans": ["0", "b'done'", "'ECHILD'"],
    "executing": ["9", "b'\\x05\\x06\\x07'"],
    "fork_copies_memory": ["1", "(b'parent', b'other', b'1')"],
}
"""What Linux notes; `test_against_linux` compares these cases with it."""


@pytest.mark.parametrize("asi", [True, False], ids=["asi", "no-asi"])
@pytest.mark.parametrize(("cpus", "smt"), [(2, False), (2, True), (4, True)])
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", EXPECTED)
def test_interleaved(name: str, seed: int, cpus: int, *, smt: bool, asi: bool) -> None:
    """Answers do not depend on the interleaving, nor on ASI and stuns."""
    noted: list[str] = []

    def case(user: User) -> None:
        CASES[name](user, lambda value: noted.append(repr(value)))

    machine = Machine(asi=asi, debug=True, cpus=cpus, smt=smt, seed=seed)
    machine.file("/dir/data", CONTENT)
    process = machine.process(case)
    machine.run()
    assert (noted, process.exit_code) == (EXPECTED[name], 0)
