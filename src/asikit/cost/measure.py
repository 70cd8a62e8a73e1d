"""One pass over a trace: what the protocol asks for under each policy, and what is lost and found again meanwhile."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.cost._occasions import OccasionCounter
from asikit.cost.pageblocks import PageblockConversions, PageblockCounter
from asikit.mitigations import Occasion
from asikit.replay import MechanismKind, ReplayPass, ReplayResult, Selection
from asikit.replay.grouping import Group, Grouping
from asikit.trace import Region

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import numpy.typing as npt

    from asikit.cost._split import Split
    from asikit.mitigations import When
    from asikit.protocol import Effect
    from asikit.replay import By, Part, Piece, Policy, Replayed, SideTables, Subject
    from asikit.trace import Trace

    Numbers = npt.NDArray[np.int64]
    Groups = npt.NDArray[np.uint32]

__all__ = ["Base", "Measured", "Portion", "Portions", "Walked", "measure", "measure_portions"]

_PAGE_SHIFT, _LARGE_SHIFT = 12, 21
# Regions that the kernel maps with pages of 2 MiB or more (Documentation/arch/x86/x86_64/mm.rst); module text and
# vmalloc are mapped with pages of 4 KiB.
_LARGE_REGIONS = (Region.DIRECT_MAP, Region.KERNEL_IMAGE, Region.VMEMMAP)


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
    :ivar conditional: Counts of those with a condition on what came before that were asked for.
    :ivar walked: Every return taken for a flush.
    """

    instructions: int
    cpus: int
    happenings: Mapping[Occasion, int]
    walked: Walked
    conditional: Mapping[When, int] = field(default_factory=dict)

    def times(self, when: When) -> int:
        """Return how often that was."""
        return self.conditional[when] if when.first_after else self.happenings[when.occasion]


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


class _Walker:
    """The state of a walk."""

    def __init__(self, tables: SideTables, cpus: int, *, flush_always: bool) -> None:
        # numba takes a while to import.
        from asikit.cost._walk import HISTOGRAM, PER_CPU, Count, Pages, Walk, WalkState  # noqa: PLC0415

        self._flush_always = int(flush_always)
        vaddr = tables.places["vaddr"].to_numpy()
        is_large = np.isin(tables.region_of_place, [list(Region).index(region) for region in _LARGE_REGIONS])
        # Odd and even, so that a large page is never taken for a small one.
        keys = np.where(
            is_large,
            vaddr >> np.uint64(_LARGE_SHIFT) << np.uint64(1),
            vaddr >> np.uint64(_PAGE_SHIFT) << np.uint64(1) | np.uint64(1),
        )
        large = np.unique(keys, return_inverse=True)[1].astype(np.int64)
        small = np.unique(vaddr, return_inverse=True)[1].astype(np.int64)
        self._pages = Pages(large, small)
        larges, smalls = int(large.max(initial=-1)) + 1, int(small.max(initial=-1)) + 1
        self._walk = Walk(
            state=np.zeros((cpus, PER_CPU), np.int64),
            seen_large=np.zeros((cpus, 3, larges), np.int64),
            seen_small=np.zeros((cpus, 3, smalls), np.int64),
            trip_large=np.full((cpus, larges), -1, np.int64),
            trip_small=np.full((cpus, smalls), -1, np.int64),
            flush_small=np.full((cpus, smalls), -1, np.int64),
            counts=np.zeros(len(Count), np.int64),
            histogram=np.zeros(HISTOGRAM, np.int64),
        )
        self._walk.state[:, WalkState.LEFT] = -1

    def feed(self, piece: Piece, exits: Numbers) -> None:
        """Run events.

        :param exits: The rows that left the restricted address space, ascending.
        """
        from asikit.cost._walk import WalkedEvents, walk_events  # noqa: PLC0415

        events = WalkedEvents(piece.cpu, piece.kind, piece.arg, piece.clock, exits)
        walk_events(events, self._pages, self._walk, self._flush_always)

    def instructions(self) -> int:
        """Return the instructions so far."""
        from asikit.cost._walk import WalkState  # noqa: PLC0415

        return int(self._walk.state[:, WalkState.CLOCK].sum())

    def walked(self) -> Walked:
        """Return the counts; what a round trip that the recording cuts off would add is left out."""
        from asikit.cost._walk import Count  # noqa: PLC0415

        histogram = self._walk.histogram
        counts = {name: int(self._walk.counts[name]) for name in Count}
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
            flushes={pages: int(histogram[pages]) for pages in np.flatnonzero(histogram).tolist()},
        )


def measure(trace: Trace, policies: Sequence[Policy], whens: Iterable[When] = ()) -> tuple[Base, list[Measured]]:
    """Read a trace once, and count what each policy asks for.

    Memory: the side tables, a part of the events, and for each policy and CPU some 80 bytes a place.

    :param whens: The occasions with a condition that are to be counted; those without one always are.
    :raises PolicyError: A policy does not fit the recorded kernel, or contradicts itself.
    :raises ReplayError: The trace's tables contradict each other.
    :raises TraceError: A part of the trace is damaged.
    """
    whole = _Pass(trace, policies, None, whens).whole()
    return whole.base, whole.measured


def measure_portions(
    trace: Trace,
    policies: Sequence[Policy],
    selection: Selection | None,
    by: By | None,
    whens: Iterable[When] = (),
) -> Portions:
    """Read a trace once, and count what each policy asks for in all of it, in what is selected, and in its parts.

    :param whens: As for :func:`measure`.

    :raises SelectionError: The recording does not have what is selected; otherwise as :func:`measure`.
    """
    if selection is None and by is None:
        whole = _Pass(trace, policies, None, whens).whole()
        return Portions(whole, whole)
    grouping = Grouping.of(trace, selection or Selection(), by)
    read = _Pass(trace, policies, grouping, whens)
    parts: list[tuple[Group, Portion]] = []
    if by is not None:
        each = [(group, read.portion([number], group)) for number, group in enumerate(grouping.groups, start=1)]
        parts = [(group, portion) for group, portion in each if portion.events]
        parts.sort(key=lambda part: (-part[1].base.instructions, -part[1].events, part[0].name))
    return Portions(read.whole(), read.portion(grouping.selected), tuple(parts))


class _Under:
    """Counts what one policy costs besides what it asks for. A consumer of a :class:`ReplayPass`.

    :ivar walker: What each switch of address spaces loses.
    :ivar blocks: Which pageblocks change their sensitivity.
    :ivar split: In which part of the recording it falls.
    """

    def __init__(self, number: int, cpus: int) -> None:
        self._number = number
        self._cpus = cpus

    def begin(self, subject: Subject) -> None:
        policy = subject.policies[self._number]
        self.walker = _Walker(subject.tables, self._cpus, flush_always=policy.mechanism.kind is not MechanismKind.ASI)
        self.blocks = PageblockCounter.of(subject.tables, subject.sensitive[self._number])
        self.split = _split_of(self._cpus, subject.groups)

    def feed(self, piece: Piece, group: Groups | None, exits: Sequence[Numbers]) -> None:
        self.walker.feed(piece, exits[self._number])
        self.blocks.feed(piece.kind, piece.arg, group)
        if group is not None:
            self.split.feed(piece.cpu, piece.kind, piece.clock, group, exits[self._number])

    def whole(self, replayed: Replayed) -> Measured:
        blocks = self.blocks.result()
        return Measured(replayed.policy, replayed.result(), replayed.effects(), self.walker.walked(), blocks)

    def portion(self, replayed: Replayed, groups: Sequence[int], group: Group) -> Measured:
        return Measured(
            replayed.policy,
            replayed.part(groups, group),
            replayed.effects(groups),
            _walked(self.split.counts()[list(groups)].sum(axis=0)),
            self.blocks.result(),
            self.blocks.shares(groups),
        )


class _Without:
    """Counts what there is without any mitigation. A consumer of a :class:`ReplayPass`.

    :ivar walker: The whole run, every return taken for a flush.
    :ivar split: In which part of the recording it falls.
    """

    def __init__(self, cpus: int, whens: Iterable[When]) -> None:
        self._cpus = cpus
        self._whens = tuple(whens)

    def begin(self, subject: Subject) -> None:
        self.walker = _Walker(subject.tables, self._cpus, flush_always=True)
        self.split = _split_of(self._cpus, subject.groups)
        self._occasions = OccasionCounter(self._cpus, subject.groups, self._whens)

    def feed(self, piece: Piece, group: Groups | None, exits: Sequence[Numbers]) -> None:
        del exits  # of no policy
        none = np.empty(0, np.int64)
        self.walker.feed(piece, none)
        self._occasions.feed(piece, group)
        if group is not None:
            self.split.feed(piece.cpu, piece.kind, piece.clock, group, none)

    def whole(self) -> tuple[Base, int]:
        """Return the run, and how many events it has."""
        return self._base(slice(None), self.walker.instructions(), self.walker.walked())

    def portion(self, groups: Sequence[int]) -> tuple[Base, int]:
        """Return some groups of it together, and how many events they have."""
        counts = self.split.counts()[list(groups)].sum(axis=0)
        return self._base(list(groups), int(counts[0]), _walked(counts))

    def _base(self, groups: slice | list[int], instructions: int, walked: Walked) -> tuple[Base, int]:
        happenings = self._occasions.happenings(groups)
        happenings[Occasion.KERNEL_INSTRUCTION] = walked.kernel_instructions
        base = Base(instructions, self._cpus, happenings, walked, self._occasions.conditional(groups))
        return base, self._occasions.events(groups)


class _Pass:
    """One pass over a trace, in which all is counted."""

    def __init__(
        self, trace: Trace, policies: Sequence[Policy], grouping: Grouping | None, whens: Iterable[When]
    ) -> None:
        cpus = int(trace.scan_events().select(pl.col("cpu").max().fill_null(0)).collect().item()) + 1
        self._without = _Without(cpus, whens)
        self._under = [_Under(number, cpus) for number in range(len(policies))]
        self._replayed = ReplayPass(trace, policies, [self._without, *self._under], grouping=grouping).run()

    def whole(self) -> Portion:
        """Return what there is in all of it."""
        base, events = self._without.whole()
        both = zip(self._under, self._replayed, strict=True)
        return Portion(base, [under.whole(replayed) for under, replayed in both], events)

    def portion(self, groups: Sequence[int], group: Group = Group("")) -> Portion:  # noqa: B008  (a value)
        """Return what there is in some groups together."""
        base, events = self._without.portion(groups)
        both = zip(self._under, self._replayed, strict=True)
        return Portion(base, [under.portion(replayed, groups, group) for under, replayed in both], events)


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
