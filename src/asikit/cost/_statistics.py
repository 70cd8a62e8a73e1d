"""Medians and 95 % intervals without assumptions about distributions, exact for small numbers of runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import product
from math import comb
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Difference", "Estimate", "difference", "estimate"]

_TAIL = 0.025
"""Probability that an end of a 95 % interval is on the wrong side."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median of ``runs`` values.

    :ivar low: Lower end of its 95 % interval; None where there are too few runs for one, as for all fewer than 6.
    """

    median: float
    low: float | None
    high: float | None
    runs: int


@dataclass(frozen=True, slots=True)
class Difference:
    """How much greater the second of two sides is.

    :ivar shift: The median of all differences between a value of the second and one of the first (Hodges and Lehmann,
        1963).
    :ivar low: Lower end of its 95 % interval; None where there are too few runs, or one run a side.
    """

    shift: float
    low: float | None
    high: float | None

    @property
    def is_real(self) -> bool:
        """Whether it is a difference at all: without an interval, any; with one, if 0 is outside."""
        if self.low is None or self.high is None:
            return self.shift != 0
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Return the median, and the interval between two order statistics that holds it with 95 %.

    The k-th least value is above the median if fewer than k of n values are below it, which has the probability
    ``sum(comb(n, i) for i < k) / 2**n``.
    """
    ordered = sorted(values)
    n = len(ordered)
    below = 0.0
    k = -1  # the greatest k with P(fewer than k + 1 below) <= the tail
    for i in range(n):
        below += comb(n, i) / 2**n
        if below > _TAIL:
            break
        k = i
    if k < 0:
        return Estimate(median(ordered), None, None, n)
    return Estimate(median(ordered), ordered[k], ordered[n - 1 - k], n)


def difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return how much greater the second side is, with the interval that the Mann-Whitney test gives.

    With one run a side there is nothing to estimate: the figures are what they are. With several, but too few for an
    interval (fewer than 4 and 4), the interval is infinite, so that no difference is claimed.
    """
    shifts = sorted(b - a for a, b in product(first, second))
    shift = median(shifts)
    if len(first) == len(second) == 1:
        return Difference(shift, None, None)
    cut = _cut(len(first), len(second))
    if cut < 0:
        return Difference(shift, float("-inf"), float("inf"))
    return Difference(shift, shifts[cut], shifts[len(shifts) - 1 - cut])


def _cut(n: int, m: int) -> int:
    """Return the greatest number of extreme differences that an end may leave out; -1 if not even none."""
    total = comb(n + m, n)
    below, cut = 0, -1
    for u in range(n * m + 1):
        below += _arrangements(n, m, u)
        if below / total > _TAIL:
            break
        cut = u
    return cut


@cache
def _arrangements(n: int, m: int, u: int) -> int:
    """Count the orders of n and m values in which u pairs have the value of the n above that of the m."""
    if u < 0:
        return 0
    if n == 0 or m == 0:
        return int(u == 0)
    # The greatest value is of the n, and above all m, or of the m.
    return _arrangements(n - 1, m, u - m) + _arrangements(n, m - 1, u)
