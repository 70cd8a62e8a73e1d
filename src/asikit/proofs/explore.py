"""Exploration: every reachable state of a finite instance, breadth first, until a leak or the end.

>>> from asikit.proofs import World
>>> from asikit.proofs.explore import explore
>>> from asikit.protocol import Protocol, ProtocolConfig
>>> explore(World(Protocol(ProtocolConfig()))).leak is None
True
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asikit.proofs import _search
from asikit.proofs._quotient import Quotient
from asikit.proofs._table import STATE_BITS, Model, MoveTable
from asikit.proofs.errors import TooLargeError
from asikit.proofs.threads import SHARED_BITS, swapped

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from asikit.proofs.threads import Move

    Array = npt.NDArray[Any]

STATE_LIMIT = 200_000_000
"""States beyond which an exploration gives up. Each takes 28 bytes, and the arrays double: up to 7 GiB."""
_FIRST_ROOM = 1 << 16
_WANTED_AT_ONCE = 1 << 16


class Happened(NamedTuple):
    """One step of a path: what a thread (0 or 1) did, and the core's structures before and after."""

    thread: int
    move: Move
    contents_before: int
    contents: int


@dataclass(frozen=True, slots=True)
class Path:
    """The shortest way to a state.

    :ivar steps: From the start.
    :ivar threads: What the threads are at its end.
    :ivar shared: The shared bits at its end, as the first thread sees them.
    :ivar contents: What the core's structures hold at its end.
    """

    steps: tuple[Happened, ...]
    threads: tuple[Any, ...]
    shared: int
    contents: int


@dataclass(frozen=True, slots=True)
class Explored:
    """The result of an exploration.

    :ivar states: Different states that were reached.
    :ivar transitions: Steps from one to another that were followed.
    :ivar complete: Nothing reachable was left out; false when it stopped at a leak.
    :ivar leak: The shortest way to a state in which the attacker learns a secret, if there is one.
    :ivar broken: The shortest way to a state in which a rule of the API is broken or a fault's retry faults again.
    :ivar stuck: The shortest way to a state from which a waiting thread waits for ever.
    :ivar places: Different states of a thread alone.
    """

    states: int
    transitions: int
    complete: bool
    leak: Path | None
    broken: Path | None
    stuck: Path | None
    places: int


def explore(
    model: Model,
    *,
    reduced: bool | None = None,
    limit: int = STATE_LIMIT,
    progress: Callable[[int], None] | None = None,
) -> Explored:
    """Explore a model to its end, or to the first leak.

    :param reduced: Count states as one that differ only in which thread is the first, or in what makes no difference to
        what can happen (`asikit.proofs._quotient`); by default with two threads. Neither changes what is found, nor how
        long the way to it is.
    :param limit: The most states.
    :param progress: Called now and then with the number of states so far.
    :raises TooLargeError: There are more states than `limit`, or more than can be numbered.
    """
    search = _Exploration(model, reduced=model.threads > 1 if reduced is None else reduced, limit=limit)
    return search.run(progress or (lambda _: None))


class _Exploration:
    """The arrays of one exploration."""

    def __init__(self, model: Model, *, reduced: bool, limit: int) -> None:
        self.table = _reduced(MoveTable(model)) if reduced else MoveTable(model)
        self.model = model
        self.limit = limit
        room = STATE_BITS - SHARED_BITS - model.layout.bits
        self.shape = _search.Shape(
            threads=model.threads,
            bits=model.layout.bits,
            id_bits=room // model.threads,
            other=model.layout.other,
            symmetric=reduced and model.threads > 1,
        )
        self.states: Array = np.zeros(_FIRST_ROOM, dtype=np.int64)
        self.parents: Array = np.full(_FIRST_ROOM, -1, dtype=np.int32)
        self.slots: Array = np.full(2 * _FIRST_ROOM, -1, dtype=np.int32)
        self.counters: Array = np.zeros(_search.COUNTERS, dtype=np.int64)
        self.counters[[_search.LEAK, _search.FIRST_BROKEN]] = -1

    def run(self, progress: Callable[[int], None]) -> Explored:
        """Explore level by level."""
        contents, shared, number = self.table.start()
        self.states[0] = self._pack(contents, shared, number, number if self.model.threads > 1 else 0)
        self.counters[_search.STATES] = 1
        _search.enter(1, self.states, self.slots)
        done = 0
        while done < self.count and not self.leaks:
            level = np.arange(done, self.count, dtype=np.int64)
            done = self.count
            self._expand(level)
            progress(self.count)
        return self._result()

    @property
    def count(self) -> int:
        return int(self.counters[_search.STATES])

    @property
    def leaks(self) -> bool:
        return bool(self.counters[_search.LEAK] >= 0)

    def _expand(self, todo: Array) -> None:
        wanted = np.empty((_WANTED_AT_ONCE, 2), dtype=np.int64)
        while len(todo):
            put_off = np.empty(len(todo), dtype=np.int64)
            looked, off, asked = _search.expand(todo, self._arrays, self.counters, wanted, put_off, self.shape)
            if self.leaks:
                return
            for number, shared in wanted[:asked].tolist():
                self.table.fill(number, shared)
            if self.table.count >= 1 << self.shape.id_bits:
                raise TooLargeError(f"more than {1 << self.shape.id_bits:,} states of one thread: explore less at once")
            if self.count + _search.MOST_MOVES >= len(self.states):
                self._grow()
            todo = np.concatenate([put_off[:off], todo[looked:]])

    @property
    def _arrays(self) -> _search.Arrays:
        return _search.Arrays(*self.table.arrays, self.states, self.parents, self.slots)

    def _grow(self) -> None:
        if self.count >= self.limit:
            raise TooLargeError(f"more than {self.limit:,} states: explore less at once")
        self.states = np.concatenate([self.states, np.zeros_like(self.states)])
        self.parents = np.concatenate([self.parents, np.full_like(self.parents, -1)])
        self.slots = np.full(2 * len(self.states), -1, dtype=np.int32)
        _search.enter(self.count, self.states, self.slots)

    def _result(self) -> Explored:
        leak, broken = int(self.counters[_search.LEAK]), int(self.counters[_search.FIRST_BROKEN])
        return Explored(
            states=self.count,
            transitions=int(self.counters[_search.TRANSITIONS]),
            complete=not self.leaks,
            leak=self._path(leak) if leak >= 0 else None,
            broken=self._path(broken) if broken >= 0 else None,
            stuck=None if self.leaks else self._stuck(),
            places=self.table.places,
        )

    def _stuck(self) -> Path | None:
        stuck = np.zeros(self.count, dtype=np.uint8)
        _search.mark_waiting(stuck, self._arrays, self.shape)
        left = _search.settle_stuck(stuck, np.flatnonzero(stuck), self._arrays, self.shape)
        return self._path(int(np.flatnonzero(stuck)[0])) if left else None

    # Paths: the way back is by the parents' numbers, the moves are found again by asking the model.

    def _path(self, index: int) -> Path:
        keys = []
        while index >= 0:
            keys.append(int(self.states[index]))
            index = int(self.parents[index])
        keys.reverse()
        thread, shared = self.model.start()
        threads = [thread] * self.model.threads
        first_is = 0  # which thread the state calls the first
        steps = []
        for before, after in pairwise(keys):
            place, move, swap = self._step(before, after, threads[::-1] if first_is else threads)
            steps.append(Happened(place ^ first_is, move, self._unpack(before)[0], self._unpack(after)[0]))
            threads[place ^ first_is] = move.after
            first_is ^= swap
        contents, shared, *_ = self._unpack(keys[-1])
        return Path(tuple(steps), tuple(threads), swapped(shared) if first_is else shared, contents)

    def _unpack(self, key: int) -> tuple[int, int, int, int]:
        contents, shared = key & (1 << self.shape.bits) - 1, key >> self.shape.bits & 0xFF
        rest = key >> self.shape.bits + SHARED_BITS
        return contents, shared, rest & (1 << self.shape.id_bits) - 1, rest >> self.shape.id_bits

    def _pack(self, contents: int, shared: int, first: int, second: int) -> int:
        return contents | (shared | (first | second << self.shape.id_bits) << SHARED_BITS) << self.shape.bits

    def _step(self, before: int, after: int, threads: list[Any]) -> tuple[int, Move, int]:
        """Return who moved, how, and whether the state after it calls the threads the other way round.

        :param threads: What the threads are before it, in the order in which that state calls them.
        """
        contents, shared, *numbers = self._unpack(before)
        for mover, thread in enumerate(threads):
            own = shared if mover == 0 else swapped(shared)
            other, others = numbers[1 - mover], 0
            if self.model.threads > 1:
                others = self.model.view(threads[1 - mover], swapped(own)).adds
            for move in self.model.moves(thread, own):
                now = contents & ~move.clears | others
                now = self.model.layout.fold(now) if move.folds else now
                now |= self.model.view(move.after, move.shared).adds
                number = self.table.number(move.after)
                mine = self._pack(now, move.shared, number, other)
                theirs = self._pack(now, swapped(move.shared), other, number)
                straight, crossed = (mine, theirs) if mover == 0 else (theirs, mine)
                if after == straight:
                    return mover, move, 0
                if self.shape.symmetric and after == crossed:
                    return mover, move, 1
        raise AssertionError("a state that no move of its parent leads to")


def _reduced(table: MoveTable) -> Quotient:
    table.close()
    return Quotient(table)
