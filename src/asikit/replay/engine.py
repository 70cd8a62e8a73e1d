"""The compiled replay: arrays of events through the transition table."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import numpy as np

from asikit.replay._compiled import Stop, run_events
from asikit.replay._events import ENTRY_SLOTS, EVENT_CLASS, NO_ENTRY, EventClass
from asikit.replay._sites import SiteTable
from asikit.replay._steps import Stepper
from asikit.replay._tally import REASONS, EntryCounts, Tally
from asikit.replay._transitions import TransitionTable
from asikit.replay.errors import ReplayError
from asikit.replay.policy import ACCESSES
from asikit.trace import EventKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from asikit.protocol import AsiClass
    from asikit.replay.policy import Policy
    from asikit.replay.sensitivity import Sensitive

    Bytes = npt.NDArray[np.uint8]
    Words = npt.NDArray[np.uint32]
    Columns = tuple[Bytes, Bytes, Words, Words]

__all__ = ["CompiledReplay"]

_Number = TypeVar("_Number", np.uint8, np.uint32)

_CPUS = 256

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
        self._sensitive = sensitive
        self._cpu_state = np.zeros(_CPUS, np.int32)
        self._cpu_mask = np.zeros((_CPUS, len(ACCESSES)), np.uint8)
        self._cpu_mask[:] = self._table.touch_mask[0]
        self._cpu_task = np.full(_CPUS, -1, np.int64)
        self._cpu_entry = np.zeros(_CPUS, np.int64)
        self._cpu_group = np.zeros(_CPUS, np.int64)
        self._cpu_exited = np.zeros(_CPUS, np.uint8)
        self._task_state = np.zeros(tasks, np.int32)
        # Entries get numbers as they are met, as few of the slots are: no entry is 0.
        self._slots = [NO_ENTRY]
        self._entry_number = np.full(ENTRY_SLOTS, -1, np.int32)
        self._entry_number[NO_ENTRY] = 0
        self._hits = np.zeros((groups, self._table.capacity, len(EventClass)), np.int64)
        self._entry_counts = np.zeros((groups, 3, 64), np.int64)
        self._ephmap_counts = np.zeros(groups, np.int64)
        self._event_counts = np.zeros(groups, np.int64)
        self._one_group = np.empty(0, np.uint32)
        self._exit_event = np.empty(0, np.int64)
        self._exit_transition = np.empty(0, np.int64)
        self._sites = SiteTable()
        self._events = 0

    def feed(
        self, cpu: Bytes, kind: Bytes, arg: Words, stack: Words, group: Words | None = None
    ) -> npt.NDArray[np.int64]:
        """Run events: arrays of equal length.

        :param group: The group that each counts in; 0 when None.
        :return: The rows that left the restricted address space; the array is used again by the next call.
        :raises ReplayError: An event refers to a row that is not there.
        """
        columns = (_read_only(cpu), _read_only(kind), _read_only(arg), _read_only(stack))
        if self._exit_event.size < kind.size:
            self._exit_event = np.empty(kind.size, np.int64)
            self._exit_transition = np.empty(kind.size, np.int64)
        groups = self._no_groups(kind.size) if group is None else _read_only(group)
        start = exits = 0
        while True:
            stop, start, exits, first, second = self._run(start, columns, groups, exits)
            if stop == Stop.DONE:
                break
            self._resolve(stop, start, first, second)
        self._events += kind.size
        if group is None:
            self._event_counts[0] += kind.size
        else:
            self._event_counts += np.bincount(group, minlength=self._event_counts.size)
        if exits:
            self._sites.add(columns, groups, self._exit_event[:exits], self._exit_transition[:exits])
        return self._exit_event[:exits]

    def tally(self, groups: Sequence[int] | None = None, *, sites: bool = True) -> Tally:
        """Return the counts so far.

        :param groups: Of these groups together; of all when None.
        :param sites: With the sites of the exits.
        """
        chosen = slice(None) if groups is None else list(groups)
        hits, entries = self._hits[chosen].sum(axis=0), self._entry_counts[chosen].sum(axis=0)
        tally = Tally(int(self._event_counts[chosen].sum()), ephmap_operations=int(self._ephmap_counts[chosen].sum()))
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
            self._one_group = _read_only(np.zeros(size, np.uint32))
        return self._one_group[:size]

    def _run(self, start: int, columns: Columns, groups: Words, exits: int) -> tuple[int, int, int, int, int]:
        table = self._table
        return run_events(
            start,
            *columns,
            groups,
            self._sensitive.places,
            self._sensitive.ephmap_stacks,
            _EVENT_CLASS,
            table.next_state,
            table.is_exit,
            table.touch_mask,
            table.saved,
            table.loaded,
            self._cpu_state,
            self._cpu_mask,
            self._cpu_task,
            self._cpu_entry,
            self._cpu_group,
            self._cpu_exited,
            self._entry_number,
            self._task_state,
            self._hits,
            self._entry_counts,
            self._ephmap_counts,
            self._exit_event,
            self._exit_transition,
            exits,
        )

    def _resolve(self, stop: int, event: int, first: int, second: int) -> None:
        """Fill in the table's entry that the loop stopped at."""
        match stop:
            case Stop.TRANSITION:
                self._table.find_transition(first, second)
            case Stop.LOAD:
                self._table.find_load(first, second)
            case Stop.SLOT:
                self._entry_number[first] = len(self._slots)
                self._slots.append(first)
            case _:
                self._refuse(stop, self._events + event)
        self._hits = _grown(self._hits, 1, self._table.capacity)
        self._entry_counts = _grown(self._entry_counts, 2, len(self._slots))

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


def _read_only(array: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
    """Return a read-only view, as zero-copy columns are, so that the loop is compiled for one type only."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view
