"""Stacks as function names, and the counts of a trace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.trace import EventKind, StackFrame, Stacks, TouchCount, TraceError, summarize
from tests.builders import TraceBuilder, small_trace

if TYPE_CHECKING:
    from pathlib import Path


def test_frames(tmp_path: Path) -> None:
    """A stack's frames come leaf first, with module and address; the empty stack has none."""
    builder = TraceBuilder()
    known = builder.stack(("ext4:ext4_file_read_iter", "vfs_read", "entry_SYSCALL_64"))
    stacks = Stacks(builder.write(tmp_path / "t"))
    assert stacks.frames(known) == (
        StackFrame("ext4_file_read_iter", "ext4", 0xFFFFFFFF81003010),
        StackFrame("vfs_read", None, 0xFFFFFFFF81002010),
        StackFrame("entry_SYSCALL_64", None, 0xFFFFFFFF81001010),
    )
    assert stacks.names(known) == ("ext4_file_read_iter", "vfs_read", "entry_SYSCALL_64")
    assert stacks.frames(0) == ()


def test_arrays(tmp_path: Path) -> None:
    """The arrays give every stack's leaf and its caller at once."""
    stacks = Stacks(small_trace().write(tmp_path / "t"))
    for stack in range(1, len(stacks)):
        names = (*stacks.names(stack), "?")
        assert stacks.name[stacks.symbol[stack]] == names[0]
        assert stacks.name[stacks.symbol[stacks.parent[stack]]] == names[1]


@pytest.mark.parametrize("stack", [-1, 13])
def test_no_such_stack(tmp_path: Path, stack: int) -> None:
    """An id that is not there is an error, not the last row."""
    stacks = Stacks(small_trace().write(tmp_path / "t"))
    with pytest.raises(IndexError) as caught:
        stacks.frames(stack)
    assert str(caught.value) == f"no stack {stack}: there are 13"


def test_summary(tmp_path: Path) -> None:
    """The counts, by kind of event, by CPU and by what was touched, over several parts."""
    summary = summarize(small_trace().write(tmp_path / "t", rows_per_part=4))
    once = set(EventKind) - {
        EventKind.RETURN_USER,
        EventKind.VM_ENTRY,
        EventKind.NESTED_RETURN,
        EventKind.TOUCH_READ,
        EventKind.TOUCH_WRITE,
    }
    assert summary.events == dict.fromkeys(once, 1) | {
        EventKind.RETURN_USER: 3,
        EventKind.VM_ENTRY: 2,
        EventKind.NESTED_RETURN: 3,
        EventKind.TOUCH_READ: 3,
        EventKind.TOUCH_WRITE: 2,
    }
    assert summary.round_trips == 5
    assert [(cpu.cpu, cpu.events, cpu.clock) for cpu in summary.cpus] == [(0, 14, 140), (1, 13, 130)]
    assert summary.touches == (
        TouchCount("direct_map", "page_table", 1, 0, 0),
        TouchCount("direct_map", "shmem", 1, 0, 0),
        TouchCount("direct_map", "slab", 0, 1, 0),
        TouchCount("fixmap", "mmio", 1, 0, 0),
        TouchCount("modules", "vmalloc", 0, 0, 1),
        TouchCount("user", "anon", 0, 1, 0),
    )


def test_touches_most_first(tmp_path: Path) -> None:
    """What is touched most stands first, pages of one kind counted together."""
    builder = TraceBuilder()
    for label in "abc":
        builder.touch_fetch(region="kernel_image", kind="reserved", label=label)
    summary = summarize(builder.touch_read(kind="slab").write(tmp_path / "t"))
    assert summary.touches == (
        TouchCount("kernel_image", "reserved", 0, 0, 3),
        TouchCount("direct_map", "slab", 1, 0, 0),
    )


def test_place_that_is_not_there(tmp_path: Path) -> None:
    """A touch that leads nowhere is refused rather than left out of the count."""
    trace = TraceBuilder().event(EventKind.TOUCH_READ, 5).write(tmp_path / "t")
    with pytest.raises(TraceError) as caught:
        summarize(trace)
    assert str(caught.value) == f"{trace.path}/events: place 5 is not in places"
