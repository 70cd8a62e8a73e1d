"""One pass over a trace: what the protocol asks for under each policy, and what is lost and found again meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from asikit.cost.mitigations import Occasion
from asikit.cost.pageblocks import PageblockConversions, PageblockCounter
from asikit.replay import ALL_CLASSES, ReplayError, ReplayResult, Selection
from asikit.replay._steps import check_policy
from asikit.replay._tables import SideTables
from asikit.replay.causes import name_part, name_result
from asikit.replay.grouping import Group, Grouping, Labeller
from asikit.replay.sensitivity import apply_policy
from asikit.trace import TOUCH_KINDS, EventKind, Region

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import numpy.typing as npt

    from asikit.cost._split import Split
    from asikit.protocol import Effect
    from asikit.replay import By, Part, Policy
    from asikit.trace import Trace

    Numbers = npt.NDArray[np.int64]
    Groups = npt.NDArray[np.uint32]
    Columns = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]

__all__ = ["Base", "Measured", "Portion", "Portions", "Walked", "measure", "measure_portions"]

_COLUMNS = ("cpu", "kind", "arg", "clock", "stack")
_PAGE_SHIFT, _LARGE_SHIFT = 12, 21
# Regions that the kernel maps with pages of 2 MiB or more (Documentation/arch/x86/x86_64/mm.rst); module text and
# vmalloc are mapped with pages of 4 KiB.
_LARGE_REGIONS = (Region.DIRECT_MAP, Region.KERNEL_IMAGE, Region.VMEMMAP)
_ENTRIES = {
    Occasion.SYSCALL_ENTRY: EventKind.ENTRY_SYSCALL,
    Occasion.EXCEPTION_ENTRY: EventKind.ENTRY_EXCEPTION,
    Occasion.INTERRUPT_ENTRY: EventKind.ENTRY_INTERRUPT,
    Occasion.NMI_ENTRY: EventKind.ENTRY_NMI,
}
_OTHERS = {
    Occasion.USER_RETURN: EventKind.RETURN_USER,
    Occasion.VM_EXIT: EventKind.VM_EXIT,
    Occasion.VM_ENTRY: EventKind.VM_ENTRY,
    Occasion.TASK_SWITCH: EventKind.TASK_SWITCH,
    Occasion.MM_SWITCH: EventKind.MM_SWITCH,
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
    flushes: Mapping[int, int]

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
    happenings: Mapping[Occasion, int]
    walked: Walked


@dataclass(frozen=True, slots=True)
class Measured:
    """What a policy asks for.

    :ivar effects: How often each effect.
    :ivar pageblocks: Of the whole recording.
    :ivar pageblock_shares: How much of the changes to sensitive, and to nonsensitive, is this part's.
    """

    policy: Policy
    result: ReplayResult | Part
    effects: Mapping[Effect, int]
    walked: Walked
    pageblocks: PageblockConversions
    pageblock_shares: tuple[float, float] = (1.0, 1.0)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the policy's author is to know; nothing for a part."""
        return self.result.warnings if isinstance(self.result, ReplayResult) else ()


@dataclass(frozen=True, slots=True)
class Portion:
    """A recording or a part of it: what it is without mitigations, and what each policy asks for.

    Of a part ``walked`` has only what :class:`asikit.cost._split.Share` counts.
    """

    base: Base
    measured: list[Measured]
    events: int


@dataclass(frozen=True, slots=True)
class Portions:
    """A recording, what was selected of it, and that in parts, the longest first."""

    whole: Portion
    chosen: Portion
    parts: tuple[tuple[Group, Portion], ...] = ()


class _ProcessSwitches:
    """Counts context switches that change the mm: TASK_SWITCH, and no other switch before MM_SWITCH, on one CPU.

    :ivar times: By group.
    """

    def __init__(self, cpus: int, groups: int = 1) -> None:
        self._last = [0] * cpus
        self.times = np.zeros(groups, np.int64)

    def feed(self, cpu: Numbers, kind: Numbers, arg: Numbers, group: Groups | None = None) -> None:
        """Count in some more events. No context switch changes to init_mm: a kernel thread keeps the mm it finds."""
        at = np.flatnonzero((kind == EventKind.TASK_SWITCH) | (kind == EventKind.MM_SWITCH))
        for number in np.unique(cpu[at]).tolist():
            own = at[cpu[at] == number]
            before = np.concatenate(([self._last[number]], kind[own[:-1]]))
            after_task = before == EventKind.TASK_SWITCH
            found = own[after_task & (kind[own] == EventKind.MM_SWITCH) & (arg[own] != 0)]
            np.add.at(self.times, 0 if group is None else group[found], found.size if group is None else 1)
            self._last[number] = int(kind[own[-1]])


class _Walker:
    """The state of a walk."""

    def __init__(self, tables: SideTables, cpus: int, *, flush_always: bool) -> None:
        # numba takes a while to import.
        from asikit.cost._walk import HISTOGRAM, PER_CPU, Count, WalkState  # noqa: PLC0415

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
        self._state[:, WalkState.LEFT] = -1
        self._seen_large = np.zeros((cpus, 3, larges), np.int64)
        self._seen_small = np.zeros((cpus, 3, smalls), np.int64)
        self._trip_large = np.full((cpus, larges), -1, np.int64)
        self._trip_small = np.full((cpus, smalls), -1, np.int64)
        self._flush_small = np.full((cpus, smalls), -1, np.int64)
        self._counts = np.zeros(len(Count), np.int64)
        self._histogram = np.zeros(HISTOGRAM, np.int64)

    def feed(self, columns: Columns, exits: Numbers) -> None:
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
        from asikit.cost._walk import WalkState  # noqa: PLC0415

        return int(self._state[:, WalkState.CLOCK].sum())

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


def measure(trace: Trace, policies: Sequence[Policy]) -> tuple[Base, list[Measured]]:
    """Read a trace once, and count what each policy asks for.

    Memory: the side tables, a part of the events, and for each policy and CPU some 80 bytes a place.

    :raises PolicyError: A policy does not fit the recorded kernel, or contradicts itself.
    :raises ReplayError: The trace's tables contradict each other.
    :raises TraceError: A part of the trace is damaged.
    """
    whole = _Pass(trace, policies, None).whole()
    return whole.base, whole.measured


def measure_portions(trace: Trace, policies: Sequence[Policy], selection: Selection | None, by: By | None) -> Portions:
    """Read a trace once, and count what each policy asks for in all of it, in what is selected, and in its parts.

    :raises SelectionError: The recording does not have what is selected; otherwise as :func:`measure`.
    """
    if selection is None and by is None:
        whole = _Pass(trace, policies, None).whole()
        return Portions(whole, whole)
    grouping = Grouping.of(trace, selection or Selection(), by)
    read = _Pass(trace, policies, grouping)
    parts: list[tuple[Group, Portion]] = []
    if by is not None:
        each = [(group, read.portion([number], group)) for number, group in enumerate(grouping.groups, start=1)]
        parts = [(group, portion) for group, portion in each if portion.events]
        parts.sort(key=lambda part: (-part[1].base.instructions, -part[1].events, part[0].name))
    return Portions(read.whole(), read.portion(grouping.selected), tuple(parts))


class _Under:
    """What one policy asks for, counted."""

    def __init__(self, policy: Policy, tables: SideTables, cpus: int, groups: int) -> None:
        from asikit.replay.engine import CompiledReplay  # noqa: PLC0415

        self.policy = policy
        self._tables = tables
        sensitive = apply_policy(policy, tables)
        self._run = CompiledReplay(policy, ALL_CLASSES, sensitive, tables.tasks.height, groups=groups)
        self._walker = _Walker(tables, cpus, flush_always=policy.mechanism.kind.value != "asi")
        self._blocks = PageblockCounter.of(tables, sensitive)
        self._split = _split_of(cpus, groups)

    def feed(self, columns: Columns, group: Groups | None) -> None:
        cpu, kind, arg, clock, stack = columns
        exits = self._run.feed(cpu, kind, arg, stack, group)
        self._walker.feed(columns, exits)
        self._blocks.feed(kind, arg, group)
        if group is not None:
            self._split.feed(cpu, kind, clock, group, exits)

    def whole(self) -> Measured:
        tally = self._run.tally()
        result = name_result(tally, self._tables, self.policy, ALL_CLASSES)
        return Measured(self.policy, result, tally.effects, self._walker.walked(), self._blocks.result())

    def portion(self, groups: Sequence[int], group: Group) -> Measured:
        tally = self._run.tally(groups, sites=False)
        return Measured(
            self.policy,
            name_part(tally, group, self.policy, ALL_CLASSES),
            tally.effects,
            _walked(self._split.counts()[list(groups)].sum(axis=0)),
            self._blocks.result(),
            self._blocks.shares(groups),
        )


class _Pass:
    """One pass over a trace."""

    def __init__(self, trace: Trace, policies: Sequence[Policy], grouping: Grouping | None) -> None:
        for policy in policies:
            check_policy(policy, ALL_CLASSES)
        tables = SideTables.of(trace)
        self._cpus = int(trace.scan_events().select(pl.col("cpu").max().fill_null(0)).collect().item()) + 1
        groups = 1 if grouping is None else grouping.size
        labeller = None if grouping is None else Labeller(grouping)
        self._under = [_Under(policy, tables, self._cpus, groups) for policy in policies]
        self._base = _Walker(tables, self._cpus, flush_always=True)
        self._split = _split_of(self._cpus, groups)
        self._kinds = np.zeros((groups, max(EventKind) + 1), np.int64)
        self._switches = _ProcessSwitches(self._cpus, groups)
        none = np.empty(0, np.int64)
        for columns in _pieces(trace, tables):
            cpu, kind, arg, clock, _ = columns
            group = None if labeller is None else labeller.label(cpu, kind, arg)
            self._base.feed(columns, none)
            self._count(cpu, kind, arg, group)
            if group is not None:
                self._split.feed(cpu, kind, clock, group, none)
            for under in self._under:
                under.feed(columns, group)

    def _count(self, cpu: Numbers, kind: Numbers, arg: Numbers, group: Groups | None) -> None:
        groups, kinds = self._kinds.shape
        row = kind if group is None else group.astype(np.int64) * kinds + kind
        self._kinds += np.bincount(row, minlength=groups * kinds).reshape(groups, kinds)
        self._switches.feed(cpu, kind, arg, group)

    def whole(self) -> Portion:
        """Return what there is in all of it."""
        return self._portion(
            self._base.instructions(), self._base.walked(), slice(None), [u.whole() for u in self._under]
        )

    def portion(self, groups: Sequence[int], group: Group = Group("")) -> Portion:  # noqa: B008  (a value)
        """Return what there is in some groups together."""
        counts = self._split.counts()[list(groups)].sum(axis=0)
        measured = [under.portion(groups, group) for under in self._under]
        return self._portion(int(counts[0]), _walked(counts), list(groups), measured)

    def _portion(
        self, instructions: int, walked: Walked, groups: slice | list[int], measured: list[Measured]
    ) -> Portion:
        kinds = self._kinds[groups].sum(axis=0)
        happenings = _happenings(kinds, walked)
        happenings[Occasion.PROCESS_SWITCH] = int(self._switches.times[groups].sum())
        return Portion(Base(instructions, self._cpus, happenings, walked), measured, int(kinds.sum()))


def _split_of(cpus: int, groups: int) -> Split:
    # numba takes a while to import.
    from asikit.cost._split import Split  # noqa: PLC0415

    return Split(cpus, groups)


def _walked(counts: Numbers) -> Walked:
    """Return what was counted of a part; what only the whole recording says is left out."""
    from asikit.cost._split import Share  # noqa: PLC0415

    return Walked(
        kernel_instructions=int(counts[Share.KERNEL_INSTRUCTIONS]),
        unrestricted_instructions=int(counts[Share.UNRESTRICTED_INSTRUCTIONS]),
        switches_out=int(counts[Share.SWITCHES_OUT]),
        switches_to_userspace=int(counts[Share.SWITCHES_TO_USERSPACE]),
        switches_to_kvm=int(counts[Share.SWITCHES_TO_KVM]),
        misses=(0, 0),
        before_exit=(0, 0),
        touched=(0, 0),
        round_trips=int(counts[Share.ROUND_TRIPS]),
        flushes={},
    )


def _pieces(trace: Trace, tables: SideTables) -> Iterator[Columns]:
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


def _read_only(chunk: pl.DataFrame, column: str) -> npt.NDArray[Any]:
    array = chunk[column].rechunk().to_numpy().view()
    array.flags.writeable = False
    return array


def _happenings(kinds: Numbers, walked: Walked) -> dict[Occasion, int]:
    counted = {happening: int(kinds[kind]) for happening, kind in (_ENTRIES | _OTHERS).items()}
    counted[Occasion.USER_ENTRY] = sum(counted[entry] for entry in _ENTRIES)
    counted[Occasion.KERNEL_INSTRUCTION] = walked.kernel_instructions
    return counted
