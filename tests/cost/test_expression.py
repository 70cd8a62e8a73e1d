"""Intervals of costs: exact, reached, and around everything that the parameters allow."""

from __future__ import annotations

import random
from itertools import product

import pytest

from asikit.cost import CostError, Range
from asikit.cost.expression import Monomial, Sum, extremes, ratio_extremes, value_of

NAMES = ("a", "b", "c", "d", "e")
DIVISOR = "f"


def random_sum(dice: random.Random, *, signs: tuple[int, ...]) -> Sum:
    """Give some products of up to three parameters, each once; ``f`` always as a divisor."""
    terms = []
    for _ in range(dice.randint(1, 6)):
        factors = tuple((name, 1) for name in sorted(dice.sample(NAMES, dice.randint(0, 3))))
        divisor = ((DIVISOR, -1),) if dice.random() < 0.5 else ()
        terms.append(Monomial(dice.choice(signs) * dice.uniform(0.1, 10), (*factors, *divisor)))
    return tuple(terms)


def random_ranges(dice: random.Random) -> dict[str, Range]:
    """Give a range for each parameter, some of them exact."""
    ranges = {}
    for name in (*NAMES, DIVISOR):
        low, mid, high = sorted(dice.uniform(0.5, 9) for _ in range(3))
        ranges[name] = Range.exactly(mid) if dice.random() < 0.2 else Range(low, mid, high)
    return ranges


def corners(ranges: dict[str, Range]) -> list[dict[str, float]]:
    """Give every corner of the box."""
    ends = product(*((figures.low, figures.high) for figures in ranges.values()))
    return [dict(zip(ranges, end, strict=True)) for end in ends]


@pytest.mark.parametrize("seed", range(60))
@pytest.mark.parametrize("signs", [(1,), (1, -1)])
def test_extremes_are_the_best_corners(seed: int, signs: tuple[int, ...]) -> None:
    """The ends are those of a search of all corners, and no point inside the box lies outside them."""
    dice = random.Random(seed)
    terms, ranges = random_sum(dice, signs=signs), random_ranges(dice)
    found = extremes(terms, ranges)
    values = [value_of(terms, corner) for corner in corners(ranges)]
    assert found.low == pytest.approx(min(values))
    assert found.high == pytest.approx(max(values))
    assert found.mid == pytest.approx(value_of(terms, {name: figures.mid for name, figures in ranges.items()}))
    for _ in range(200):
        inside = {name: dice.uniform(figures.low, figures.high) for name, figures in ranges.items()}
        assert found.low - 1e-9 <= value_of(terms, inside) <= found.high + 1e-9


@pytest.mark.parametrize("seed", range(60))
def test_ratio_extremes_are_the_best_corners(seed: int) -> None:
    """The extremes are at corners also for a quotient whose two sums share parameters, the upper one of either sign."""
    dice = random.Random(seed)
    above, below, ranges = random_sum(dice, signs=(1, -1)), random_sum(dice, signs=(1,)), random_ranges(dice)
    found = ratio_extremes(above, below, ranges)
    values = [value_of(above, corner) / value_of(below, corner) for corner in corners(ranges)]
    assert found.low == pytest.approx(min(values))
    assert found.high == pytest.approx(max(values))
    for _ in range(200):
        inside = {name: dice.uniform(figures.low, figures.high) for name, figures in ranges.items()}
        assert found.low - 1e-9 <= value_of(above, inside) / value_of(below, inside) <= found.high + 1e-9


def test_a_shared_parameter_is_one_figure() -> None:
    """What both sums have in common does not count twice: a cost of itself and a half is always twice the half."""
    whole, half = (Monomial(2.0, (("a", 1),)),), (Monomial(1.0, (("a", 1),)),)
    assert ratio_extremes(whole, half, {"a": Range(1, 5, 100)}) == Range(2.0, 2.0, 2.0)


def test_times_cancels() -> None:
    """What stands above and below goes, so that no parameter is both."""
    term = Monomial(3.0, (("a", 1), ("f", -1)))
    assert term.times(2, "f", over=("a",)) == Monomial(6.0, ())
    with pytest.raises(CostError, match="twice in one product"):
        term.times(1, "a")


def test_a_factor_that_is_a_divisor_elsewhere_is_refused() -> None:
    """Corners would not be enough there, so nothing is answered."""
    with pytest.raises(CostError, match="a is a factor of one part of a cost and a divisor of another"):
        extremes((Monomial(1.0, (("a", 1),)), Monomial(1.0, (("a", -1),))), {"a": Range(1, 2, 3)})
