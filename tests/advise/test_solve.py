"""The choices are the best there are: as a look at all choices says, and by proofs that do not need the solver."""

from __future__ import annotations

from dataclasses import replace as changed
from fractions import Fraction
from itertools import combinations, pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.advise import (
    AdviseError,
    Problem,
    best_beside,
    cheapest_within,
    check_cut,
    cut,
    fewest_within,
    frontier,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_SITES = 8


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Make any small problem."""
    sites = draw(st.integers(1, MOST_SITES))
    sets = draw(st.dictionaries(st.frozensets(st.integers(0, sites - 1), min_size=1), st.integers(1, 20), max_size=10))
    return Problem(
        tuple(draw(st.lists(st.integers(0, 9), min_size=sites, max_size=sites))),
        tuple((tuple(sorted(needed)), times) for needed, times in sets.items()),
        draw(st.integers(0, 5)),
        draw(st.frozensets(st.integers(0, sites - 1), max_size=2)),
    )


def choices(problem: Problem) -> Iterator[tuple[int, int]]:
    """Look at all choices: the exits and the exposure of each."""
    free = [site for site in range(len(problem.exposure)) if site not in problem.protected]
    for size in range(len(free) + 1):
        for chosen in combinations(free, size):
            yield problem.exits(chosen), problem.exposed(chosen)


@settings(deadline=None)
@given(problems(), st.fractions(0, 20, max_denominator=30))
def test_cut(problem: Problem, price: Fraction) -> None:
    """No choice is below the cut, and its flow says so."""
    left = problem.reduced()
    found = cut(left, price)
    assert not found.sites & problem.protected
    best = min(exits + price * exposure for exits, exposure in choices(problem))
    assert problem.exits(found.sites) + price * problem.exposed(found.sites) == best
    assert check_cut(left, found) == (best - left.forced) * price.denominator


@settings(deadline=None)
@given(problems(), st.integers(0, 40))
def test_within(problem: Problem, most: int) -> None:
    """The fewest exits at an exposure, and the least exposure at so many exits, are those of all choices."""
    left, everything = problem.reduced(), list(choices(problem))
    fewest = fewest_within(left, most)
    exits, exposure = problem.exits(fewest.sites), problem.exposed(fewest.sites)
    assert (exits, exposure) == min(each for each in everything if each[1] <= most)
    assert fewest.bound == exits
    affordable = [exposure for exits, exposure in everything if exits <= most]
    if affordable:
        cheapest = cheapest_within(left, most)
        assert problem.exits(cheapest.sites) <= most
        assert problem.exposed(cheapest.sites) == min(affordable) == cheapest.bound
    else:
        with pytest.raises(AdviseError, match="no choice of sites"):
            cheapest_within(left, most)


@settings(deadline=None)
@given(problems(), st.integers(2, 12))
def test_frontier(problem: Problem, points: int) -> None:
    """It has all corners of the convex frontier, and only choices of which no other is better."""
    everything = set(choices(problem))
    pareto = {
        one
        for one in everything
        if not any(other != one and other[0] <= one[0] and other[1] <= one[1] for other in everything)
    }
    found = frontier(problem, most_points=points).points
    assert {(point.exits, point.exposure) for point in found} <= pareto
    assert all(
        (problem.exits(point.sites), problem.exposed(point.sites)) == (point.exits, point.exposure) for point in found
    )
    assert corners(pareto) <= {(point.exits, point.exposure) for point in found if point.proof == "cut"}
    if len(found) < points:  # then between two of them there is at most what has as many exits, but for one
        assert len(found) <= len(pareto)


def corners(pareto: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the lower convex hull's corners (Andrew 1979)."""
    hull: list[tuple[int, int]] = []
    for exits, exposure in sorted(pareto):
        while len(hull) > 1:
            (a, b), (c, d) = hull[-2:]
            if (c - a) * (exposure - b) - (d - b) * (exits - a) > 0:
                break
            hull.pop()
        hull.append((exits, exposure))
    return set(hull)


PROBLEM = Problem((3, 5, 2), (((0,), 4), ((0, 1), 6), ((2,), 1)))


def test_corners_are_nested() -> None:
    """From a corner to the next with more exposure sites are added, and none is taken back: they make an order."""
    found = [point for point in frontier(PROBLEM).points if point.proof == "cut"]
    assert [(point.exits, point.exposure) for point in found] == [(0, 10), (1, 8), (7, 3), (11, 0)]
    assert all(less.sites < more.sites for more, less in pairwise(found))


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        (((3,), (0, 4), (1,)), "the cut's value is 9, the flow's"),
        (((5,), (0, 5), (1,)), "the flow from the sites"),
        (((4,), (2, 4), (1,)), "the flow into site 0 is 6"),
        (((-1,), (0, 5), (1,)), "the flow from the sites"),
    ],
)
def test_a_wrong_proof(flow: tuple[tuple[int, ...], ...], message: str) -> None:
    """What is no flow, or less than the cut, proves nothing."""
    found = cut(PROBLEM, Fraction(1))
    assert check_cut(PROBLEM, found) == 9
    with pytest.raises(AdviseError, match=message):
        check_cut(PROBLEM, changed(found, flow=flow))


def test_beside() -> None:
    """A policy that exposes what must stay sensitive has exits that no choice has."""
    fewest, least = best_beside(changed(PROBLEM, protected=frozenset({0})), exits=1, exposure=8)
    assert (fewest.exits, fewest.exposure) == (10, 2)
    assert least is None
