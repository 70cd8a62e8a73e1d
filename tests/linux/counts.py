"""The recorded kernel's own counts beside the recording's: one definition for tests and the table of kernels."""

import re
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from asikit.trace import NO_PAGE, TOUCH_KINDS, EventKind

if TYPE_CHECKING:
    from tests.linux.asked import Asked

PAGE_FAULT, STACK_PAGES = 14, 4
FOLIO_BATCH = 31
"""Pages freed together at most (``FOLIO_BATCH_SIZE``, include/linux/folio_batch.h)."""
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


def page_faults(asked: "Asked") -> Count:
    """Count the task's page faults in both modes, and by ru_minflt.

    The kernel does not count those of accesses with page faults disabled, after which it tries again in another way:
    write() begins with one since 665575cff098 (6.15), and so does the return to user mode of a task with rseq (7.0).
    """
    faults = asked.mine & asked.events.is_kind(EventKind.ENTRY_EXCEPTION, EventKind.NESTED_EXCEPTION, arg=PAGE_FAULT)
    for event in np.flatnonzero(faults & asked.events.is_kind(EventKind.NESTED_EXCEPTION)):
        leaf = asked.events.stack_names(int(asked.events.stack[event]))[0]
        faults[event] = not FAULTS_DISABLED.fullmatch(leaf)
    return Count(*asked.between("rusage", faults), asked.growth("rusage", r"minflt (\d+)"))


def own_switches(asked: "Asked") -> Count:
    """Count the switches away from the task, and by ru_nvcsw and ru_nivcsw."""
    switches = asked.events.is_kind(EventKind.TASK_SWITCH)
    away = switches & np.isin(asked.events.before, np.unique(asked.events.task[asked.mine]))
    return Count(*asked.between("rusage", away), asked.growth("rusage", r"switches (\d+)"))


def all_switches(asked: "Asked") -> Count:
    """Count all switches, and by /proc/stat."""
    switches = asked.events.is_kind(EventKind.TASK_SWITCH)
    return Count(*asked.between("stat", switches), asked.growth("stat", r"ctxt (\d+)"))


def pages_allocated(asked: "Asked") -> Count:
    """Count the pages of all allocations, and by /proc/vmstat.

    Pages that alloc_pages_bulk() allocates have no event: those of a new task's stack. The kernel counts its new tasks.
    """
    counted = _pages(asked, EventKind.PAGE_ALLOC, r"pgalloc_\w+ (\d+)")
    return counted._replace(most=counted.most + STACK_PAGES * asked.growth("stat", r"processes (\d+)"))


def pages_freed(asked: "Asked") -> Count:
    """Count the pages of all frees, and by /proc/vmstat.

    Pages that are freed together have their events first and are counted then: on another CPU, a mark may be between.
    """
    counted = _pages(asked, EventKind.PAGE_FREE, r"pgfree (\d+)")
    batch = FOLIO_BATCH if len(np.unique(asked.events.cpu)) > 1 else 0
    return counted._replace(least=counted.least - batch, most=counted.most + batch)


def _pages(asked: "Asked", kind: EventKind, pattern: str) -> Count:
    """Count pages. The kernel counts a little before the event: on another CPU, a mark may be between the two."""
    order = asked.events.table["allocations"]["order"].to_numpy().astype(np.int64)
    happened = asked.events.is_kind(kind)
    pages = np.zeros(len(happened), np.int64)
    pages[happened] = 1 << order[asked.events.arg[happened]]
    first, second = asked.named("vmstat")

    def between_the_two(mark: int) -> int:
        others = (asked.events.cpu != asked.events.cpu[mark]) & happened
        nexts = [np.flatnonzero(others & (asked.events.cpu == cpu)) for cpu in np.unique(asked.events.cpu)]
        return sum(int(pages[after[after > mark][0]]) for after in nexts if (after > mark).any())

    least = int(pages[first.end : second.begin].sum()) - between_the_two(first.begin)
    most = int(pages[first.begin : second.end].sum()) + between_the_two(second.end)
    return Count(least, most, asked.growth("vmstat", pattern))


def timer_interrupts(asked: "Asked") -> Count:
    """Count timer interrupts on all CPUs together, and by /proc/interrupts."""
    vector = asked.events.vectors["apic_timer_interrupt"]
    timer = asked.events.is_kind(EventKind.ENTRY_INTERRUPT, EventKind.NESTED_INTERRUPT, arg=vector)
    first, second = (
        sum(int(number) for line in question.lines if "LOC:" in line for number in re.findall(r" (\d+)", line))
        for question in asked.named("interrupts")
    )
    return Count(*asked.between("interrupts", timer), second - first)


def wrong_kinds(asked: "Asked", recorded: dict[int, str]) -> dict[str, tuple[str, str]]:
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


def kinds_of_frames(asked: "Asked") -> dict[int, str]:
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
