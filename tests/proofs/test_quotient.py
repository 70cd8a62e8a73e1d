"""The quotient: of small models made up at random, threads are one just if nothing ever tells them apart."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations, product
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.proofs import View
from asikit.proofs._quotient import Quotient
from asikit.proofs._table import Contents, MoveTable
from asikit.proofs.threads import Move

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs import Thread

NO_STRUCTURES = cast("Contents", None)
Step = tuple[int, bool]
"""Where a thread goes, and whether it does so sooner or later."""


@dataclass(frozen=True)
class Graph:
    """A model of one thread whose shared bits never change: each thread is a number.

    :ivar steps: What may happen to each thread.
    :ivar forbids: What must not be in the structures while it is there.
    """

    steps: tuple[tuple[Step, ...], ...]
    forbids: tuple[int, ...]
    threads: int = 1
    layout: Contents = NO_STRUCTURES

    def start(self) -> tuple[int, int]:
        """Return the first thread."""
        return 0, 0

    def moves(self, thread: int, shared: int) -> Iterator[Move]:
        """Yield its steps."""
        for to, owed in self.steps[thread]:
            yield Move("runs", "step", cast("Thread", to), shared, owed=owed)

    def view(self, thread: Any, shared: int) -> View:  # noqa: ANN401 - the table's model has threads of any kind
        """Return what it forbids."""
        return View(0, self.forbids[thread])

    def spins(self, thread: int, shared: int) -> bool:
        """It never waits."""
        return False


@st.composite
def graphs(draw: st.DrawFn) -> Graph:
    """Return a graph of a few threads, with few ways to tell them apart."""
    count = draw(st.integers(1, 7))
    step = st.tuples(st.integers(0, count - 1), st.booleans())
    steps = draw(st.lists(st.lists(step, max_size=3).map(tuple), min_size=count, max_size=count))
    forbids = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    return Graph(tuple(steps), tuple(forbids))


def table_of(graph: Graph) -> MoveTable:
    """Return the filled table of all that can be reached."""
    table = MoveTable(graph)
    table.start()
    number = 0
    while number < table.count:  # grows
        table.fill(number, 0)
        number += 1
    return table


def told_apart(graph: Graph) -> set[tuple[int, int]]:
    """Return the pairs of threads of which one can do what the other cannot follow, whoever is asked first."""
    count = len(graph.steps)
    pairs = list(product(range(count), repeat=2))
    apart = {(one, other) for one, other in pairs if graph.forbids[one] != graph.forbids[other]}

    def follows(one: int, other: int) -> bool:
        return all(
            any((to, there) not in apart and owed == also for there, also in graph.steps[other])
            for to, owed in graph.steps[one]
        )

    while True:
        more = {
            (one, other)
            for one, other in pairs
            if (one, other) not in apart and not (follows(one, other) and follows(other, one))
        }
        if not more:
            return apart
        apart |= more


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_one_class_just_if_nothing_tells_them_apart(graph: Graph) -> None:
    """By the definition of bisimilarity, pair by pair."""
    table = table_of(graph)
    quotient, apart = Quotient(table), told_apart(graph)
    for one, other in combinations(table.threads, 2):
        assert (quotient.number(one) != quotient.number(other)) == ((one, other) in apart)


@settings(max_examples=60, deadline=None)
@given(graphs())
def test_a_class_does_what_its_members_do(graph: Graph) -> None:
    """Its row has each member's moves, with classes for threads; the start is the first thread's class."""
    table = table_of(graph)
    quotient = Quotient(table)
    assert quotient.start()[2] == quotient.number(0)
    assert quotient.places == table.count
    assert {quotient.number(thread) for thread in table.threads} == set(range(quotient.count))
    for thread in table.threads:
        first, count, _, forbids, _ = quotient.rows[quotient.row_of[quotient.number(thread), 0]].tolist()
        goes = {(to, bool(flags)) for to, *_, flags in quotient.moves[first : first + count].tolist()}
        assert goes == {(quotient.number(to), owed) for to, owed in graph.steps[thread]}
        assert forbids == graph.forbids[thread]


def test_a_row_that_nobody_expected() -> None:
    """The quotient of a whole table is never asked for more; if it is, that is a bug."""
    quotient = Quotient(table_of(Graph(((),), (0,))))
    with pytest.raises(AssertionError, match="class 0 was never expected to see the shared bits 0x3"):
        quotient.fill(0, 3)
