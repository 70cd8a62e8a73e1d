"""The buddy allocator of one zone: free lists by order and freetype, merging, and fallbacks between migratetypes.

Behaviour as mm/page_alloc.c of 6.16 has it, with `freetype_t` as in "mm: ASI direct map management". Every function
here runs without reaching modelled memory, so no other CPU can come between: it needs no lock of its own. The lists are
Python objects; only what they are about, the pages, is in modelled memory.
"""

from __future__ import annotations

from asikit.machine.mm.errors import FreelistError
from asikit.machine.mm.freetype import FALLBACKS, NR_FREETYPES, can_merge_freetypes
from asikit.machine.mm.pageblock import MIGRATE_PCPTYPES, MIGRATE_TYPES, Migratetype, Pageblocks

MAX_ORDER = 10
"""The largest order, inclusive (`MAX_PAGE_ORDER`): 4 MiB."""

NOT_BUDDY = 0xFF


class FrameTable:
    """What is known of every page frame, whichever zone it is in; one byte each."""

    FREE = 0
    ALLOCATED = 1
    """The first frame of an allocation."""
    ALLOCATED_MOVABLE = 2
    TAIL = 3
    """Another frame of an allocation."""
    TAIL_MOVABLE = 4
    RESERVED = 5
    """Never given to the allocator."""

    def __init__(self, pageblocks: Pageblocks) -> None:
        self.pageblocks = pageblocks
        self.frames = pageblocks.frames
        self.state = bytearray([self.RESERVED]) * self.frames
        self.buddy_order = bytearray([NOT_BUDDY]) * self.frames
        """The order of the free block that begins at a frame and is on a free list of a zone (PageBuddy)."""
        self.alloc_order = bytearray(self.frames)
        """The order that an allocation beginning at a frame was made with."""


class FreeArea:
    """`struct free_area`: the free blocks of one order. A list is a dict of first frames; its head is the last item."""

    __slots__ = ("free_list", "nr_free")

    def __init__(self) -> None:
        self.free_list: list[dict[int, None]] = [{} for _ in range(NR_FREETYPES)]
        self.nr_free = 0


class Zone:
    """`struct zone`: the frames from `start_pfn` up to but not including `end_pfn`.

    :ivar free_pages: Frames on its free lists; what per-CPU lists hold does not count.
    :ivar managed_pages: Frames that were given to it at boot.
    :ivar nr_reserved_highatomic: Frames in HIGHATOMIC blocks.
    :ivar claims: Pageblocks that changed migratetype to satisfy a request of another.
    :ivar steals: Pages taken from a block of another migratetype without that.
    """

    def __init__(self, name: str, start_pfn: int, end_pfn: int, table: FrameTable, max_order: int = MAX_ORDER) -> None:
        self.name = name
        self.start_pfn = start_pfn
        self.end_pfn = end_pfn
        self.table = table
        self.pageblocks = table.pageblocks
        self.pageblock_order = table.pageblocks.order
        self.max_order = max_order
        self.free_area = [FreeArea() for _ in range(max_order + 1)]
        self.free_pages = 0
        self.managed_pages = 0
        self.nr_reserved_highatomic = 0
        self.claims = 0
        self.steals = 0
        self.watermark_min = 0
        self.watermark_low = 0
        self._buddy_order = table.buddy_order

    def freetype(self, pfn: int) -> int:
        """Return the freetype of a frame's block: the list that the frame goes to when it is free."""
        block = pfn >> self.pageblock_order
        blocks = self.pageblocks
        return blocks.migratetypes[block] + (0 if blocks.nonsensitive[block] else MIGRATE_TYPES)

    def free_of(self, *, sensitive: bool) -> int:
        """Return how many of the free frames are of one sensitivity."""
        first = MIGRATE_TYPES if sensitive else 0
        return sum(
            sum(map(len, area.free_list[first : first + MIGRATE_TYPES])) << order
            for order, area in enumerate(self.free_area)
        )

    # Lists.

    def add_to_free_list(self, pfn: int, order: int, freetype: int) -> None:
        """`__add_to_free_list()`: at the head."""
        area = self.free_area[order]
        area.free_list[freetype][pfn] = None
        area.nr_free += 1
        self._buddy_order[pfn] = order
        self.free_pages += 1 << order

    def del_from_free_list(self, pfn: int, order: int, freetype: int) -> None:
        """`__del_page_from_free_list()`; FreelistError if it is not there."""
        area = self.free_area[order]
        try:
            del area.free_list[freetype][pfn]
        except KeyError:
            raise FreelistError(pfn, f"not on the free list of order {order}, freetype {freetype}") from None
        area.nr_free -= 1
        self._buddy_order[pfn] = NOT_BUDDY
        self.free_pages -= 1 << order

    def move_to_free_list(self, pfn: int, order: int, old: int, new: int) -> None:
        """`move_to_free_list()`: from one freetype's list to another's."""
        area = self.free_area[order]
        try:
            del area.free_list[old][pfn]
        except KeyError:
            raise FreelistError(pfn, f"not on the free list of order {order}, freetype {old}") from None
        area.free_list[new][pfn] = None

    def can_merge(self, one: int, other: int) -> bool:
        """Whether blocks of two freetypes may become one."""
        return can_merge_freetypes(one, other)

    def free_one_page(self, pfn: int, order: int) -> None:
        """Put a block on the list of its pageblock, merged with its buddies: `__free_one_page()`."""
        freetype = self.freetype(pfn)
        buddy_order = self._buddy_order
        while order < self.max_order:
            buddy = pfn ^ 1 << order
            if buddy < self.start_pfn or buddy + (1 << order) > self.end_pfn or buddy_order[buddy] != order:
                break
            buddy_freetype = freetype
            if order >= self.pageblock_order:
                buddy_freetype = self.freetype(buddy)
                if not self.can_merge(freetype, buddy_freetype):
                    break
            self.del_from_free_list(buddy, order, buddy_freetype)
            if buddy_freetype != freetype:
                self.pageblocks.set_migratetype(buddy, freetype % MIGRATE_TYPES, 1 << order)
            pfn &= buddy
            order += 1
        self.add_to_free_list(pfn, order, freetype)

    # Taking.

    def expand(self, pfn: int, low: int, high: int, freetype: int) -> None:
        """Give back what of a block of order `high` is not needed for one of order `low`: `expand()`."""
        while high > low:
            high -= 1
            self.add_to_free_list(pfn + (1 << high), high, freetype)

    def _take(self, pfn: int, low: int, high: int, freetype: int) -> int:
        self.del_from_free_list(pfn, high, freetype)
        self.expand(pfn, low, high, freetype)
        return pfn

    def rmqueue_smallest(self, order: int, freetype: int) -> int | None:
        """Take from the smallest block of a freetype that is large enough: `__rmqueue_smallest()`."""
        for current in range(order, self.max_order + 1):
            blocks = self.free_area[current].free_list[freetype]
            if blocks:
                return self._take(next(reversed(blocks)), order, current, freetype)
        return None

    def rmqueue(self, order: int, freetype: int, *, nofragment: bool = False) -> int | None:
        """Take a block, from another migratetype's if need be, never from the other sensitivity's: `__rmqueue()`."""
        pfn = self.rmqueue_smallest(order, freetype)
        if pfn is None:
            pfn = self.rmqueue_claim(order, freetype, nofragment=nofragment)
        if pfn is None and not nofragment:
            pfn = self.rmqueue_steal(order, freetype)
        return pfn

    def find_suitable_fallback(self, order: int, freetype: int) -> int | None:
        """Return the freetype of the same sensitivity whose list of this order is the first choice, None if empty."""
        area = self.free_area[order]
        if not area.nr_free:
            return None
        sensitivity = freetype - freetype % MIGRATE_TYPES
        for migratetype in FALLBACKS[freetype % MIGRATE_TYPES]:
            if area.free_list[sensitivity + migratetype]:
                return sensitivity + migratetype
        return None

    def should_try_claim_block(self, order: int, migratetype: int) -> bool:
        """Whether a request falling back takes over whole pageblocks: large blocks, or unmovable in a movable one."""
        return order >= self.pageblock_order // 2 or migratetype in {Migratetype.RECLAIMABLE, Migratetype.UNMOVABLE}

    def rmqueue_claim(self, order: int, freetype: int, *, nofragment: bool = False) -> int | None:
        """Take from another migratetype by converting the whole pageblock: `__rmqueue_claim()`.

        The largest free block is tried first, as its pageblock is likely to have most free.
        """
        lowest = max(order, self.pageblock_order) if nofragment else order
        for current in range(self.max_order, lowest - 1, -1):
            if not self.should_try_claim_block(current, freetype % MIGRATE_TYPES):
                break
            fallback = self.find_suitable_fallback(current, freetype)
            if fallback is None:
                continue
            pfn = next(reversed(self.free_area[current].free_list[fallback]))
            taken = self._try_to_claim_block(pfn, current, order, freetype, fallback)
            if taken is not None:
                self.claims += 1
                return taken
        return None

    def _try_to_claim_block(self, pfn: int, current: int, order: int, freetype: int, fallback: int) -> int | None:
        """`try_to_claim_block()`: whole blocks at once, parts if half of the block is free or alike then."""
        migratetype = freetype % MIGRATE_TYPES
        if current >= self.pageblock_order:
            self.del_from_free_list(pfn, current, fallback)
            self.pageblocks.set_migratetype(pfn, migratetype, 1 << current)
            self.expand(pfn, order, current, freetype)
            return pfn
        start = pfn & -(1 << self.pageblock_order)
        if not self._is_whole(start):
            return None
        free, movable = self._count_block(start)
        if migratetype == Migratetype.MOVABLE:
            alike = movable
        elif fallback % MIGRATE_TYPES == Migratetype.MOVABLE:
            alike = (1 << self.pageblock_order) - free - movable
        else:
            alike = 0
        if free + alike < 1 << self.pageblock_order - 1:
            return None
        self.move_freepages_block(start, fallback, freetype)
        return self.rmqueue_smallest(order, freetype)

    def rmqueue_steal(self, order: int, freetype: int) -> int | None:
        """Take the smallest block of another migratetype, leaving the pageblock its type: `__rmqueue_steal()`."""
        for current in range(order, self.max_order + 1):
            fallback = self.find_suitable_fallback(current, freetype)
            if fallback is not None:
                self.steals += 1
                pfn = next(reversed(self.free_area[current].free_list[fallback]))
                return self._take(pfn, order, current, fallback)
        return None

    # Pageblocks.

    def _is_whole(self, start: int) -> bool:
        """Whether a pageblock is all in this zone."""
        return self.start_pfn <= start and start + (1 << self.pageblock_order) <= self.end_pfn

    def _count_block(self, start: int) -> tuple[int, int]:
        """Return how many frames of a pageblock are free, and allocated movable ones."""
        frames = 1 << self.pageblock_order
        orders = self._buddy_order[start : start + frames]
        free = sum(orders.count(order) << order for order in range(self.pageblock_order))
        state = self.table.state[start : start + frames]
        return free, state.count(FrameTable.ALLOCATED_MOVABLE) + state.count(FrameTable.TAIL_MOVABLE)

    def move_freepages_block(self, start: int, old: int, new: int) -> None:
        """Move a pageblock's free pages to another migratetype, and the block: `__move_freepages_block()`."""
        pfn, end = start, start + (1 << self.pageblock_order)
        while pfn < end:
            order = self._buddy_order[pfn]
            if order == NOT_BUDDY:
                pfn += 1
                continue
            self.move_to_free_list(pfn, order, old, new)
            pfn += 1 << order
        self.pageblocks.set_migratetype(start, new % MIGRATE_TYPES)

    def reserve_highatomic_pageblock(self, pfn: int, order: int) -> None:
        """Keep an atomic allocation's pageblock for more of them: 1% of the zone, if that is a pageblock at least."""
        frames = 1 << self.pageblock_order
        one_percent = self.managed_pages // 100
        if one_percent < frames or self.nr_reserved_highatomic >= (one_percent + frames - 1) & -frames:
            return
        freetype = self.freetype(pfn)
        if freetype % MIGRATE_TYPES >= MIGRATE_PCPTYPES:
            return
        new = freetype - freetype % MIGRATE_TYPES + Migratetype.HIGHATOMIC
        if order >= self.pageblock_order:
            self.pageblocks.set_migratetype(pfn, Migratetype.HIGHATOMIC, 1 << order)
            self.nr_reserved_highatomic += 1 << order
        elif self._is_whole(pfn & -frames):
            self.move_freepages_block(pfn & -frames, freetype, new)
            self.nr_reserved_highatomic += frames

    def unreserve_highatomic_pageblock(self, migratetype: int, *, force: bool = False) -> bool:
        """Give one reserved pageblock to a migratetype when memory is short; True if there was one.

        The last one is kept unless `force`. It keeps its sensitivity.
        """
        frames = 1 << self.pageblock_order
        if not force and self.nr_reserved_highatomic <= frames:
            return False
        for area in self.free_area:
            for freetype in range(Migratetype.HIGHATOMIC, NR_FREETYPES, MIGRATE_TYPES):
                if area.free_list[freetype]:
                    self._unreserve(next(reversed(area.free_list[freetype])), freetype, migratetype)
                    return True
        return False

    def _unreserve(self, pfn: int, freetype: int, migratetype: int) -> None:
        new = freetype - Migratetype.HIGHATOMIC + migratetype
        order = self._buddy_order[pfn]
        if order < self.pageblock_order:
            self.move_freepages_block(pfn & -(1 << self.pageblock_order), freetype, new)
            self.nr_reserved_highatomic -= 1 << self.pageblock_order
        else:
            self.move_to_free_list(pfn, order, freetype, new)
            self.pageblocks.set_migratetype(pfn, migratetype, 1 << order)
            self.nr_reserved_highatomic -= 1 << order
