"""Sums of products of named parameters, and what they can be when each parameter is only known to lie in a range.

All prices have this form: a count times a product of parameters, some of them as divisors (cycles per instruction,
frequency). A parameter stands in a sum always as a factor or always as a divisor, and only once in a product. So with
all others held, the sum is monotone in it, and its extremes over the ranges are at corners: each parameter at one of
its ends. Most parameters' end is known from the signs alone; what is left is tried out (:func:`extremes`), or, for a
quotient of two sums, found by Dinkelbach's iteration, whose every step is such a search (:func:`ratio_extremes`).

The bounds are therefore exact, reached, and respect that one parameter is the same wherever it stands; they are not a
worst case of terms that cannot all be worst at once.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from asikit.cost.errors import CostError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["Monomial", "Range", "Sum", "extremes", "ratio_extremes", "value_of"]

_MOST_TRIED = 20  # parameters whose end is not known from signs: 2^20 corners take seconds
_ITERATIONS = 100


@dataclass(frozen=True, slots=True)
class Range:
    """A figure that is known to lie between two others; ``mid`` is the best guess, not their mean."""

    low: float
    mid: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Range:
        """Return the range of a figure that is known."""
        return cls(value, value, value)

    @property
    def is_exact(self) -> bool:
        """Whether there is nothing to choose."""
        return self.low == self.high

    def times(self, factor: float) -> Range:
        """Return the range of a multiple; the factor is not negative."""
        return Range(self.low * factor, self.mid * factor, self.high * factor)

    def to_dict(self) -> dict[str, float]:
        """Return the JSON form."""
        return {"low": self.low, "mid": self.mid, "high": self.high}


Values = dict[str, float]


@dataclass(frozen=True, slots=True)
class Monomial:
    """A number times parameters: ``powers`` names each with its exponent, 1 or -1."""

    coefficient: float
    powers: tuple[tuple[str, int], ...] = ()

    def times(self, factor: float, *names: str, over: tuple[str, ...] = ()) -> Monomial:
        """Return this times a number and parameters, divided by others; what stands above and below goes."""
        powers: dict[str, int] = defaultdict(int, self.powers)
        for name in names:
            powers[name] += 1
        for name in over:
            powers[name] -= 1
        kept = tuple(sorted((name, power) for name, power in powers.items() if power))
        if any(abs(power) > 1 for _, power in kept):
            raise CostError(f"a cost has a parameter twice in one product: {', '.join(name for name, _ in kept)}")
        return Monomial(self.coefficient * factor, kept)

    def value(self, values: Mapping[str, float]) -> float:
        """Return its value."""
        result = self.coefficient
        for name, power in self.powers:
            result = result * values[name] if power > 0 else result / values[name]
        return result


Sum = tuple[Monomial, ...]
"""Monomials to be added."""


def value_of(terms: Iterable[Monomial], values: Mapping[str, float]) -> float:
    """Return the value of a sum."""
    return sum(term.value(values) for term in terms)


def scaled(terms: Iterable[Monomial], factor: float) -> Sum:
    """Return a sum times a number."""
    return tuple(term.times(factor) for term in terms)


def extremes(terms: Iterable[Monomial], ranges: Mapping[str, Range]) -> Range:
    """Return the least value of a sum, its value with every parameter at its middle, and its greatest value.

    :raises CostError: The sum is not of the form that makes corners enough.
    """
    terms = _gathered(terms)
    middle = value_of(terms, {name: ranges[name].mid for name in _names(terms)})
    low = value_of(terms, _best(scaled(terms, -1.0), ranges))
    high = value_of(terms, _best(terms, ranges))
    # Where all is exact, rounding must not make a range of it.
    return Range(min(low, middle), middle, max(high, middle))


def ratio_extremes(above: Sum, below: Sum, ranges: Mapping[str, Range]) -> Range:
    """Return the least value of a quotient of two sums, its value at the middle, and its greatest value.

    :param below: Positive for all values of the parameters.
    :raises CostError: The sums are not of the form that makes corners enough.
    """
    names = _names((*above, *below))
    middles = {name: ranges[name].mid for name in names}
    middle = value_of(above, middles) / value_of(below, middles)
    high = _greatest_ratio(above, below, ranges, middle)
    low = -_greatest_ratio(scaled(above, -1.0), below, ranges, -middle)
    return Range(min(low, middle), middle, max(high, middle))


def _greatest_ratio(above: Sum, below: Sum, ranges: Mapping[str, Range], start: float) -> float:
    """Maximise ``above - ratio * below``: while that is positive, its corner has a greater ratio (Dinkelbach)."""
    ratio = start
    names = _names((*above, *below))
    for _ in range(_ITERATIONS):
        corner = _best(_gathered((*above, *scaled(below, -ratio))), ranges)
        corner |= {name: ranges[name].mid for name in names - corner.keys()}  # what cancelled out
        better = value_of(above, corner) / value_of(below, corner)
        if better <= ratio:
            break
        ratio = better
    return ratio


def _names(terms: Iterable[Monomial]) -> set[str]:
    return {name for term in terms for name, _ in term.powers}


def _gathered(terms: Iterable[Monomial]) -> Sum:
    """Add the terms that have the same parameters, so that a sign is the whole sign."""
    sums: dict[tuple[tuple[str, int], ...], float] = defaultdict(float)
    for term in terms:
        sums[term.powers] += term.coefficient
    return tuple(Monomial(coefficient, powers) for powers, coefficient in sums.items() if coefficient)


def _best(terms: Sum, ranges: Mapping[str, Range]) -> Values:
    """Return the corner at which a sum of gathered terms is greatest."""
    slopes: dict[str, set[int]] = defaultdict(set)
    exponents: dict[str, set[int]] = defaultdict(set)
    for term in terms:
        for name, power in term.powers:
            slopes[name].add(power if term.coefficient > 0 else -power)
            exponents[name].add(power)
    mixed = sorted(name for name, powers in exponents.items() if len(powers) > 1)
    if mixed:
        raise CostError(f"{mixed[0]} is a factor of one part of a cost and a divisor of another")
    values: Values = {}
    for name, signs in slopes.items():
        if len(signs) == 1 or ranges[name].is_exact:
            values[name] = ranges[name].high if signs == {1} else ranges[name].low
    return _tried(terms, ranges, values, sorted(slopes.keys() - values.keys()))


def _tried(terms: Sum, ranges: Mapping[str, Range], values: Values, unknown: list[str]) -> Values:
    """Choose the ends of the parameters whose signs are mixed: those that meet in a product by trying all."""
    coupled = {
        name
        for term in terms
        for name, _ in term.powers
        if name in unknown and sum(other in unknown for other, _ in term.powers) > 1
    }
    if len(coupled) > _MOST_TRIED:
        raise CostError(
            f"{len(coupled)} parameters of a cost are ranges that depend on each other; give some one value"
        )
    order = sorted(coupled)
    best: Values | None = None
    for ends in product((False, True), repeat=len(order)):
        chosen = values | {n: ranges[n].high if end else ranges[n].low for n, end in zip(order, ends, strict=True)}
        for name in unknown:
            if name not in coupled:
                chosen[name] = _end(name, terms, ranges, chosen)
        if best is None or value_of(terms, chosen) > value_of(terms, best):
            best = chosen
    return best if best is not None else values


def _end(name: str, terms: Sum, ranges: Mapping[str, Range], chosen: Values) -> float:
    """Return the better end of a parameter that shares no product with another undecided one."""
    own = [term for term in terms if any(other == name for other, _ in term.powers)]
    low, high = ranges[name].low, ranges[name].high
    return high if value_of(own, chosen | {name: high}) > value_of(own, chosen | {name: low}) else low
