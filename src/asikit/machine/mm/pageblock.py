"""Pageblocks: the unit of memory that has one migratetype and one sensitivity."""

from __future__ import annotations

from enum import IntEnum

PAGEBLOCK_ORDER = 9
"""`pageblock_order` on x86-64 with huge pages: 2 MiB, just what one entry of a PMD maps."""


class Migratetype(IntEnum):
    """How mobile a pageblock's pages are; values as in include/linux/mmzone.h without CMA and isolation."""

    UNMOVABLE = 0
    MOVABLE = 1
    RECLAIMABLE = 2
    HIGHATOMIC = 3
    """A reserve for atomic requests of higher orders; also `MIGRATE_PCPTYPES`, the number of types before it."""


MIGRATE_TYPES = 4
MIGRATE_PCPTYPES = 3
"""Types with per-CPU lists."""


class Pageblocks:
    """`pageblock_flags`: for each pageblock its migratetype and PB_nonsensitive.

    The sensitivity bit of all memory begins as 0, which is sensitive. With ASI off it is 1 for all and stays so.
    """

    def __init__(self, frames: int, order: int = PAGEBLOCK_ORDER, *, asi: bool = True) -> None:
        self.order = order
        self.frames = frames
        blocks = (frames + (1 << order) - 1) >> order
        self.migratetypes = bytearray([Migratetype.MOVABLE]) * blocks
        """By pageblock number. Memory starts as movable (`memmap_init_range()`)."""
        self.nonsensitive = bytearray([not asi]) * blocks
        """PB_nonsensitive by pageblock number, 0 or 1."""

    def __len__(self) -> int:
        return len(self.nonsensitive)

    def migratetype(self, pfn: int) -> int:
        """Return the migratetype of a page frame's block."""
        return self.migratetypes[pfn >> self.order]

    def set_migratetype(self, pfn: int, migratetype: int, frames: int = 1) -> None:
        """Set the migratetype of the blocks that `frames` page frames are in: `change_pageblock_range()`."""
        for block in range(pfn >> self.order, ((pfn + frames - 1) >> self.order) + 1):
            self.migratetypes[block] = migratetype

    def sensitive(self, pfn: int) -> bool:
        """Return whether a page frame's block is sensitive."""
        return not self.nonsensitive[pfn >> self.order]

    def set_sensitive(self, pfn: int, frames: int, *, sensitive: bool) -> None:
        """Set the sensitivity of whole blocks: `set_pageblock_sensitive()`."""
        for block in range(pfn >> self.order, (pfn + frames) >> self.order):
            self.nonsensitive[block] = not sensitive
