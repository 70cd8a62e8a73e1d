"""Memory of kinds that are easily taken for something else, on the oldest kernel, the newest, and the default one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asikit.cli.record import command
from asikit.record.recording import DEFAULT_MEMORY
from asikit.replay import ReplayResult, load_policy, replay
from asikit.trace import Trace
from tests.record.conftest import run
from tests.record.guests import Guest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

HERE = Path(__file__).parent
ALL = pytest.mark.parametrize(
    "guest", [pytest.param(guest, id=str(guest), marks=guest.marks()) for guest in map(Guest, ("", "5.10", "7.3"))]
)
HUGE_PAGES, SMALL_IN_HUGE, HUGE_KILOBYTES = 8, 512, "16384\n"


def exits(trace: Path, policy: str) -> ReplayResult:
    """Replay under one policy."""
    return replay(Trace.open(trace), [load_policy(policy)])[0]


def test_command_has_the_same_default() -> None:
    """What ``--memory`` says when it is not given is the library's default."""
    (option,) = (parameter for parameter in command.params if parameter.name == "memory")
    assert option.type.convert(option.default, None, None) == DEFAULT_MEMORY


@ALL
def test_transparent_huge_pages(tmp_path: Path, compiled: Callable[[Path], str], guest: Guest) -> None:
    """In the default guest Linux has transparent huge pages, as on any real machine: 8 faults, not 4,096."""
    made = run(guest.recording(compiled(HERE / "memory.c"), "thp"), tmp_path / "thp.asitrace")
    assert made.out == HUGE_KILOBYTES
    assert exits(made.trace, "denylist-2025").exits < 50


@ALL
def test_hugetlb_pool(tmp_path: Path, compiled: Callable[[Path], str], guest: Guest) -> None:
    """Pages of a pool that was filled at boot are user memory, though their allocation was not seen.

    Each fault clears a huge page, and that is an exit more than where the pool is not sensitive.
    """
    guest = Guest(guest.kernel, append=f"hugepages={HUGE_PAGES}")
    made = run(guest.recording(compiled(HERE / "memory.c"), "hugetlb"), tmp_path / "hugetlb.asitrace")
    assert made.out == HUGE_KILOBYTES
    pages = Trace.open(made.trace).table("pages").filter(kind="hugetlb")
    assert pages.height == HUGE_PAGES * SMALL_IN_HUGE
    assert pages["allocation"].null_count() == pages.height
    causes = [cause for cause in exits(made.trace, "denylist-2025").causes if cause.kind == "hugetlb"]
    assert sum(cause.exits for cause in causes) == HUGE_PAGES
    assert {cause.access for cause in causes} == {"write"}


@ALL
def test_bpf_programs(tmp_path: Path, compiled: Callable[[Path], str], guest: Guest) -> None:
    """A seccomp filter is a BPF program, also one that has no symbol and is gone when the recording ends."""
    made = run(guest.recording(compiled(HERE / "memory.c"), "filter"), tmp_path / "filter.asitrace")
    result = exits(made.trace, "no-module-text")
    (calls,) = [row for row in result.by_entry if row.entry == "syscall getppid"]
    assert calls.exits == calls.round_trips == 1000
    first = result.causes[0]
    assert (first.access, first.region, first.function) == ("fetch", "bpf", "bpf_prog")
    assert first.exits >= 1000
