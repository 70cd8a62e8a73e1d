"""What a recording says against what the recorded kernel itself says, counted by its own means."""

import re
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asikit.trace import NO_PAGE, RETURN_KINDS, TOUCH_KINDS, EventKind

if TYPE_CHECKING:
    from tests.linux.asked import Asked

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

PAGE_FAULT, STACK_PAGES = 14, 4
HANDLERS = re.compile(r"=> (trace_event_raw_event|__traceiter)_mm_page_alloc$")
KINDS_BY_FLAG = (
    (32, {"reserved", "percpu", "vmalloc", "stack"}),  # KPF_RESERVED: memory of before the page allocator
    (10, {"free"}),  # KPF_BUDDY
    (7, {"slab"}),  # KPF_SLAB
    (26, {"page_table"}),  # KPF_PGTABLE
    (12, {"anon"}),  # KPF_ANON
    (14, {"shmem"}),  # KPF_SWAPBACKED, not anonymous
)
"""What may be recorded for a frame with a flag of include/uapi/linux/kernel-page-flags.h; the first flag counts."""
OTHER_KINDS = {"kernel", "stack", "vmalloc", "page_cache", "percpu"}


def test_system_calls(asked: "Asked") -> None:
    """A thousand system calls are a thousand entries with that number, and no others are there."""
    (question,) = asked.named("calls")
    inside = slice(question.begin + 1, question.end)
    calls = (asked.mine & asked.events.is_kind(EventKind.ENTRY_SYSCALL))[inside]
    assert set(asked.events.arg[inside][calls]) == {asked.events.syscalls["getppid"]}
    assert np.count_nonzero(calls) == 1000


def test_page_faults(asked: "Asked") -> None:
    """The kernel's count of the task's page faults (ru_minflt) is that of the recorded ones, in both modes.

    It does not count those of accesses with page faults disabled, after which it tries again in another way: write()
    begins with one since 665575cff098 (6.15), and so does the return to user mode of a task with rseq (7.0).
    """
    faults = asked.mine & asked.events.is_kind(EventKind.ENTRY_EXCEPTION, EventKind.NESTED_EXCEPTION, arg=PAGE_FAULT)
    for event in np.flatnonzero(faults & asked.events.is_kind(EventKind.NESTED_EXCEPTION)):
        leaf = asked.events.stack_names(int(asked.events.stack[event]))[0]
        faults[event] = leaf not in {"copy_folio_from_iter_atomic", "do_syscall_64"}
    least, most = asked.between("rusage", faults)
    assert least >= 300
    assert least <= asked.growth("rusage", r"minflt (\d+)") <= most


def test_context_switches(asked: "Asked") -> None:
    """The kernel's counts of switches, of the task and of all, are those of the recorded ones."""
    switches = asked.events.is_kind(EventKind.TASK_SWITCH)
    away = switches & np.isin(asked.events.before, np.unique(asked.events.task[asked.mine]))
    for name, pattern, counted in (("rusage", r"switches (\d+)", away), ("stat", r"ctxt (\d+)", switches)):
        least, most = asked.between(name, counted)
        assert least >= 25  # of 50 turns: on two CPUs a byte may be there before its reader has gone to sleep
        assert least <= asked.growth(name, pattern) <= most


@pytest.mark.parametrize(
    ("kind", "pattern"), [(EventKind.PAGE_ALLOC, r"pgalloc_\w+ (\d+)"), (EventKind.PAGE_FREE, r"pgfree (\d+)")]
)
def test_page_allocations(asked: "Asked", kind: EventKind, pattern: str) -> None:
    """The kernel's counts of pages allocated and freed are the sums over the recorded events.

    Pages that alloc_pages_bulk() allocates, for a new stack for example, have no event. If it ran in between, the
    recording has its touches.
    """
    order = asked.events.table["allocations"]["order"].to_numpy().astype(np.int64)
    happened = asked.events.is_kind(kind)
    pages = np.zeros(len(happened), np.int64)
    pages[happened] = 1 << order[asked.events.arg[happened]]
    first, second = asked.named("vmstat")
    least, most = pages[first.end : second.begin].sum(), pages[first.begin : second.end].sum()
    assert least >= 10
    bulk = STACK_PAGES * asked.touched_by("alloc_pages_bulk", first.begin, second.end)
    assert least <= asked.growth("vmstat", pattern) <= most + (bulk if kind is EventKind.PAGE_ALLOC else 0)


def test_interrupts(asked: "Asked") -> None:
    """The kernel's count of timer interrupts is that of the recorded ones, on all CPUs together."""
    vector = asked.events.vectors["apic_timer_interrupt"]
    timer = asked.events.is_kind(EventKind.ENTRY_INTERRUPT, EventKind.NESTED_INTERRUPT, arg=vector)
    first, second = (
        sum(int(number) for line in question.lines if "LOC:" in line for number in re.findall(r" (\d+)", line))
        for question in asked.named("interrupts")
    )
    least, most = asked.between("interrupts", timer)
    assert least >= 10
    assert least <= second - first <= most


def test_stacks(asked: "Asked") -> None:
    """The kernel's own stack traces at page allocations are the recorded stacks, function by function.

    The kernel printed each allocation's frame and order, then its stack; the recording has the same allocations in
    the same order, by CPU. Where a fault or interrupt came in the kernel, the kernel's stack has the interrupted
    function below the entry; in the recording the entry may stand there again.
    """
    (question,) = asked.named("stacks")
    told = _printed(question.lines)
    allocations = asked.events.table["allocations"]
    inside = np.arange(question.begin, question.end)
    happened = inside[asked.events.is_kind(EventKind.PAGE_ALLOC)[inside]]
    recorded = [
        (
            int(asked.events.cpu[position]),
            allocations["frame"][int(asked.events.arg[position])],
            allocations["order"][int(asked.events.arg[position])],
            asked.events.stack_names(int(asked.events.stack[position])),
        )
        for position in happened
    ]
    assert len(told) >= 300
    for cpu in {entry[0] for entry in told}:
        theirs = [(frame, order, names) for where, frame, order, names in told if where == cpu]
        ours = [(frame, order, names) for where, frame, order, names in recorded if where == cpu]
        # The kernel begins and ends to print a little later and earlier than the marks.
        first = next(i for i, entry in enumerate(ours) if entry[:2] == theirs[0][:2])
        known = [
            (frame, order, _without_interrupted(names, kernels))
            for (frame, order, names), (_, _, kernels) in zip(ours[first:], theirs, strict=False)
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


def test_kinds_of_pages(asked: "Asked") -> None:
    """Every frame touched until the kernel was asked for its flags (/proc/kpageflags) is of the recorded kind."""
    (question,) = asked.named("kpageflags")
    flags: dict[int, int] = {}
    for line in question.lines:
        first, count, value = (int(word, 16) for word in line.split())
        flags.update(dict.fromkeys(range(first, first + count), value))
    recorded = _kinds_at(asked, question.begin)
    wrong = {
        hex(frame): (kind, hex(flags[frame]))
        for frame, kind in recorded.items()
        if kind not in next((kinds for bit, kinds in KINDS_BY_FLAG if flags[frame] >> bit & 1), OTHER_KINDS)
    }
    assert wrong == {}
    assert len(recorded) > 3000
    assert [recorded[frame] for frame in asked.own_frames] == ["anon"] * 300


def _kinds_at(asked: "Asked", end: int) -> dict[int, str]:
    """Give the recorded kind of each frame that was touched, and not freed or allocated since, before a position."""
    events = asked.events
    page_of_place = events.table["places"]["page"].to_numpy()
    frame_of_page, kind_of_page = events.table["pages"]["frame"].to_list(), events.table["pages"]["kind"].to_list()
    allocation_of_page = events.table["pages"]["allocation"].to_list()
    frames, orders = (events.table["allocations"][name].to_list() for name in ("frame", "order"))
    page_at: dict[int, int] = {}
    for kind, arg in zip(events.kind[:end].tolist(), events.arg[:end].tolist(), strict=True):
        if kind in TOUCH_KINDS and page_of_place[arg] != NO_PAGE:
            page = int(page_of_place[arg])
            page_at[frame_of_page[page]] = page
        elif kind in {EventKind.PAGE_ALLOC, EventKind.PAGE_FREE}:
            for frame in range(frames[arg], frames[arg] + (1 << orders[arg])):
                if kind == EventKind.PAGE_FREE or (frame in page_at and allocation_of_page[page_at[frame]] != arg):
                    page_at.pop(frame, None)
    return {frame: kind_of_page[page] for frame, page in page_at.items()}


def test_round_trips_are_well_formed(asked: "Asked") -> None:
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
