"""The recorded kernel's own counts beside the recording's: one definition for tests and the table of kernels."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from asikit.trace import NO_PAGE, RETURN_KINDS, TOUCH_KINDS, EventKind

if TYPE_CHECKING:
    import numpy.typing as npt

    from tests.record.asked import Asked, Events

PAGE_FAULT = 14
AT_USER_MODE = {kind for kind in EventKind if kind.name.startswith("ENTRY_")} | RETURN_KINDS
NESTED = {EventKind.NESTED_EXCEPTION, EventKind.NESTED_INTERRUPT, EventKind.NESTED_NMI}


class Calls(NamedTuple):
    """Calls in which pages, or switches, are counted.

    :ivar kind: What they have an event of.
    :ivar counted_last: Their event comes first, so one before a mark may be counted after it. If not, one after a mark
        may have been counted before it.
    :ivar functions: Who has the event.
    """

    kind: EventKind
    counted_last: bool
    functions: re.Pattern[str]


FREE = Calls(EventKind.PAGE_FREE, counted_last=True, functions=re.compile(r".*"))
BULK = Calls(EventKind.PAGE_ALLOC, counted_last=True, functions=re.compile(r".*alloc_pages_bulk.*"))
ALLOCATION = Calls(EventKind.PAGE_ALLOC, counted_last=False, functions=re.compile(r"(?!.*alloc_pages_bulk).*"))
SWITCH = Calls(EventKind.TASK_SWITCH, counted_last=False, functions=re.compile(r".*"))
HELPERS = re.compile(r"\w*_prepare(\.\w+)*")
"""Functions that have the event of a free, but count nothing: their caller does."""
SWITCHING = re.compile(r"(__switch_to|finish_task_switch)(\.\w+)*")
"""Functions that run for one task on the stack of another."""
FAULTS_DISABLED = re.compile(r"copy_folio_from_iter_atomic|do_syscall_64|asm_(sysvec|exc|common)_\w+")
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


class Count(NamedTuple):
    """How often something happened: by the recording at least and at most, and by the kernel.

    The kernel gave its answer at some moment between two marks in the recording.
    """

    least: int
    most: int
    kernel: int

    @property
    def agrees(self) -> bool:
        """Tell whether the kernel's count can be the recording's."""
        return self.least <= self.kernel <= self.most

    def __str__(self) -> str:
        """Give it for a table."""
        recorded = f"{self.least}" if self.least == self.most else f"{self.least}-{self.most}"
        return f"{recorded} = {self.kernel}" if self.agrees else f"**{recorded} != {self.kernel}**"


def page_faults(asked: Asked) -> Count:
    """Count the task's page faults in both modes, and by ru_minflt.

    The kernel does not count those of accesses with page faults disabled, after which it tries again in another way:
    write() begins with one since 665575cff098 (6.15), and so does the return to user mode of a task with rseq (7.0).
    """
    faults = asked.mine & asked.events.is_kind(EventKind.ENTRY_EXCEPTION, EventKind.NESTED_EXCEPTION, arg=PAGE_FAULT)
    for event in np.flatnonzero(faults & asked.events.is_kind(EventKind.NESTED_EXCEPTION)):
        leaf = asked.events.stack_names(int(asked.events.stack[event]))[0]
        faults[event] = not FAULTS_DISABLED.fullmatch(leaf)
    return Count(*asked.between("rusage", faults), asked.growth("rusage", r"minflt (\d+)"))


def own_switches(asked: Asked) -> Count:
    """Count the switches away from the task, and by ru_nvcsw and ru_nivcsw."""
    switches = asked.events.is_kind(EventKind.TASK_SWITCH)
    away = switches & np.isin(asked.events.before, np.unique(asked.events.task[asked.mine]))
    return Count(*asked.between("rusage", away), asked.growth("rusage", r"switches (\d+)"))


def all_switches(asked: Asked) -> Count:
    """Count all switches, and by /proc/stat. The kernel counts them, then switches."""
    first, second = asked.named("stat")
    least, most = asked.between("stat", asked.events.is_kind(EventKind.TASK_SWITCH))
    least -= len(under_way(asked, first.end, SWITCH))
    most += len(under_way(asked, second.end, SWITCH))
    return Count(least, most, asked.growth("stat", r"ctxt (\d+)"))


def pages_allocated(asked: Asked) -> Count:
    """Count the pages of all allocations, and by /proc/vmstat. The kernel counts them, then has the event.

    Those of alloc_pages_bulk() are in the recording when it stores a pointer to them, and counted at its end.
    """
    pages = _pages(asked, EventKind.PAGE_ALLOC)
    first, second = _sums(asked)
    least, most = pages[first.stop : second.start].sum(), pages[first.start : second.stop].sum()
    least -= pages[[*under_way(asked, first.stop, ALLOCATION), *under_way(asked, second.start, BULK)]].sum()
    most += pages[[*under_way(asked, second.stop, ALLOCATION), *under_way(asked, first.start, BULK)]].sum()
    return Count(int(least), int(most), asked.growth("vmstat", r"pgalloc_\w+ (\d+)"))


def pages_freed(asked: Asked) -> Count:
    """Count the pages of all frees, and by /proc/vmstat. The kernel has the events of a call, then counts its pages."""
    pages = _pages(asked, EventKind.PAGE_FREE)
    first, second = _sums(asked)
    least = pages[first.stop : second.start].sum() - pages[under_way(asked, second.start, FREE)].sum()
    most = pages[first.start : second.stop].sum() + pages[under_way(asked, first.start, FREE)].sum()
    return Count(int(least), int(most), asked.growth("vmstat", r"pgfree (\d+)"))


def _sums(asked: Asked) -> tuple[range, range]:
    """Give the events between which the kernel summed up its CPUs' counts, in /proc/vmstat's vmstat_start().

    That is called for each read(); the last one finds that there is no more. An event without a stack, at which an
    interrupt begins or ends, does not say whether it is in there.
    """
    found = []
    telling = asked.mine & ((asked.events.stack != 0) | np.isin(asked.events.kind, list(AT_USER_MODE)))
    for question in asked.named("vmstat"):
        own = question.begin + np.flatnonzero(telling[question.begin : question.end])
        inside = ["vmstat_start" in asked.events.stack_names(int(asked.events.stack[event])) for event in own]
        starts = [i for i in range(1, len(own)) if inside[i] and not inside[i - 1]]
        last = max(i for i in range(starts[-1]) if inside[i])
        found.append(range(int(own[starts[0] - 1]), int(own[last + 1])))
    return found[0], found[1]


def _pages(asked: Asked, kind: EventKind) -> npt.NDArray[np.int64]:
    """Give the pages of each event, 0 for events of other kinds."""
    order = asked.events.table["allocations"]["order"].to_numpy().astype(np.int64)
    happened = asked.events.is_kind(kind)
    pages = np.zeros(len(happened), np.int64)
    pages[happened] = 1 << order[asked.events.arg[happened]]
    return pages


def under_way(asked: Asked, mark: int, calls: Calls) -> list[int]:
    """Give the events of calls that a task was in at a mark, on another CPU or preempted."""
    whose = np.where(asked.events.kind == EventKind.TASK_SWITCH, asked.events.before, asked.events.task)
    found = []
    for task in np.unique(whose):
        own = np.flatnonzero(whose == task)
        at = int(np.searchsorted(own, mark))
        found += _in_a_call(asked.events, own[:at][::-1] if calls.counted_last else own[at:], calls)
    return found


def _in_a_call(events: Events, own: npt.NDArray[np.int64], calls: Calls) -> list[int]:
    """Give those of a task's events, from a mark on into one direction, whose call the task was in at the mark.

    It was if it has done nothing else in between: all other stacks have that call in them. What it was interrupted for
    says nothing, and neither does the end of a switch, which runs on the next task's stack already.
    """
    begins, ends = NESTED, {EventKind.NESTED_RETURN}
    if calls.counted_last:  # looked for backwards
        begins, ends = ends, begins
    found = []
    interrupts = 0
    where: list[str] | None = None  # what all stacks so far have in common, the outermost function first
    for event in own.tolist():
        kind = int(events.kind[event])
        if kind in AT_USER_MODE or where == []:
            break
        if kind in begins:
            interrupts += 1
        elif kind in ends:
            where = where if interrupts else None
            interrupts = max(interrupts - 1, 0)
        elif not interrupts and (stack := _own_stack(events, event)):
            where = stack if where is None else _common(where, stack)
            if kind == calls.kind and calls.functions.fullmatch(stack[-1]):
                while HELPERS.fullmatch(stack[-1]):
                    stack.pop()
                if where[: len(stack)] == stack:
                    found.append(event)
    return found


def _own_stack(events: Events, event: int) -> list[str]:
    """Give an event's stack, the outermost function first; none if it may be another task's."""
    names = events.stack_names(int(events.stack[event]))[::-1]
    return [] if any(map(SWITCHING.fullmatch, names)) else names


def _common(one: list[str], other: list[str]) -> list[str]:
    """Give what two lists begin with."""
    differs = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return one[: next(differs, min(len(one), len(other)))]


def timer_interrupts(asked: Asked) -> Count:
    """Count timer interrupts on all CPUs together, and by /proc/interrupts."""
    vector = asked.events.vectors["apic_timer_interrupt"]
    timer = asked.events.is_kind(EventKind.ENTRY_INTERRUPT, EventKind.NESTED_INTERRUPT, arg=vector)
    first, second = (
        sum(int(number) for line in question.lines if "LOC:" in line for number in re.findall(r" (\d+)", line))
        for question in asked.named("interrupts")
    )
    return Count(*asked.between("interrupts", timer), second - first)


def wrong_kinds(asked: Asked, recorded: dict[int, str]) -> dict[str, tuple[str, str]]:
    """Give the frames whose kind is not what the kernel's flags (/proc/kpageflags) say: recorded kind, and flags."""
    (question,) = asked.named("kpageflags")
    flags: dict[int, int] = {}
    for line in question.lines:
        first, count, value = (int(word, 16) for word in line.split())
        flags.update(dict.fromkeys(range(first, first + count), value))
    return {
        hex(frame): (kind, hex(flags[frame]))
        for frame, kind in recorded.items()
        if kind not in next((kinds for bit, kinds in KINDS_BY_FLAG if flags[frame] >> bit & 1), OTHER_KINDS)
    }


def kinds_of_frames(asked: Asked) -> dict[int, str]:
    """Give the recorded kind of each frame that was touched, and not freed since, before the kernel gave its flags."""
    (question,) = asked.named("kpageflags")
    end = question.begin
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
