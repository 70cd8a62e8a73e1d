"""All that can be had: the choices of which no other has both fewer exits and less exposure."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

from asikit.advise.certificate import check_cut
from asikit.advise.solve import cheapest_within, cut, fewest_within

if TYPE_CHECKING:
    from asikit.advise.problem import Problem

__all__ = ["Frontier", "Point", "best_beside", "frontier", "within"]


@dataclass(frozen=True, order=True)
class Point:
    """A choice.

    :ivar proof: ``cut``: a flow proves it, for some price of exposure. ``bound``: the solver's bound proves it.
    """

    exits: int
    exposure: int
    sites: frozenset[int]
    proof: str


@dataclass(frozen=True)
class Frontier:
    """Choices from the fewest exits to the least exposure.

    :ivar points: In ascending order of exits.
    """

    points: tuple[Point, ...]


def frontier(problem: Problem, *, most_points: int = 20) -> Frontier:
    """Return the corners of the convex frontier, and points between them where the gaps are widest.

    :param most_points: Of more corners than this all are returned.
    :raises AdviseError: A proof does not hold.
    """
    left = problem.reduced()
    points = _corners(left)
    while len(points) < most_points:
        between = _between(left, points)
        if between is None:
            break
        points = sorted({*points, between})
    return Frontier(tuple(points))


def best_beside(problem: Problem, exits: int, exposure: int) -> tuple[Point, Point | None]:
    """Return the best choices beside another policy: the fewest exits at its exposure, the least exposure at its exits.

    :return: None where no choice has so few exits, as the policy exposes a site that must stay sensitive.
    """
    left = problem.reduced()
    fewest = within(problem, exposure)
    least = None
    if left.exits(range(len(left.exposure))) <= exits:
        least = _point(left, cheapest_within(left, exits).sites, "bound")
    return fewest, least


def within(problem: Problem, exposure: int) -> Point:
    """Return the choice with the fewest exits that exposes no more than this, and of these the least exposed.

    :raises AdviseError: The solver has no answer.
    """
    left = problem.reduced()
    return _point(left, fewest_within(left, exposure).sites, "bound")


def _point(problem: Problem, sites: frozenset[int], proof: str) -> Point:
    return Point(problem.exits(sites), problem.exposed(sites), sites, proof)


def _corners(problem: Problem) -> list[Point]:
    """Find all prices at which the best choice changes (Eisner and Severance 1976)."""
    none = _at(problem, Fraction(1 + sum(times for _, times in problem.needs)))  # but for what exposes nothing
    every = _at(problem, Fraction(1, 1 + sum(problem.exposure)))
    found = {none, every}
    open_pairs = [(every, none)]
    while open_pairs:
        first, last = open_pairs.pop()
        if last.exits == first.exits or last.exposure == first.exposure:
            continue
        price = Fraction(last.exits - first.exits, first.exposure - last.exposure)
        middle = _at(problem, price)
        if middle.exits + price * middle.exposure < first.exits + price * first.exposure:
            found.add(middle)
            open_pairs += [(first, middle), (middle, last)]
    return sorted(found)


def _at(problem: Problem, price: Fraction) -> Point:
    best = cut(problem, price)
    check_cut(problem, best)
    return _point(problem, best.sites, "cut")


def _between(problem: Problem, points: list[Point]) -> Point | None:
    """Return a new point in the widest gap that has one."""
    pairs = sorted(pairwise(points), key=lambda pair: pair[0].exits - pair[1].exits)
    for first, last in pairs:
        if last.exits - first.exits < 2:  # noqa: PLR2004  (no whole number lies between)
            continue
        least = problem.exposed(cheapest_within(problem, (first.exits + last.exits) // 2).sites)
        point = _point(problem, fewest_within(problem, least).sites, "bound")
        if point.exits > first.exits and point.exposure > last.exposure:
            return point
    return None
