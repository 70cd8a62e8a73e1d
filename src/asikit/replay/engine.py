"""The compiled replay: arrays of events through the transition table."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from asikit.replay._events import ENTRY_SLOTS, EVENT_CLASS, NO_ENTRY, EventClass
from asikit.replay._loop import Answers, Counts, Events, Exits, Running, Stop, TableArrays, run_events
from asikit.replay._sites import SiteTable
from asikit.replay._steps import Stepper
from asikit.replay._tally import REASONS, EntryCounts, Tally
from asikit.replay._transitions import TransitionTable
from asikit.replay.errors import ReplayError
from asikit.replay.pieces import read_only
from asikit.trace import CPUS, EventKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from asikit.protocol import AsiClass
    from asikit.replay._steps import EventStep
    from asikit.replay.pieces import Piece
    from asikit.replay.policy import Policy
    from asikit.replay.sensitivity import Sensitive

    Bytes = npt.NDArray[np.uint8]
    Words = npt.NDArray[np.uint32]

__all__ = ["CompiledReplay"]

_NOBODY_ASKS = np.empty(0, np.int32)

_EVENT_CLASS = np.array(
    [EVENT_CLASS.get(EventKind(kind), 0) if kind else 0 for kind in range(max(EventKind) + 1)], np.uint8
)


class CompiledReplay:
    """Feed it a trace's events in order; :meth:`tally` says what came of them. All CPUs run in the recorded order."""

    def __init__(
        self,
        policy: Policy,
        classes: frozenset[AsiClass],
        sensitive: Sensitive,
        tasks: int,
        *,
        groups: int = 1,
    ) -> None:
        """Prepare.

        :param groups: How many groups are counted apart.
        """
        self._table = TransitionTable(Stepper(policy, classes))
        self._answers = Answers(sensitive.places, sensitive.ephmap_stacks, _EVENT_CLASS)
        self._running = Running(
            state=np.zeros(CPUS, np.int32),
            mask=np.tile(self._table.touch_mask[0], (CPUS, 1)),
            task=np.full(CPUS, -1, np.int64),
            entry=np.zeros(CPUS, np.int64),
            group=np.zeros(CPUS, np.int64),
            exited=np.zeros(CPUS, np.uint8),
            task_state=np.zeros(tasks, np.int32),
        )
        # Entries get numbers as they are met, as few of the slots are: no entry is 0.
        self._slots = [NO_ENTRY]
        self._counts = Counts(
            entry_number=np.full(ENTRY_SLOTS, -1, np.int32),
            hits=np.zeros((groups, self._table.capacity, len(EventClass)), np.int64),
            entries=np.zeros((groups, 3, 64), np.int64),
            ephmap=np.zeros(groups, np.int64),
        )
        self._counts.entry_number[NO_ENTRY] = 0
        self._event_counts = np.zeros(groups, np.int64)
        self._one_group = np.empty(0, np.uint32)
        self._exits = Exits(np.empty(0, np.int64), np.empty(0, np.int64), _NOBODY_ASKS)
        self._sites = SiteTable()
        self._events = 0

    def feed(
        self, piece: Piece, group: Words | None = None, transitions: npt.NDArray[np.int32] = _NOBODY_ASKS
    ) -> npt.NDArray[np.int64]:
        """Run events.

        :param group: The group that each counts in; 0 when None.
        :param transitions: As long as the piece: is filled with the number of each event's transition (:meth:`step`),
            where it has one.
        :return: The rows that left the restricted address space; the array is used again by the next call.
        :raises ReplayError: An event refers to a row that is not there.
        """
        size = piece.kind.size
        if self._exits.event.size < size:
            self._exits = Exits(np.empty(size, np.int64), np.empty(size, np.int64), _NOBODY_ASKS)
        self._exits = self._exits._replace(of_event=transitions)
        groups = self._no_groups(size) if group is None else read_only(group)
        events = Events(piece.cpu, piece.kind, piece.arg, piece.stack, groups)
        start = left = 0
        while True:
            stop, start, left, first, second = self._run(start, events, left)
            if stop == Stop.DONE:
                break
            self._resolve(stop, start, first, second)
        self._events += size
        if group is None:
            self._event_counts[0] += size
        else:
            self._event_counts += np.bincount(group, minlength=self._event_counts.size)
        if left:
            self._sites.add(events, self._exits.event[:left], self._exits.transition[:left])
        return self._exits.event[:left]

    def step(self, transition: int) -> EventStep:
        """Return what a transition leads to."""
        return self._table.steps[divmod(transition, len(EventClass))]

    def tally(self, groups: Sequence[int] | None = None, *, sites: bool = True) -> Tally:
        """Return the counts so far.

        :param groups: Of these groups together; of all when None.
        :param sites: With the sites of the exits.
        """
        chosen = slice(None) if groups is None else list(groups)
        hits, entries = self._counts.hits[chosen].sum(axis=0), self._counts.entries[chosen].sum(axis=0)
        tally = Tally(int(self._event_counts[chosen].sum()), ephmap_operations=int(self._counts.ephmap[chosen].sum()))
        tally.effects, tally.reasons = Counter(), Counter()
        for state, event in np.argwhere(hits).tolist():
            times, step = int(hits[state, event]), self._table.steps[state, event]
            tally.amended += times * step.amended
            for effect in step.effects:
                tally.effects[effect] += times
            if step.exit_reason is not None:
                tally.reasons[step.exit_reason] += times
        for slot, number in sorted(zip(self._slots, range(len(self._slots)), strict=True)):
            if entries[:, number].any():
                tally.entries[slot] = EntryCounts(*entries[:, number].tolist())
        if sites:
            tally.sites = self._sites.frame(self._reasons(), groups)
        return tally

    def _no_groups(self, size: int) -> Words:
        if self._one_group.size < size:
            self._one_group = read_only(np.zeros(size, np.uint32))
        return self._one_group[:size]

    def _run(self, start: int, events: Events, left: int) -> tuple[int, int, int, int, int]:
        known = self._table
        table = TableArrays(known.next_state, known.is_exit, known.touch_mask, known.saved, known.loaded)
        return run_events(start, events, self._answers, table, self._running, self._counts, self._exits, left)

    def _resolve(self, stop: int, event: int, first: int, second: int) -> None:
        """Fill in the table's entry that the loop stopped at."""
        match stop:
            case Stop.TRANSITION:
                self._table.find_transition(first, second)
            case Stop.LOAD:
                self._table.find_load(first, second)
            case Stop.SLOT:
                self._counts.entry_number[first] = len(self._slots)
                self._slots.append(first)
            case _:
                self._refuse(stop, self._events + event)
        self._counts = self._counts._replace(
            hits=_grown(self._counts.hits, 1, self._table.capacity),
            entries=_grown(self._counts.entries, 2, len(self._slots)),
        )

    @staticmethod
    def _refuse(stop: int, row: int) -> NoReturn:
        what = {
            Stop.BAD_PLACE: "touches a place that table places does not have",
            Stop.BAD_TASK: "switches to a task that table tasks does not have",
            Stop.BAD_KIND: "is of no known kind",
            Stop.BAD_STACK: "has a stack that table stacks does not have",
        }[Stop(stop)]
        advice = "check the trace with `asi info --verify`, or record it again"
        raise ReplayError(f"table events: row {row} {what}; {advice}")

    def _reasons(self) -> Bytes:
        """The number of the exit reason of each transition that is an exit."""
        reasons = np.zeros(self._table.capacity * len(EventClass), np.uint8)
        for (state, event), step in self._table.steps.items():
            if step.exit_reason is not None:
                reasons[state * len(EventClass) + event] = REASONS.index(step.exit_reason)
        return reasons


def _grown(array: npt.NDArray[np.int64], axis: int, wanted: int) -> npt.NDArray[np.int64]:
    """Return an array with room for so many along an axis: itself, or a larger one with its content."""
    if wanted <= array.shape[axis]:
        return array
    more: list[Any] = list(array.shape)
    more[axis] = max(wanted, 2 * array.shape[axis]) - array.shape[axis]
    return np.concatenate((array, np.zeros(more, np.int64)), axis=axis)
