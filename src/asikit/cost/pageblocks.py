"""How many pageblocks would change their sensitivity: bounds, from the allocations of a kernel without ASI.

With ASI a pageblock (512 pages, 2 MiB) holds sensitive or nonsensitive pages, never both. The recorded kernel mixed
them, so its allocations bound what one with ASI would have converted:

* at least nothing: there may have been free memory of the right kind all the time;
* at most each change of sensitivity from one allocation in a pageblock to the next: pages placed as they were;
* the best guess is the memory that a sensitivity had at its peak beyond what it had at the beginning, in pageblocks,
  each converted once.

Only allocations of which a page was touched count: of the others a trace does not say what they were for.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from asikit.cost.expression import Range
from asikit.trace import EventKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from asikit.replay import SideTables
    from asikit.replay.sensitivity import Sensitive

    Numbers = npt.NDArray[np.int64]

__all__ = ["PageblockConversions", "PageblockCounter"]

PAGEBLOCK_PAGES = 512
"""Pages of a pageblock: pageblock_order is 9 on x86 with huge pages."""
_UNKNOWN = -1


@dataclass(frozen=True, slots=True)
class PageblockConversions:
    """Conversions of pageblocks.

    :ivar to_sensitive: To sensitive: unmapped from the restricted direct map, discarded from all TLBs.
    :ivar to_nonsensitive: To nonsensitive: zeroed.
    :ivar unknown: Allocations of which nobody knows the sensitivity.
    """

    to_sensitive: Range
    to_nonsensitive: Range
    unknown: int


@dataclass
class PageblockCounter:
    """Feed it the allocation events of a trace in order.

    :ivar sensitivity: 1 sensitive, 0 nonsensitive, -1 unknown, for each allocation.
    :ivar block: The pageblock of each allocation.
    :ivar pages: The pages of each.
    """

    sensitivity: Numbers
    block: Numbers
    pages: Numbers
    _last: dict[int, int] = field(default_factory=dict)
    _changes: list[Counter[int]] = field(default_factory=lambda: [Counter(), Counter()])
    _held: list[int] = field(default_factory=lambda: [0, 0])
    _peak: list[int] = field(default_factory=lambda: [0, 0])
    _unknown: int = 0

    @classmethod
    def of(cls, tables: SideTables, sensitive: Sensitive) -> PageblockCounter:
        """Prepare for a trace under a policy."""
        allocations = tables.allocations
        known = np.full(allocations.height + 1, _UNKNOWN, np.int64)
        known[tables.allocation_of_page] = sensitive.pages[: tables.pages.height]
        return cls(
            known[:-1],
            allocations["frame"].to_numpy().astype(np.int64) // PAGEBLOCK_PAGES,
            np.int64(1) << allocations["order"].to_numpy().astype(np.int64),
        )

    def feed(
        self,
        kind: npt.NDArray[np.uint8],
        arg: npt.NDArray[np.uint32],
        group: npt.NDArray[np.uint32] | None = None,
    ) -> None:
        """Count the allocations and frees among these events.

        :param group: The part of the recording that each belongs to.
        """
        rows = np.flatnonzero((kind == EventKind.PAGE_ALLOC) | (kind == EventKind.PAGE_FREE))
        groups = [0] * rows.size if group is None else group[rows].tolist()
        for row, part in zip(rows.tolist(), groups, strict=True):
            self._event(int(arg[row]), part, allocated=bool(kind[row] == EventKind.PAGE_ALLOC))

    def _event(self, allocation: int, group: int, *, allocated: bool) -> None:
        sensitivity = int(self.sensitivity[allocation])
        if sensitivity == _UNKNOWN:
            self._unknown += allocated
            return
        pages = int(self.pages[allocation])
        if not allocated:
            self._held[sensitivity] -= pages
            return
        self._held[sensitivity] += pages
        self._peak[sensitivity] = max(self._peak[sensitivity], self._held[sensitivity])
        first = int(self.block[allocation])
        for block in range(first, first + max(1, pages // PAGEBLOCK_PAGES)):
            if self._last.setdefault(block, sensitivity) != sensitivity:
                self._changes[sensitivity][group] += 1
                self._last[block] = sensitivity

    def result(self) -> PageblockConversions:
        """Return the bounds."""
        bounds = [
            Range(0, min(changes.total(), -(-peak // PAGEBLOCK_PAGES)), changes.total())
            for changes, peak in zip(self._changes, self._peak, strict=True)
        ]
        return PageblockConversions(bounds[1], bounds[0], self._unknown)

    def shares(self, groups: Sequence[int]) -> tuple[float, float]:
        """Return how much of the changes to sensitive, and of those to nonsensitive, is of some groups."""
        nonsensitive, sensitive = (
            sum(changes[group] for group in groups) / max(1, changes.total()) for changes in self._changes
        )
        return sensitive, nonsensitive
