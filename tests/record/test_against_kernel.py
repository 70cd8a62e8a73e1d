"""What a recording says against what the recorded kernel itself says, counted by its own means."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asikit.trace import RETURN_KINDS, EventKind
from tests.record.counts import (
    BULK,
    all_switches,
    kinds_of_frames,
    own_switches,
    page_faults,
    pages_allocated,
    pages_freed,
    timer_interrupts,
    wrong_kinds,
)

if TYPE_CHECKING:
    from tests.record.asked import Asked

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

BY_A_HANDLER = r"__schedule preempt_schedule_notrace (?:(?!asm_)\S+ )*trace_event_raw_event_mm_page_alloc "
BEFORE_SWITCH = re.compile(rf"^(?:(?:(?!asm_)\S+ )*(?!asm_|__switch_to|finish_task_switch)\S+ )?{BY_A_HANDLER}")
HANDLERS = re.compile(r"=> (trace_event_raw_event|__traceiter)_mm_page_alloc$")


def test_system_calls(asked: Asked) -> None:
    """A thousand system calls are a thousand entries with that number, and no others are there."""
    (question,) = asked.named("calls")
    inside = slice(question.begin + 1, question.end)
    calls = (asked.mine & asked.events.is_kind(EventKind.ENTRY_SYSCALL))[inside]
    assert set(asked.events.arg[inside][calls]) == {asked.events.syscalls["getppid"]}
    assert np.count_nonzero(calls) == 1000


def test_page_faults(asked: Asked) -> None:
    """The kernel's count of the task's page faults (ru_minflt) is that of the recorded ones, in both modes."""
    count = page_faults(asked)
    assert count.least >= 300
    assert count.agrees, count


def test_context_switches(asked: Asked) -> None:
    """The kernel's counts of switches, of the task and of all, are those of the recorded ones."""
    for count in (own_switches(asked), all_switches(asked)):
        assert count.least >= 25  # of 50 turns: on two CPUs a byte may be there before its reader has gone to sleep
        assert count.agrees, count


def test_page_allocations(asked: Asked) -> None:
    """The kernel's counts of pages allocated and freed are the sums over the recorded events."""
    for count, enough in ((pages_allocated(asked), 300), (pages_freed(asked), 10)):
        assert count.most >= enough
        assert count.agrees, count


def test_preemption_in_handlers(asked: Asked) -> None:
    """Where an event's handler calls the scheduler (since 7.0), what that touches is recorded: it is not the handler's.

    But for the switch itself: after that the other task counts.
    """
    (question,) = asked.named("preempted")
    inside = np.arange(question.begin, question.end)
    before_switch = [
        stack
        for stack in np.unique(asked.events.stack[inside]).tolist()
        if BEFORE_SWITCH.search(" ".join(asked.events.stack_names(stack)))
    ]
    kinds = asked.events.kind[inside][np.isin(asked.events.stack[inside], before_switch)]
    assert EventKind.TASK_SWITCH not in kinds or EventKind.TOUCH_READ in kinds


def test_interrupts(asked: Asked) -> None:
    """The kernel's count of timer interrupts is that of the recorded ones, on all CPUs together."""
    count = timer_interrupts(asked)
    assert count.least >= 10
    assert count.agrees, count


def test_stacks(asked: Asked) -> None:
    """The kernel's own stack traces at page allocations are the recorded stacks, function by function.

    The kernel printed each allocation's frame and order, then its stack; the recording has the same allocations in
    the same order, by CPU. Where a fault or interrupt came in the kernel, the kernel's stack has the interrupted
    function below the entry; in the recording the entry may stand there again. A task older than the workload may have
    been in the kernel when the recording began, which lacks its calls from before (docs/limits.md).
    """
    (question,) = asked.named("stacks")
    told = _printed(question.lines)
    allocations = asked.events.table["allocations"]
    inside = np.arange(question.begin, question.end)
    happened = inside[asked.events.is_kind(EventKind.PAGE_ALLOC)[inside]]
    older = asked.of_older_tasks()
    recorded = [
        (
            int(asked.events.cpu[position]),
            allocations["frame"][int(asked.events.arg[position])],
            allocations["order"][int(asked.events.arg[position])],
            asked.events.stack_names(int(asked.events.stack[position])),
            bool(older[position]),
        )
        for position in happened
        # The kernel has no event for those of alloc_pages_bulk(), which allocates a thread's stack if none is kept.
        if not BULK.functions.fullmatch(asked.events.stack_names(int(asked.events.stack[position]))[0])
    ]
    assert len(told) >= 300
    for cpu in {entry[0] for entry in told}:
        theirs = [(frame, order, names) for where, frame, order, names in told if where == cpu]
        ours = [entry[1:] for entry in recorded if entry[0] == cpu]
        # The kernel begins and ends to print a little later and earlier than the marks.
        first = next(i for i, entry in enumerate(ours) if entry[:2] == theirs[0][:2])
        known = [
            (frame, order, [*_without_interrupted(names, kernels), *(kernels[len(names) :] if began_before else [])])
            for (frame, order, names, began_before), (_, _, kernels) in zip(ours[first:], theirs, strict=False)
        ]
        assert known == theirs


def _printed(lines: tuple[str, ...]) -> list[tuple[int, int, int, list[str]]]:
    """Give CPU, frame, order and stack of each allocation that the kernel printed; the CPUs' lines are mixed.

    A stack begins in the handler of the event itself, which is not the workload's. While the kernel begins and ends to
    print them, an event may be without its stack, or a stack without its event.
    """
    printed: list[tuple[int, int, int, list[str]]] = []
    last: dict[int, list[str]] = {}
    stack: list[str] = []
    for line in lines:
        event = re.search(r"\[(\d+)\].* mm_page_alloc: page=\S+ pfn=(\w+) order=(\d+)", line)
        begin = re.search(r"\[(\d+)\].* <stack trace>", line)
        if event is not None:
            last[int(event[1])] = []
            printed.append((int(event[1]), int(event[2], 0), int(event[3]), last[int(event[1])]))
        elif begin is not None:
            stack = last.pop(int(begin[1]), [])
        elif line.startswith(" => ") and not HANDLERS.search(line):
            stack.append(line.removeprefix(" => ").strip())
    return [entry for entry in printed if entry[3]]


def _without_interrupted(names: list[str], kernels: list[str]) -> list[str]:
    """Put the kernel's word for an interrupted function where the entry stands again."""
    again = [name.startswith("asm_") and name == before for name, before in zip(names[1:], names, strict=False)]
    known = zip(names[1:], kernels[1:], again, strict=False)
    return [names[0], *(kernel if twice else name for name, kernel, twice in known), *names[len(kernels) :]]


def test_kinds_of_pages(asked: Asked) -> None:
    """Every frame touched until the kernel was asked for its flags (/proc/kpageflags) is of the recorded kind."""
    recorded = kinds_of_frames(asked)
    assert wrong_kinds(asked, recorded) == {}
    assert len(recorded) > 3000
    assert [recorded[frame] for frame in asked.own_frames] == ["anon"] * 300


def test_a_process_that_ends_leaves_its_mm(asked: Asked) -> None:
    """The last flush of a process that ends finds a lazy TLB: the CPU loads init_mm, and nothing is flushed.

    On two CPUs the process may have ended elsewhere, and if it has let others run their mm is loaded by then.
    """
    (question,) = asked.named("work")
    inside = np.arange(question.begin, question.end)
    switches = inside[asked.events.is_kind(EventKind.MM_SWITCH, arg=0)[inside]]
    ends = [event for event in switches if "exit_mmap" in asked.events.stack_names(int(asked.events.stack[event]))]
    flushes = inside[asked.events.is_kind(EventKind.TLB_FLUSH)[inside]]
    assert not [event for event in flushes if "exit_mmap" in asked.events.stack_names(int(asked.events.stack[event]))]
    turns = inside[asked.events.is_kind(EventKind.TASK_SWITCH)[inside]]
    others = [event for event in turns if "exit_mmap" in asked.events.stack_names(int(asked.events.stack[event]))]
    assert len(ends) == 1 or (not ends and (others or len(np.unique(asked.events.cpu)) > 1))


def test_round_trips_are_well_formed(asked: Asked) -> None:
    """On each CPU entries and returns alternate, and nested returns never exceed nested entries of a round trip."""
    events = asked.events
    entries = [kind for kind in EventKind if kind.name.startswith("ENTRY_")]
    for cpu in np.unique(events.cpu):
        here = events.cpu == cpu
        steps = np.where(np.isin(events.kind, entries), 1, np.where(np.isin(events.kind, list(RETURN_KINDS)), -1, 0))[
            here
        ]
        depth = np.cumsum(steps)
        assert depth.max() - depth.min() == 1
