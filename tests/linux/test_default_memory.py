"""The default memory lets Linux do what it does on real machines."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asikit.cli.record import command
from asikit.linux import Recording
from asikit.linux.recording import DEFAULT_MEMORY
from asikit.replay import load_policy, replay
from asikit.trace import Trace
from tests.linux.conftest import run

if TYPE_CHECKING:
    from collections.abc import Callable

HUGE = Path(__file__).with_name("huge.c")


def test_command_has_the_same_default() -> None:
    """What ``--memory`` says when it is not given is the library's default."""
    (option,) = (parameter for parameter in command.params if parameter.name == "memory")
    assert option.type.convert(option.default, None, None) == DEFAULT_MEMORY


@pytest.mark.needs_qemu
@pytest.mark.needs_busybox
@pytest.mark.needs_cc
def test_huge_pages(tmp_path: Path, compiled: "Callable[[Path], str]") -> None:
    """A program that asks for huge pages has them: the kernel counts more memory than the 512 MiB that it asks for."""
    huge = compiled(HUGE)
    made = run(Recording(("sh", "-c", f"grep MemTotal /proc/meminfo; {huge}"), include=(Path(huge),)), tmp_path / "t")
    found = re.fullmatch(r"MemTotal: +(\d+) kB\n16384 kB\n", made.out)
    assert found is not None, made.out
    assert int(found[1]) << 10 > 512 << 20
    (result,) = replay(Trace.open(made.trace), [load_policy("denylist-2025")])
    (faults,) = (row for row in result.by_entry if row.entry == "exception 14 page fault")
    assert faults.exits < 1000  # 4,096 small pages would be cleared in as many round trips
