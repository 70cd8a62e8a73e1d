"""One pass over a trace: what the protocol asks for under each policy, and what is lost and found again meanwhile."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from asikit.cost.mitigations import Happening
from asikit.cost.pageblocks import PageblockCounter, Pageblocks
from asikit.replay import ALL_CLASSES, ReplayError
from asikit.replay._steps import check_policy
from asikit.replay._tables import SideTables
from asikit.replay.causes import name_result
from asikit.replay.sensitivity import apply_policy
from asikit.trace import TOUCH_KINDS, EventKind, Region

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from asikit.protocol import Effect
    from asikit.replay import Policy, ReplayResult
    from asikit.trace import Trace

    Numbers = npt.NDArray[np.int64]
    Columns = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]

__all__ = ["Base", "Measured", "Walked", "measure"]

_COLUMNS = ("cpu", "kind", "arg", "clock", "stack")
_PAGE_SHIFT, _LARGE_SHIFT = 12, 21
# Regions that the kernel maps with pages of 2 MiB or more (Documentation/arch/x86/x86_64/mm.rst); module text and
# vmalloc are mapped with pages of 4 KiB.
_LARGE_REGIONS = (Region.DIRECT_MAP, Region.KERNEL_IMAGE, Region.VMEMMAP)
_ENTRIES = {
    Happening.SYSCALL_ENTRY: EventKind.ENTRY_SYSCALL,
    Happening.EXCEPTION_ENTRY: EventKind.ENTRY_EXCEPTION,
    Happening.INTERRUPT_ENTRY: EventKind.ENTRY_INTERRUPT,
    Happening.NMI_ENTRY: EventKind.ENTRY_NMI,
}
_OTHERS = {
    Happening.USER_RETURN: EventKind.RETURN_USER,
    Happening.VM_EXIT: EventKind.VM_EXIT,
    Happening.VM_ENTRY: EventKind.VM_ENTRY,
    Happening.TASK_SWITCH: EventKind.TASK_SWITCH,
    Happening.MM_SWITCH: EventKind.MM_SWITCH,
}


@dataclass(frozen=True, slots=True)
class Walked:
    """What a walk over the events counted; instructions are retired ones, translations TLB entries.

    :ivar unrestricted_instructions: From each exit to its round trip's end.
    :ivar switches_to_userspace: Returns that loaded the userspace class's address space; likewise for KVM's.
    :ivar misses: Translations that were used first after a load of their address space: if the kernel maps large pages,
        and if it does not.
    :ivar before_exit: Translations used in a round trip before its exit, likewise: a trace does not say whether they
        are used again after it.
    :ivar touched: Distinct translations of all round trips, likewise.
    :ivar flushes: By the number of pages of 4 KiB that the kernel read or wrote until the next one: how many.
    """

    kernel_instructions: int
    unrestricted_instructions: int
    switches_out: int
    switches_to_userspace: int
    switches_to_kvm: int
    misses: tuple[int, int]
    before_exit: tuple[int, int]
    touched: tuple[int, int]
    round_trips: int
    flushes: "Mapping[int, int]"

    @property
    def switches_in(self) -> int:
        """Returns that loaded another address space."""
        return self.switches_to_userspace + self.switches_to_kvm


@dataclass(frozen=True, slots=True)
class Base:
    """The run without any mitigation.

    :ivar instructions: Retired ones, of all CPUs.
    :ivar happenings: Counts.
    :ivar walked: Every return taken for a flush.
    """

    instructions: int
    cpus: int
    happenings: "Mapping[Happening, int]"
    walked: Walked


@dataclass(frozen=True, slots=True)
class Measured:
    """What a policy asks for.

    :ivar effects: How often each effect.
    """

    policy: "Policy"
    result: "ReplayResult"
    effects: "Mapping[Effect, int]"
    walked: Walked
    pageblocks: Pageblocks


class _ProcessSwitches:
    """Counts context switches that change the mm: TASK_SWITCH, and no other switch before MM_SWITCH, on one CPU."""

    def __init__(self, cpus: int) -> None:
        self._last = [0] * cpus
        self.times = 0

    def feed(self, cpu: "Numbers", kind: "Numbers", arg: "Numbers") -> None:
        """Count in some more events. No context switch changes to init_mm: a kernel thread keeps the mm it finds."""
        at = np.flatnonzero((kind == EventKind.TASK_SWITCH) | (kind == EventKind.MM_SWITCH))
        for number in np.unique(cpu[at]).tolist():
            own = at[cpu[at] == number]
            before = np.concatenate(([self._last[number]], kind[own[:-1]]))
            after_task = before == EventKind.TASK_SWITCH
            self.times += int(np.count_nonzero(after_task & (kind[own] == EventKind.MM_SWITCH) & (arg[own] != 0)))
            self._last[number] = int(kind[own[-1]])


class _Walker:
    """The state of a walk."""

    def __init__(self, tables: SideTables, cpus: int, *, flush_always: bool) -> None:
        # numba takes a while to import.
        from asikit.cost._walk import HISTOGRAM, PER_CPU, Count, State  # noqa: PLC0415

        self._flush_always = int(flush_always)
        vaddr = tables.places["vaddr"].to_numpy()
        is_large = np.isin(tables.region_of_place, [list(Region).index(region) for region in _LARGE_REGIONS])
        # Odd and even, so that a large page is never taken for a small one.
        keys = np.where(
            is_large,
            vaddr >> np.uint64(_LARGE_SHIFT) << np.uint64(1),
            vaddr >> np.uint64(_PAGE_SHIFT) << np.uint64(1) | np.uint64(1),
        )
        self._large = np.unique(keys, return_inverse=True)[1].astype(np.int64)
        self._small = np.unique(vaddr, return_inverse=True)[1].astype(np.int64)
        larges, smalls = int(self._large.max(initial=-1)) + 1, int(self._small.max(initial=-1)) + 1
        self._state = np.zeros((cpus, PER_CPU), np.int64)
        self._state[:, State.LEFT] = -1
        self._seen_large = np.zeros((cpus, 3, larges), np.int64)
        self._seen_small = np.zeros((cpus, 3, smalls), np.int64)
        self._trip_large = np.full((cpus, larges), -1, np.int64)
        self._trip_small = np.full((cpus, smalls), -1, np.int64)
        self._flush_small = np.full((cpus, smalls), -1, np.int64)
        self._counts = np.zeros(len(Count), np.int64)
        self._histogram = np.zeros(HISTOGRAM, np.int64)

    def feed(self, columns: "Columns", exits: "Numbers") -> None:
        """Run events: ``cpu``, ``kind``, ``arg``, ``clock``, and ``stack``, which does not matter here."""
        from asikit.cost._walk import walk_events  # noqa: PLC0415

        walk_events(
            *columns[:4],
            exits,
            self._large,
            self._small,
            self._state,
            self._seen_large,
            self._seen_small,
            self._trip_large,
            self._trip_small,
            self._flush_small,
            self._counts,
            self._histogram,
            self._flush_always,
        )

    def instructions(self) -> int:
        """Return the instructions so far."""
        from asikit.cost._walk import State  # noqa: PLC0415

        return int(self._state[:, State.CLOCK].sum())

    def walked(self) -> Walked:
        """Return the counts; what a round trip that the recording cuts off would add is left out."""
        from asikit.cost._walk import Count  # noqa: PLC0415

        counts = {name: int(self._counts[name]) for name in Count}
        return Walked(
            kernel_instructions=counts[Count.KERNEL_INSTRUCTIONS],
            unrestricted_instructions=counts[Count.UNRESTRICTED_INSTRUCTIONS],
            switches_out=counts[Count.SWITCHES_OUT],
            switches_to_userspace=counts[Count.SWITCHES_TO_USERSPACE],
            switches_to_kvm=counts[Count.SWITCHES_TO_KVM],
            misses=(counts[Count.MISSES_LARGE], counts[Count.MISSES_SMALL]),
            before_exit=(counts[Count.BEFORE_EXIT_LARGE], counts[Count.BEFORE_EXIT_SMALL]),
            touched=(counts[Count.TOUCHED_LARGE], counts[Count.TOUCHED_SMALL]),
            round_trips=counts[Count.ROUND_TRIPS],
            flushes={pages: int(self._histogram[pages]) for pages in np.flatnonzero(self._histogram).tolist()},
        )


def measure(trace: "Trace", policies: "Sequence[Policy]") -> tuple[Base, list[Measured]]:
    """Read a trace once, and count what each policy asks for.

    Memory: the side tables, a part of the events, and for each policy and CPU some 80 bytes a place.

    :raises PolicyError: A policy does not fit the recorded kernel, or contradicts itself.
    :raises ReplayError: The trace's tables contradict each other.
    :raises TraceError: A part of the trace is damaged.
    """
    from asikit.replay.engine import CompiledReplay  # noqa: PLC0415

    for policy in policies:
        check_policy(policy, ALL_CLASSES)
    tables = SideTables.of(trace)
    cpus = int(trace.scan_events().select(pl.col("cpu").max().fill_null(0)).collect().item()) + 1
    applied = [apply_policy(policy, tables) for policy in policies]
    runs = [
        CompiledReplay(policy, ALL_CLASSES, sensitive, tables.tasks.height)
        for policy, sensitive in zip(policies, applied, strict=True)
    ]
    walkers = [_Walker(tables, cpus, flush_always=policy.mechanism.kind.value != "asi") for policy in policies]
    blocks = [PageblockCounter.of(tables, sensitive) for sensitive in applied]
    base = _Walker(tables, cpus, flush_always=True)
    kinds = np.zeros(max(EventKind) + 1, np.int64)
    process_switches = _ProcessSwitches(cpus)
    none = np.empty(0, np.int64)
    for columns in _pieces(trace, tables):
        cpu, kind, arg, _, stack = columns
        kinds += np.bincount(kind, minlength=kinds.size)
        process_switches.feed(cpu, kind, arg)
        base.feed(columns, none)
        for run, walker, counter in zip(runs, walkers, blocks, strict=True):
            walker.feed(columns, run.feed(cpu, kind, arg, stack))
            counter.feed(kind, arg)
    measured = []
    for policy, run, walker, counter in zip(policies, runs, walkers, blocks, strict=True):
        tally = run.tally()
        result = name_result(tally, tables, policy, ALL_CLASSES)
        measured.append(Measured(policy, result, tally.effects, walker.walked(), counter.result()))
    happenings = _happenings(kinds, base.walked()) | {Happening.PROCESS_SWITCH: process_switches.times}
    return Base(base.instructions(), cpus, happenings, base.walked()), measured


def _pieces(trace: "Trace", tables: SideTables) -> "Iterator[Columns]":
    """Give the events as arrays, part by part, with every reference checked that the loops follow."""
    for chunk in trace.events(columns=_COLUMNS):
        cpu, kind, arg, clock, stack = (_read_only(chunk, name) for name in _COLUMNS)
        if kind.size and kind.max() > max(EventKind):
            raise ReplayError("table events: a row is of no known kind; check the trace with `asi info --verify`")
        touched = arg[np.isin(kind, [int(touch) for touch in TOUCH_KINDS])]
        if touched.size and touched.max() >= tables.places.height:
            raise ReplayError(
                f"table events: a touch refers to place {touched.max()} of {tables.places.height}; "
                "check the trace with `asi info --verify`, or record it again"
            )
        yield cpu, kind, arg, clock, stack


def _read_only(chunk: pl.DataFrame, column: str) -> "npt.NDArray[Any]":
    array = chunk[column].rechunk().to_numpy().view()
    array.flags.writeable = False
    return array


def _happenings(kinds: "Numbers", walked: Walked) -> "dict[Happening, int]":
    counted = {happening: int(kinds[kind]) for happening, kind in (_ENTRIES | _OTHERS).items()}
    counted[Happening.USER_ENTRY] = sum(counted[entry] for entry in _ENTRIES)
    counted[Happening.KERNEL_INSTRUCTION] = walked.kernel_instructions
    return counted
