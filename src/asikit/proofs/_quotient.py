"""The model's tables made small: of what a thread can be, whatever behaves the same from there on is one.

Two things that a thread can be are bisimilar if, whatever the shared bits are, they mean the same for the structures,
and the same may happen to them, and what they become is bisimilar again. States of the core that have bisimilar threads
and agree in the rest then have the same leaks, at the same distance. The coarsest such partition is found by splitting
(Kanellakis and Smolka, 1990): two stay together until they are told apart by what may happen to them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from asikit.proofs import _search

if TYPE_CHECKING:
    from collections.abc import Hashable

    import numpy.typing as npt

    from asikit.proofs._table import MoveTable

    Array = npt.NDArray[Any]
    Signature = tuple[Hashable, ...]


class Quotient:
    """The table of the classes of bisimilar threads; every row of the table that it is made of must be filled."""

    def __init__(self, table: MoveTable) -> None:
        self._table = table
        self._class_of, representatives = _Partition(table).run()
        self.row_of: Array = np.full((len(representatives), table.row_of.shape[1]), -1, dtype=np.int32)
        rows: list[tuple[int, ...]] = []
        moves: list[tuple[int, ...]] = []
        for number, thread in enumerate(representatives):
            for shared in np.flatnonzero(table.row_of[thread] >= 0).tolist():
                first, count, *means = table.rows.values[table.row_of[thread, shared]].tolist()
                led_to = table.moves.values[first : first + count].tolist()
                own = sorted({(self._class_of[to], *rest) for to, *rest in led_to})
                self.row_of[number, shared] = len(rows)
                rows.append((len(moves), len(own), *means))
                moves += own
        self.rows: Array = np.array(rows, dtype=np.int64)
        self.moves: Array = np.array(moves, dtype=np.int64).reshape(-1, _search.COLUMNS)

    @property
    def count(self) -> int:
        """How many classes there are."""
        return len(self.row_of)

    @property
    def places(self) -> int:
        """How many things a thread can be."""
        return self._table.places

    @property
    def arrays(self) -> tuple[Array, Array, Array]:
        """By class and shared bits the row; the rows; the moves."""
        return self.row_of, self.rows, self.moves

    def number(self, thread: Hashable) -> int:
        """Return the class of what a thread is."""
        return self._class_of[self._table.number(thread)]

    def start(self) -> tuple[int, int, int]:
        """Return the first state, as `MoveTable.start`."""
        contents, shared, number = self._table.start()
        return contents, shared, self._class_of[number]

    def fill(self, number: int, shared: int) -> None:
        """Nothing is left to fill."""
        raise AssertionError(f"class {number} was never expected to see the shared bits {shared:#x}")


class _Partition:
    """What is not told apart yet: at first everything.

    A class' signature is what all its members may become, in terms of classes. Only threads whose successors got
    another class can have got another signature; the others keep, with their class' number, the one it had.
    """

    def __init__(self, table: MoveTable) -> None:
        places = table.places
        rows, moves = table.rows.values[: table.rows.count].tolist(), table.moves.values[: table.moves.count]
        _, labels = np.unique(moves[:, _search.TO + 1 :], axis=0, return_inverse=True)
        steps = list(zip(moves[:, _search.TO].tolist(), labels.ravel().tolist(), strict=True))
        self._means: list[Hashable] = []
        self._steps: list[list[list[tuple[int, int]]]] = []
        self._before: list[set[int]] = [set() for _ in range(places)]
        for thread in range(places):
            seen = np.flatnonzero(table.row_of[thread] >= 0).tolist()
            own = [rows[table.row_of[thread, shared]] for shared in seen]
            self._means.append(
                tuple((shared, *row[_search.COUNT + 1 :]) for shared, row in zip(seen, own, strict=True))
            )
            self._steps.append([steps[row[_search.FIRST] : row[_search.FIRST] + row[_search.COUNT]] for row in own])
            for to, _ in (step for group in self._steps[thread] for step in group):
                self._before[to].add(thread)
        self._class_of = [0] * places
        self._members = {0: set(range(places))}
        self._signatures: dict[int, Signature] = {}

    def run(self) -> tuple[list[int], list[int]]:
        """Return the class of each thread, and of each class one thread."""
        unsure = set(range(len(self._class_of)))
        while unsure:
            moved = self._split(unsure)
            for thread, to in moved.items():
                self._class_of[thread] = to
            unsure = {before for thread in moved for before in self._before[thread]}
        return self._class_of, [min(self._members[number]) for number in range(len(self._members))]

    def _split(self, unsure: set[int]) -> dict[int, int]:
        """Return which threads have to leave their class, and for which."""
        parts: dict[int, dict[Signature, list[int]]] = {}
        for thread in unsure:
            parts.setdefault(self._class_of[thread], {}).setdefault(self._signature(thread), []).append(thread)
        moved: dict[int, int] = {}
        for number, by_signature in parts.items():
            sure = len(self._members[number]) - sum(map(len, by_signature.values()))
            if not sure:  # then most of them stay
                self._signatures[number] = max(by_signature, key=lambda signature: len(by_signature[signature]))
            stays = self._signatures[number]
            for signature, threads in by_signature.items():
                if signature != stays:
                    new = len(self._members)
                    self._members[number].difference_update(threads)
                    self._members[new] = set(threads)
                    self._signatures[new] = signature
                    moved |= dict.fromkeys(threads, new)
        return moved

    def _signature(self, thread: int) -> Signature:
        become = (frozenset((self._class_of[to], label) for to, label in group) for group in self._steps[thread])
        return self._means[thread], *become
