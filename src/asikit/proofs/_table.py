"""The model as tables: each thing that a thread can be gets a number, and a row says what may happen to it then.

Filled by asking the model (`asikit.proofs.model.World`), which runs the guarded commands of `asikit.proofs.relation`:
the explored relation is what the solver reads too. The compiled exploration asks for the rows that it comes to, or all
that it may come to are there before it begins (`MoveTable.close`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from asikit.proofs import _search
from asikit.proofs.threads import swapped

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    import numpy.typing as npt

    from asikit.proofs.threads import Move, View

    Array = npt.NDArray[Any]

STATE_BITS = 63
SHARED_VALUES = 256


class Contents(Protocol):
    """How what the structures hold is packed: the part of `ContentsLayout` that exploring needs."""

    @property
    def bits(self) -> int: ...
    @property
    def other(self) -> int: ...
    def fold(self, contents: int) -> int: ...


class Model(Protocol):
    """What is explored: the methods of `asikit.proofs.model.World`, whose docstrings say what they are for."""

    @property
    def threads(self) -> int: ...
    @property
    def layout(self) -> Contents: ...
    def start(self) -> tuple[Any, int]: ...
    def moves(self, thread: Any, shared: int) -> Iterator[Move]: ...  # noqa: ANN401  (the model's own thread)
    def view(self, thread: Any, shared: int) -> View: ...  # noqa: ANN401
    def spins(self, thread: Any, shared: int) -> bool: ...  # noqa: ANN401


class Growing:
    """An array of numbers that doubles when it is full."""

    def __init__(self, columns: int) -> None:
        self.values: Array = np.zeros((1024, columns), dtype=np.int64)
        self.count = 0

    def append(self, *row: int) -> int:
        """Add a row, and return its number."""
        if self.count == len(self.values):
            self.values = np.concatenate([self.values, np.zeros_like(self.values)])
        self.values[self.count] = row
        self.count += 1
        return self.count - 1


class MoveTable:
    """The rows of one model that were needed so far."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.threads: list[Any] = []
        self.moves = Growing(_search.COLUMNS)
        self.rows = Growing(_search.COLUMNS)
        self.row_of: Array = np.full((1024, SHARED_VALUES), -1, dtype=np.int32)
        self._numbers: dict[Hashable, int] = {}

    @property
    def count(self) -> int:
        """How many numbers there are."""
        return len(self.threads)

    @property
    def places(self) -> int:
        """How many things a thread can be, of those that were met so far."""
        return len(self.threads)

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """By thread number and shared bits the row, -1 if there is none; the rows; the moves."""
        return self.row_of, self.rows.values, self.moves.values

    def number(self, thread: Hashable) -> int:
        """Return the number of what a thread is."""
        known = self._numbers.get(thread)
        if known is not None:
            return known
        number = len(self.threads)
        self._numbers[thread] = number
        self.threads.append(thread)
        if number == len(self.row_of):
            self.row_of = np.concatenate([self.row_of, np.full_like(self.row_of, -1)])
        return number

    def fill(self, number: int, shared: int) -> None:
        """Ask the model what may happen to a thread with the given shared bits."""
        model, thread = self.model, self.threads[number]
        first = self.moves.count
        for move in model.moves(thread, shared):
            flags = _search.FOLDS * move.folds | _search.OWED * move.owed
            adds = model.view(move.after, move.shared).adds
            self.moves.append(self.number(move.after), move.shared, move.clears, adds, flags)
        view = model.view(thread, shared)
        flags = _search.LEAKS * bool(view.leak) | _search.BROKEN * bool(getattr(thread, "broken", ""))
        flags |= _search.SPINS * model.spins(thread, shared)
        row = self.rows.append(first, self.moves.count - first, view.adds, view.forbids, flags)
        self.row_of[number, shared] = row

    def close(self) -> None:
        """Fill every row that the threads may come to.

        Thread by thread, not state by state: whatever one thread once does to the shared bits may happen to the other
        whenever it sees them so. That takes in all that any interleaving leads to, and need not take in more
        (thread-modular reasoning, after Flanagan and Qadeer, SPIN 2003).
        """
        _, shared, number = self.start()
        seen_with: dict[int, list[int]] = {}
        sibling_does: dict[int, set[int]] = {}
        todo = [(number, shared)]
        while todo:
            number, shared = todo.pop()
            if self.row_of[number, shared] >= 0:
                continue
            self.fill(number, shared)
            seen_with.setdefault(shared, []).append(number)
            todo += [(number, after) for after in sibling_does.get(shared, ())]
            first, count = self.rows.values[self.row_of[number, shared], : _search.COUNT + 1].tolist()
            for to, after in self.moves.values[first : first + count, : _search.SHARED + 1].tolist():
                todo.append((to, after))
                before, then = swapped(shared), swapped(after)
                if self.model.threads > 1 and after != shared and then not in sibling_does.setdefault(before, set()):
                    sibling_does[before].add(then)
                    todo += [(each, then) for each in seen_with.get(before, ())]

    def start(self) -> tuple[int, int, int]:
        """Return the first state: contents of the structures, shared bits, the number of each thread."""
        thread, shared = self.model.start()
        adds = self.model.view(thread, shared).adds
        if self.model.threads > 1:
            adds |= self.model.view(thread, swapped(shared)).adds
        return adds, shared, self.number(thread)
