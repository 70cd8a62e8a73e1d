"""Counts the occasions at which a kernel does something against vulnerabilities, also those with a condition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from asikit.mitigations import Occasion, When
from asikit.trace import EventKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import numpy.typing as npt

    from asikit.replay import Piece

    Numbers = npt.NDArray[np.int64]
    Mask = npt.NDArray[np.bool_]
    Groups = npt.NDArray[np.uint32]

__all__ = ["OccasionCounter"]

_EVENTS: Mapping[Occasion, EventKind] = {
    Occasion.SYSCALL_ENTRY: EventKind.ENTRY_SYSCALL,
    Occasion.EXCEPTION_ENTRY: EventKind.ENTRY_EXCEPTION,
    Occasion.INTERRUPT_ENTRY: EventKind.ENTRY_INTERRUPT,
    Occasion.NMI_ENTRY: EventKind.ENTRY_NMI,
    Occasion.USER_RETURN: EventKind.RETURN_USER,
    Occasion.VM_EXIT: EventKind.VM_EXIT,
    Occasion.VM_ENTRY: EventKind.VM_ENTRY,
    Occasion.NESTED_INTERRUPT: EventKind.NESTED_INTERRUPT,
    Occasion.TASK_SWITCH: EventKind.TASK_SWITCH,
    Occasion.MM_SWITCH: EventKind.MM_SWITCH,
}
_KINDS = max(EventKind) + 1


class OccasionCounter:
    """Feed it a trace's events in order, with the group of each.

    An occasion counts for the group of its own event, whatever group set its mark.
    """

    def __init__(self, cpus: int, groups: int, whens: Iterable[When]) -> None:
        """Prepare.

        :param whens: The conditions that are to be counted; those without one always are.
        """
        self._groups = groups
        self._kinds = np.zeros((groups, _KINDS), np.int64)
        self._to_task = _Marks(cpus)
        self._process_switches = np.zeros(groups, np.int64)
        conditions = dict.fromkeys(when for when in whens if when.first_after)
        self._conditional = {when: (_Marks(cpus), np.zeros(groups, np.int64)) for when in conditions}

    def feed(self, piece: Piece, group: Groups | None = None) -> None:
        """Count in some more events.

        :param group: Of each event; None if there is one only.
        """
        row = piece.kind if group is None else group.astype(np.int64) * _KINDS + piece.kind
        self._kinds += np.bincount(row, minlength=self._kinds.size).reshape(self._kinds.shape)
        switches = self._switches(piece)
        self._count(self._process_switches, switches, group)
        for when, (marks, times) in self._conditional.items():
            sets, tests = (_mask(piece, occasions, switches) for occasions in (when.first_after, (when.occasion,)))
            self._count(times, marks.found(piece, sets, tests), group)

    def happenings(self, groups: slice | list[int]) -> dict[Occasion, int]:
        """Return how often each occasion was; not the kernel's instructions, which are no event."""
        kinds = self._kinds[groups].sum(axis=0)
        counted = {occasion: int(kinds[kind]) for occasion, kind in _EVENTS.items()}
        counted[Occasion.USER_ENTRY] = sum(counted[part] for part in Occasion.USER_ENTRY.parts)
        counted[Occasion.PROCESS_SWITCH] = int(self._process_switches[groups].sum())
        return counted

    def conditional(self, groups: slice | list[int]) -> dict[When, int]:
        """Return how often each condition was met."""
        return {when: int(times[groups].sum()) for when, (_, times) in self._conditional.items()}

    def events(self, groups: slice | list[int]) -> int:
        """Return how many events there were."""
        return int(self._kinds[groups].sum())

    def _switches(self, piece: Piece) -> Numbers:
        """Return the rows of context switches that change the mm: MM_SWITCH first after TASK_SWITCH.

        No context switch changes to init_mm: a kernel thread keeps the mm that it finds.
        """
        is_task, is_mm = (piece.kind == kind for kind in (EventKind.TASK_SWITCH, EventKind.MM_SWITCH))
        rows = self._to_task.found(piece, is_task, is_mm)
        switches: Numbers = rows[piece.arg[rows] != 0]
        return switches

    @staticmethod
    def _count(times: Numbers, rows: Numbers, group: Groups | None) -> None:
        np.add.at(times, 0 if group is None else group[rows], rows.size if group is None else 1)


class _Marks:
    """A mark on each CPU, which some events set, and others test and clear."""

    def __init__(self, cpus: int) -> None:
        self._set = np.zeros(cpus, np.bool_)

    def found(self, piece: Piece, sets: Mask, tests: Mask) -> Numbers:
        """Return the rows that found the mark set.

        :param sets: Which rows set it; no row does both.
        """
        at = np.flatnonzero(sets | tests)
        found = [np.empty(0, np.int64)]
        for cpu in np.unique(piece.cpu[at]).tolist():
            own = at[piece.cpu[at] == cpu]
            before = np.concatenate(([self._set[cpu]], sets[own]))
            found.append(own[tests[own] & before[:-1]])
            self._set[cpu] = before[-1]
        return np.concatenate(found)


def _mask(piece: Piece, occasions: Iterable[Occasion], switches: Numbers) -> Mask:
    parts = {part for occasion in occasions for part in occasion.parts}
    mask = np.isin(piece.kind, [int(_EVENTS[part]) for part in parts if part in _EVENTS])
    if Occasion.PROCESS_SWITCH in parts:
        mask[switches] = True
    return mask
