"""Medians and intervals against enumeration and simulation."""

from __future__ import annotations

import random
from itertools import combinations
from math import comb
from statistics import median

import pytest

from asikit.cost._statistics import _arrangements, _cut, difference, estimate


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (3, 6), (5, 5)])
def test_arrangements_are_counted(n: int, m: int) -> None:
    """The recursion counts what writing down all orders counts."""
    counted: dict[int, int] = {}
    for places in combinations(range(n + m), n):
        others = [place for place in range(n + m) if place not in places]
        above = sum(mine > other for mine in places for other in others)
        counted[above] = counted.get(above, 0) + 1
    assert counted == {u: count for u in range(n * m + 1) if (count := _arrangements(n, m, u))}
    assert sum(counted.values()) == comb(n + m, n)


def test_cut_is_the_published_one() -> None:
    """Critical values of the two-sided Mann-Whitney test at 5 %: 4 and 4: 0; 5 and 5: 2; 10 and 10: 23."""
    assert [_cut(4, 4), _cut(5, 5), _cut(10, 10), _cut(5, 10)] == [0, 2, 23, 8]
    assert _cut(3, 3) == -1


def test_median_interval_of_ten() -> None:
    """Of ten values the interval is from the second to the ninth; of five there is none."""
    ten = estimate([7, 3, 9, 1, 5, 2, 8, 10, 4, 6])
    assert (ten.median, ten.low, ten.high, ten.runs) == (5.5, 2, 9, 10)
    five = estimate([1, 2, 3, 4, 5])
    assert (five.median, five.low, five.high) == (3, None, None)


def test_intervals_hold_the_truth() -> None:
    """In 19 of 20 trials at least, whatever the distribution: here one with a long tail."""
    dice = random.Random(1)
    held = {"median": 0, "difference": 0}
    trials = 400
    for _ in range(trials):
        first = [dice.expovariate(1) for _ in range(8)]
        second = [dice.expovariate(1) + 2 for _ in range(7)]
        one, shift = estimate(first), difference(first, second)
        assert one.low is not None
        assert one.high is not None
        assert shift.low is not None
        assert shift.high is not None
        held["median"] += one.low <= 0.6931 <= one.high
        held["difference"] += shift.low <= 2 <= shift.high
    assert all(count >= 0.94 * trials for count in held.values()), held


def test_difference_of_single_runs_is_what_it_is() -> None:
    """Two replays without repetition: any difference is one, and none is none."""
    assert difference([4], [6]).shift == 2
    assert difference([4], [6]).is_real
    assert not difference([4], [4]).is_real


def test_few_runs_claim_nothing() -> None:
    """Three a side cannot show a difference with 95 %, however large."""
    assert not difference([1, 2, 3], [1001, 1002, 1003]).is_real
    assert difference([1, 2, 3, 4], [1001, 1002, 1003, 1004]).is_real


def test_shift_is_the_median_of_all_differences() -> None:
    """And its ends are differences too, symmetric about it in rank."""
    first, second = [1.0, 4.0, 9.0, 16.0, 25.0], [2.0, 8.0, 12.0, 30.0, 31.0]
    every = sorted(b - a for a in first for b in second)
    found = difference(first, second)
    assert (found.shift, found.low, found.high) == (median(every), every[2], every[-3])
    assert not found.is_real
