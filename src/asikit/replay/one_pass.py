"""One pass over a trace's events: through the protocol under each policy, and past whoever else reads them.

A *consumer* counts what a replay does not: what each switch of address spaces loses, which allocations there were. It
is told before the first event what the pass is over, and then sees every event once, with the exits of each policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from asikit.protocol import AsiClass
from asikit.replay._steps import check_policy
from asikit.replay._tables import SideTables
from asikit.replay.causes import name_part, name_result
from asikit.replay.errors import ReplayError
from asikit.replay.grouping import Labeller
from asikit.replay.pieces import read_ahead
from asikit.replay.sensitivity import apply_policy
from asikit.trace import TOUCH_KINDS, EventKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    from asikit.protocol import Effect
    from asikit.replay._steps import EventStep
    from asikit.replay.engine import CompiledReplay
    from asikit.replay.grouping import Group, Grouping
    from asikit.replay.pieces import Piece
    from asikit.replay.policy import Policy
    from asikit.replay.result import Part, ReplayResult
    from asikit.replay.sensitivity import Sensitive
    from asikit.trace import Trace

    Words = npt.NDArray[np.uint32]
    Rows = npt.NDArray[np.int64]
    Transitions = npt.NDArray[np.int32]

__all__ = ["ALL_CLASSES", "Consumer", "Follower", "ReplayPass", "Replayed", "Subject"]

ALL_CLASSES = frozenset({AsiClass.USERSPACE, AsiClass.KVM})
"""The classes that the published patches have."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a pass is over.

    :ivar sensitive: What each policy says of the trace's memory, in their order.
    :ivar groups: How many groups are counted apart.
    """

    tables: SideTables
    policies: tuple[Policy, ...]
    sensitive: tuple[Sensitive, ...]
    groups: int


class Consumer(Protocol):
    """Who reads the events along with the replays."""

    def begin(self, subject: Subject) -> None:
        """Prepare for the events."""

    def feed(self, piece: Piece, group: Words | None, exits: Sequence[Rows]) -> None:
        """Read the next events. Whatever a touch or a kind of event refers to is there.

        :param group: The group that each counts in; None if nothing is divided.
        :param exits: Under each policy the rows of this piece that left the restricted address space, ascending; the
            arrays are used again for the next piece.
        """


class Follower(Protocol):
    """Who follows each policy's replay, event by event."""

    def begin(self, subject: Subject) -> None:
        """Prepare for the events."""

    def follow(self, piece: Piece, transitions: Sequence[Transitions]) -> None:
        """Read the next events.

        :param transitions: Under each policy: the number of each event's transition (:meth:`Replayed.step`), -1 where
            it has none. The arrays are used again for the next piece.
        """


@dataclass(frozen=True, slots=True)
class Replayed:
    """What one policy's replay has counted, of the whole trace or of some of its groups."""

    policy: Policy
    classes: frozenset[AsiClass]
    tables: SideTables
    _run: CompiledReplay

    def result(self, groups: Sequence[int] | None = None) -> ReplayResult:
        """Return the counts with names, and the causes of the exits.

        :param groups: Of these groups together; of all when None.
        :raises ReplayError: An exit refers to a stack that is not there.
        """
        return name_result(self._run.tally(groups), self.tables, self.policy, self.classes)

    def part(self, groups: Sequence[int], group: Group) -> Part:
        """Return the counts of some groups together.

        :param group: What they are called.
        """
        return name_part(self._run.tally(groups, sites=False), group, self.policy, self.classes)

    def step(self, transition: int) -> EventStep:
        """Return what a transition leads to: the state after it, the effects asked for, the reason if it is an exit."""
        return self._run.step(transition)

    def effects(self, groups: Sequence[int] | None = None) -> Mapping[Effect, int]:
        """Return how often the protocol asked for each effect."""
        return self._run.tally(groups, sites=False).effects


class ReplayPass:
    """A trace, the policies that it is replayed under, and who reads its events along with that."""

    def __init__(
        self,
        trace: Trace,
        policies: Sequence[Policy],
        consumers: Sequence[Consumer] = (),
        *,
        followers: Sequence[Follower] = (),
        classes: frozenset[AsiClass] = ALL_CLASSES,
        grouping: Grouping | None = None,
    ) -> None:
        """Prepare; nothing is read yet.

        :param followers: They are told each event's transition; a replay without any is faster.
        :param classes: The classes of untrusted domains to protect from.
        :param grouping: The groups that are counted apart.
        :raises PolicyError: A policy contradicts itself.
        """
        for policy in policies:
            check_policy(policy, classes)
        self._trace = trace
        self._policies = tuple(policies)
        self._consumers = consumers
        self._followers = followers
        self._classes = classes
        self._grouping = grouping

    def run(self) -> list[Replayed]:
        """Read the trace once, and return what each policy's replay has counted, in their order.

        Memory: the side tables, three parts of the events at a time, and what the consumers keep.

        :raises PolicyError: A policy does not fit the recorded kernel.
        :raises ReplayError: The trace's tables contradict each other.
        :raises TraceError: A part of the trace is damaged.
        """
        # numba takes a while to import, so only what runs a replay pays for it.
        from asikit.replay.engine import CompiledReplay  # noqa: PLC0415

        labeller = None if self._grouping is None else Labeller(self._grouping)
        clock = bool(self._consumers or self._followers)
        with read_ahead(self._trace, clock=clock) as pieces:  # while the side tables are read
            subject = self._subject()
            runs = [
                CompiledReplay(policy, self._classes, sensitive, subject.tables.tasks.height, groups=subject.groups)
                for policy, sensitive in zip(subject.policies, subject.sensitive, strict=True)
            ]
            for consumer in self._consumers:
                consumer.begin(subject)
            for follower in self._followers:
                follower.begin(subject)
            for piece in pieces:
                group = None if labeller is None else labeller.label(piece.cpu, piece.kind, piece.arg)
                self._feed(runs, subject.tables, piece, group)
        return [
            Replayed(policy, self._classes, subject.tables, run)
            for policy, run in zip(self._policies, runs, strict=True)
        ]

    def _subject(self) -> Subject:
        tables = SideTables.of(self._trace)
        sensitive = tuple(apply_policy(policy, tables) for policy in self._policies)
        return Subject(tables, self._policies, sensitive, 1 if self._grouping is None else self._grouping.size)

    def _feed(self, runs: Sequence[CompiledReplay], tables: SideTables, piece: Piece, group: Words | None) -> None:
        if self._consumers or self._followers:
            _check(piece, tables)
        if self._followers:
            transitions = [np.full(piece.kind.size, -1, np.int32) for _ in runs]
            exits = [run.feed(piece, group, own) for run, own in zip(runs, transitions, strict=True)]
            for follower in self._followers:
                follower.follow(piece, transitions)
        else:
            exits = [run.feed(piece, group) for run in runs]
        for consumer in self._consumers:
            consumer.feed(piece, group, exits)


def _check(piece: Piece, tables: SideTables) -> None:
    """Refuse what consumers would follow to somebody else's row; the replay itself refuses what it follows."""
    if piece.kind.size and piece.kind.max() > max(EventKind):
        raise ReplayError("table events: a row is of no known kind; check the trace with `asi info --verify`")
    touched = piece.arg[np.isin(piece.kind, [int(touch) for touch in TOUCH_KINDS])]
    if touched.size and touched.max() >= tables.places.height:
        raise ReplayError(
            f"table events: a touch refers to place {touched.max()} of {tables.places.height}; "
            "check the trace with `asi info --verify`, or record it again"
        )
