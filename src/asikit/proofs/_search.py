"""The loops of the exploration, compiled. Imported only when something is explored: importing numba takes a while.

A state is one number of 63 bits: contents of the structures, shared bits as the first thread sees them, and a number
for each thread, which stands for all that is the thread's own. What a thread may do, and what it means for the
structures, is looked up in a row that `asikit.proofs._table` filled from the model; where there is none yet, the state
is put off.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asikit.compiled import jit
from asikit.threat import FOLDED

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Arrays", "Shape", "enter", "expand", "mark_waiting", "settle_stuck"]

# Columns of `Arrays.moves`.
TO, SHARED, CLEARS, ADDS, FLAGS = range(5)
FOLDS, OWED = 1, 2
# Columns of `Arrays.rows`.
FIRST, COUNT, ROW_ADDS, ROW_FORBIDS, ROW_FLAGS = range(5)
LEAKS, SPINS, BROKEN = 1, 2, 4
COLUMNS = 5
_FOLDED = int(FOLDED)
# What is counted.
STATES, TRANSITIONS, LEAK, FIRST_BROKEN, COUNTERS = range(5)
MOST_MOVES = 128
"""More than a state has moves: room that is kept before each."""
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: Fibonacci hashing


class Shape(NamedTuple):
    """What is the same for a whole exploration.

    :ivar threads: Hardware threads.
    :ivar bits: The width of the structures' contents.
    :ivar id_bits: The width of a thread's number.
    :ivar other: The mask of `Party.OTHER` in all structures.
    :ivar symmetric: States that differ only in which thread is the first are one.
    """

    threads: int
    bits: int
    id_bits: int
    other: int
    symmetric: bool


class Arrays(NamedTuple):
    """The tables and the states.

    :ivar row_of: By thread number and shared bits: the row, -1 if there is none, -2 if it was asked for.
    :ivar rows: What may happen to a thread, and what it means for the structures.
    :ivar moves: The moves of all rows.
    :ivar states: The states, in the order in which they were found.
    :ivar parents: The state from which each was found first.
    :ivar slots: Hash table of the states' numbers, -1 where empty.
    """

    row_of: Array
    rows: Array
    moves: Array
    states: Array
    parents: Array
    slots: Array


@jit
def _swap(shared: int) -> int:
    boxes, behind = shared & 0x3F, shared >> 6
    return (boxes >> 3) | ((boxes & 7) << 3) | ((behind >> 1) | ((behind & 1) << 1)) << 6


@jit
def _pack(contents: int, shared: int, ids: tuple[int, int], shape: Shape) -> int:
    at = shape.bits + 8
    return contents | (shared << shape.bits) | (ids[0] << at) | (ids[1] << (at + shape.id_bits))


@jit
def _canonical(contents: int, shared: int, ids: tuple[int, int], shape: Shape) -> int:
    """Pack a state; of two that differ only in which thread is called the first, always the same one."""
    key = _pack(contents, shared, ids, shape)
    if shape.symmetric:
        other = _pack(contents, _swap(shared), (ids[1], ids[0]), shape)
        if other < key:
            return other
    return key


@jit
def _unpack(key: int, shape: Shape) -> tuple[int, int, int, int]:
    low, ids, at = (1 << shape.bits) - 1, (1 << shape.id_bits) - 1, shape.bits + 8
    return key & low, (key >> shape.bits) & 0xFF, (key >> at) & ids, key >> (at + shape.id_bits)


@jit
def _slot(key: int, slots: Array, states: Array) -> np.int64:
    """Return where a state is in the hash table, or where it belongs."""
    mask = np.int64(len(slots) - 1)
    mixed = ((np.uint64(key) ^ np.uint64(key >> 29)) * _MIX) >> np.uint64(24)
    slot = np.int64(mixed) & mask
    while slots[slot] >= 0 and states[slots[slot]] != key:
        slot = (slot + np.int64(1)) & mask
    return slot


@jit
def enter(count: int, states: Array, slots: Array) -> None:
    """Enter the first states into an empty hash table."""
    for index in range(count):
        slots[_slot(states[index], slots, states)] = index


@jit
def _rows_of(key: int, arrays: Arrays, shape: Shape) -> tuple[int, int]:
    """Return the row of each thread; with one thread, the first's twice."""
    _, shared, first, second = _unpack(key, shape)
    row = arrays.row_of[first, shared]
    return row, (arrays.row_of[second, _swap(shared)] if shape.threads > 1 else row)


@jit
def _successor(key: int, mover: int, move: Array, others: int, shape: Shape) -> int:
    """Return the state that one thread's move leads to; `others` is what the other thread brings in at once again."""
    contents, _, first, second = _unpack(key, shape)
    contents = (contents & ~move[CLEARS]) | others
    if move[FLAGS] & FOLDS:
        stays = contents & ~(shape.other * _FOLDED)
        contents = stays | (((contents >> 1) | (contents >> 2)) & shape.other)
    contents |= move[ADDS]
    if mover == 0:
        return _canonical(contents, move[SHARED], (move[TO], second), shape)
    return _canonical(contents, _swap(move[SHARED]), (first, move[TO]), shape)


@jit
def _ask(key: int, arrays: Arrays, shape: Shape, wanted: Array, asked: int) -> int:
    """Note which rows of a state are wanted, once each, and return how many are noted."""
    _, shared, first, second = _unpack(key, shape)
    for who in range(shape.threads):
        number, seen = (first, shared) if who == 0 else (second, _swap(shared))
        if arrays.row_of[number, seen] == -1:
            arrays.row_of[number, seen] = -2
            wanted[asked, 0], wanted[asked, 1] = number, seen
            asked += 1
    return asked


@jit
def expand(  # noqa: PLR0917  (one loop, compiled as one function)
    todo: Array, arrays: Arrays, counters: Array, wanted: Array, put_off: Array, shape: Shape
) -> tuple[int, int, int]:
    """Visit the states of `todo` and enter what they lead to.

    Returns how many were looked at, how many were put off, and how many rows are wanted (pairs in `wanted`). Stops at
    a leak, when the arrays are full, and when too many rows are wanted.
    """
    off, asked = 0, 0
    for done in range(len(todo)):
        if counters[STATES] + MOST_MOVES >= len(arrays.states) or asked + 2 > len(wanted):
            return done, off, asked
        index = todo[done]
        key = arrays.states[index]
        rows = _rows_of(key, arrays, shape)
        if rows[0] < 0 or rows[1] < 0:
            asked = _ask(key, arrays, shape, wanted, asked)
            put_off[off] = index
            off += 1
            continue
        flags = arrays.rows[rows[0], ROW_FLAGS], arrays.rows[rows[1], ROW_FLAGS]
        forbids = arrays.rows[rows[0], ROW_FORBIDS] | arrays.rows[rows[1], ROW_FORBIDS]
        if (flags[0] | flags[1]) & LEAKS or key & ((1 << shape.bits) - 1) & forbids:
            counters[LEAK] = index
            return done, off, asked
        if (flags[0] | flags[1]) & BROKEN and counters[FIRST_BROKEN] < 0:
            counters[FIRST_BROKEN] = index
        for mover in range(shape.threads):
            others = arrays.rows[rows[1 - mover], ROW_ADDS] if shape.threads > 1 else 0
            first = arrays.rows[rows[mover], FIRST]
            for place in range(first, first + arrays.rows[rows[mover], COUNT]):
                after = _successor(key, mover, arrays.moves[place], others, shape)
                counters[TRANSITIONS] += 1
                slot = _slot(after, arrays.slots, arrays.states)
                if arrays.slots[slot] < 0:
                    new = counters[STATES]
                    arrays.states[new], arrays.parents[new], arrays.slots[slot] = after, index, new
                    counters[STATES] = new + 1
    return len(todo), off, asked


@jit
def mark_waiting(waiting: Array, arrays: Arrays, shape: Shape) -> None:
    """Set `waiting` (one flag a state, zero on entry) where a thread waits.

    A thread that broke a rule has stopped the machine, and holds up nobody.
    """
    for index in range(len(waiting)):
        rows = _rows_of(arrays.states[index], arrays, shape)
        flags = arrays.rows[rows[0], ROW_FLAGS] | arrays.rows[rows[1], ROW_FLAGS]
        if flags & SPINS and not flags & BROKEN:
            waiting[index] = 1


@jit
def settle_stuck(stuck: Array, todo: Array, arrays: Arrays, shape: Shape) -> int:
    """Clear `stuck`, the flags of `mark_waiting`, where owed moves end the waiting; say how many stay.

    `todo` are the states that wait, in their order; it is used up.
    """
    left = len(todo)
    while True:
        before = left
        for place in range(before - 1, -1, -1):
            if _escapes(todo[place], stuck, arrays, shape):
                stuck[todo[place]] = 0
                left -= 1
        if left == before or left == 0:  # noqa: PLR1714 - compiles to comparisons
            return left
        kept = 0
        for place in range(before):
            if stuck[todo[place]]:
                todo[kept] = todo[place]
                kept += 1


@jit
def _escapes(index: int, stuck: Array, arrays: Arrays, shape: Shape) -> bool:
    """Whether an owed move leads out of the stuck states."""
    key = arrays.states[index]
    rows = _rows_of(key, arrays, shape)
    for mover in range(shape.threads):
        others = arrays.rows[rows[1 - mover], ROW_ADDS] if shape.threads > 1 else 0
        first = arrays.rows[rows[mover], FIRST]
        for place in range(first, first + arrays.rows[rows[mover], COUNT]):
            if arrays.moves[place, FLAGS] & OWED:
                after = _successor(key, mover, arrays.moves[place], others, shape)
                found = arrays.slots[_slot(after, arrays.slots, arrays.states)]
                if not stuck[found]:
                    return True
    return False
