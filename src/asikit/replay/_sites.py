"""How often each site left the restricted address space: a hash table, counted by compiled code.

Counting is a loop of its own, as the loop over the events runs at half the speed with a hash table inside it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import polars as pl

from asikit.compiled import jit
from asikit.replay._tally import NO_PLACE, sites_frame
from asikit.trace import TOUCH_KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.replay._loop import Events

__all__ = ["SiteTable"]

Bytes = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint32]
Rows = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.uint64]

_WHERE, _HOW, _EXITS = 0, 1, 2
# Of how: the kind of event; above it the transition, and above that the group.
_KIND_BITS, _KINDS = np.uint64(8), np.uint64(0xFF)
_GROUP_SHIFT, _TRANSITIONS = np.uint64(32), np.uint64(0xFF_FFFF)
_NOWHERE = np.uint64(NO_PLACE)
_FIRST_TOUCH, _LAST_TOUCH = int(min(TOUCH_KINDS)), int(max(TOUCH_KINDS))
_HALF, _ONE = np.uint64(32), np.uint64(1)
_MIX = np.uint64(0x9E37_79B9_7F4A_7C15)  # 2^64 divided by the golden ratio: spreads neighbours over the table


class SiteTable:
    """Exits by site. Memory grows with the number of sites, not with that of exits."""

    def __init__(self, capacity: int = 1 << 14) -> None:
        """Begin an empty table.

        :param capacity: Slots to begin with, a power of two.
        """
        # A row is where, how, exits: one cache line. The fourth column makes it so.
        self._table = np.zeros((capacity, 4), np.uint64)
        self._used = 0

    def add(self, events: Events, exits: Rows, transitions: Rows) -> None:
        """Count exits.

        :param exits: The rows of the events that were exits.
        :param transitions: The number of the transition at each.
        """
        where, how = np.empty(exits.size, np.uint64), np.empty(exits.size, np.uint64)
        _identify(events.kind, events.arg, events.stack, events.group, exits, transitions, where, how)
        done = 0
        while True:
            done, self._used = _count(where, how, done, self._table, self._used)
            if done == exits.size:
                return
            larger = np.zeros((2 * self._table.shape[0], 4), np.uint64)
            _move(self._table, larger)
            self._table = larger

    def frame(self, reasons: Bytes, groups: Iterable[int] | None = None) -> pl.DataFrame:
        """Return the sites as :class:`asikit.replay._tally.Tally` has them.

        :param reasons: The number of the exit reason of each transition.
        :param groups: Those whose exits count; all when None.
        """
        taken = self._table[self._table[:, _EXITS] != 0]
        if groups is not None:
            taken = taken[np.isin(taken[:, _HOW] >> _GROUP_SHIFT, np.array(list(groups), np.uint64))]
        where, how = taken[:, _WHERE], taken[:, _HOW]
        columns = {
            "kind": (how & _KINDS).astype(np.uint8),
            "place": (where >> _HALF).astype(np.uint32),
            "stack": where.astype(np.uint32),
            "reason": reasons[how >> _KIND_BITS & _TRANSITIONS],
            "exits": taken[:, _EXITS].astype(np.uint32),
        }
        return sites_frame([pl.DataFrame(columns)])  # transitions of one reason become one


@jit
def _identify(  # noqa: PLR0917  (columns)
    kind: Bytes,
    arg: Words,
    stack: Words,
    groups: Words,
    events: Rows,
    transitions: Rows,
    where: Numbers,
    how: Numbers,
) -> None:
    """Fill in where and how of exits. Apart from the counting, so that the processor can fetch many rows at once."""
    for i in range(events.size):
        event = np.uintp(events[i])
        place = np.uint64(arg[event]) if _FIRST_TOUCH <= kind[event] <= _LAST_TOUCH else _NOWHERE
        where[i] = place << _HALF | np.uint64(stack[event])
        how[i] = (
            np.uint64(groups[event]) << _GROUP_SHIFT | np.uint64(transitions[i]) << _KIND_BITS | np.uint64(kind[event])
        )


@jit
def _count(where: Numbers, how: Numbers, start: int, table: Numbers, used: int) -> tuple[int, int]:
    """Count exits from ``start`` on, until the table is half full; return where it stopped, and the rows used."""
    for i in range(start, where.size):
        if 2 * used >= table.shape[0]:
            return i, used
        row = table[_row(where[i], how[i], table)]
        used += row[_EXITS] == 0
        row[_WHERE], row[_HOW] = where[i], how[i]
        row[_EXITS] += _ONE
    return where.size, used


@jit
def _move(table: Numbers, larger: Numbers) -> None:
    """Copy a table into a larger one."""
    for old in table:
        if old[_EXITS] != 0:
            row = _row(old[_WHERE], old[_HOW], larger)
            larger[row, _WHERE], larger[row, _HOW], larger[row, _EXITS] = old[_WHERE], old[_HOW], old[_EXITS]


@jit
def _row(where: np.uint64, how: np.uint64, table: Numbers) -> np.uint64:
    """Return a site's row, or the empty one that it may take."""
    mask = np.uint64(table.shape[0]) - _ONE
    mixed = (where ^ how * _MIX) * _MIX
    row = (mixed ^ mixed >> _HALF) & mask
    while table[row, _EXITS] != 0 and (table[row, _WHERE] != where or table[row, _HOW] != how):
        row = (row + _ONE) & mask
    return row
