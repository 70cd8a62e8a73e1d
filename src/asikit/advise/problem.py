"""The choice: sites that cost exposure, and stretches that each need a set of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

__all__ = ["Problem"]


@dataclass(frozen=True)
class Problem:
    """Which sites to declare nonsensitive.

    :ivar exposure: By site: what is exposed if it is declared nonsensitive; at least 0.
    :ivar needs: Sets of sites, as ascending positions, each with the number of stretches that need just these.
    :ivar forced: Exits that no choice avoids.
    :ivar protected: MemorySites that must stay sensitive.
    """

    exposure: tuple[int, ...]
    needs: tuple[tuple[tuple[int, ...], int], ...]
    forced: int = 0
    protected: frozenset[int] = frozenset()

    def exits(self, chosen: Collection[int]) -> int:
        """Return how many exits there are if these sites are nonsensitive."""
        have = frozenset(chosen)
        return self.forced + sum(times for needed, times in self.needs if not have.issuperset(needed))

    def exposed(self, chosen: Collection[int]) -> int:
        """Return what is exposed if these sites are nonsensitive."""
        return sum(self.exposure[site] for site in frozenset(chosen))

    def reduced(self) -> Problem:
        """Return what is left to choose: without stretches that need a protected site, their exits being forced."""
        open_needs = tuple((needed, times) for needed, times in self.needs if self.protected.isdisjoint(needed))
        lost = sum(times for _, times in self.needs) - sum(times for _, times in open_needs)
        return Problem(self.exposure, open_needs, self.forced + lost, self.protected)
