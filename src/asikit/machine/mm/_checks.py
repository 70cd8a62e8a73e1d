"""What must hold of the page allocator between any two of its steps (I6), checked from the lists and tables alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.mm.buddy import NOT_BUDDY, FrameTable, Zone
from asikit.machine.mm.errors import FreelistError, UnexpectedlyNonsensitiveError, UnexpectedlySensitiveError
from asikit.machine.mm.freetype import freetype_sensitive
from asikit.machine.mm.pcplists import PINDEX_ORDER, pindex_sensitive

if TYPE_CHECKING:
    from asikit.machine.mm.allocator import PageAllocator


def check_lists(allocator: PageAllocator) -> None:
    """Every free frame is on exactly one list, of its block's sensitivity, and no other frame is on any.

    Raises FreelistError for the first contradiction.
    """
    table = allocator.table
    where = bytearray(table.frames)
    for zone, pcps in zip(allocator.zones, allocator.pcp, strict=True):
        _check_zone(zone, where)
        for pcp in pcps:
            count = 0
            for pindex, blocks in enumerate(pcp.lists):
                order = PINDEX_ORDER[pindex]
                for pfn in blocks:
                    _occupy(where, pfn, order, "per-CPU list")
                    if allocator.asi and allocator.pageblocks.sensitive(pfn) != pindex_sensitive(pindex):
                        raise FreelistError(pfn, f"on per-CPU list {pindex}, which is of the other sensitivity")
                    count += 1 << order
            if count != pcp.count:
                raise FreelistError(zone.start_pfn, f"per-CPU lists hold {count} frames, counted {pcp.count}")
    for pfn, order in allocator.flipping.items():
        _occupy(where, pfn, order, "change of sensitivity")
    for pfn in range(table.frames):
        free = table.state[pfn] == FrameTable.FREE
        if free != bool(where[pfn]):
            raise FreelistError(pfn, "free, but on no list" if free else "on a free list, but not free")
    _check_allocations(table)


def _check_zone(zone: Zone, where: bytearray) -> None:
    total = 0
    for order, area in enumerate(zone.free_area):
        for freetype, blocks in enumerate(area.free_list):
            for pfn in blocks:
                _occupy(where, pfn, order, zone.name)
                _check_block(zone, pfn, order, freetype)
        nr_free = sum(map(len, area.free_list))
        if nr_free != area.nr_free:
            raise FreelistError(zone.start_pfn, f"order {order} has {nr_free} blocks, counted {area.nr_free}")
        total += nr_free << order
    if total != zone.free_pages:
        raise FreelistError(zone.start_pfn, f"zone {zone.name} has {total} free frames, counted {zone.free_pages}")
    heads = zone.end_pfn - zone.start_pfn - zone.table.buddy_order[zone.start_pfn : zone.end_pfn].count(NOT_BUDDY)
    if heads != sum(area.nr_free for area in zone.free_area):
        raise FreelistError(zone.start_pfn, f"zone {zone.name} has {heads} frames marked as heads of free blocks")


def _check_block(zone: Zone, pfn: int, order: int, freetype: int) -> None:
    """One free block: alignment, zone, mark, freetype of all its pageblocks, and that it is merged with its buddy."""
    buddy_order = zone.table.buddy_order
    if pfn & (1 << order) - 1 or not zone.start_pfn <= pfn <= zone.end_pfn - (1 << order):
        raise FreelistError(pfn, f"no block of order {order} of zone {zone.name}")
    if buddy_order[pfn] != order:
        raise FreelistError(pfn, f"on the list of order {order}, marked {buddy_order[pfn]}")
    for frame in range(pfn, pfn + (1 << order), 1 << zone.pageblock_order):
        if zone.freetype(frame) != freetype:
            raise FreelistError(frame, f"on the list of freetype {freetype}, its pageblock is {zone.freetype(frame)}")
    buddy = pfn ^ 1 << order
    if order < zone.pageblock_order and buddy + (1 << order) <= zone.end_pfn and buddy_order[buddy] == order:
        raise FreelistError(pfn, "free, and its buddy is as well, but they are not merged")


def _occupy(where: bytearray, pfn: int, order: int, what: str) -> None:
    end = pfn + (1 << order)
    if any(where[pfn:end]) or end > len(where):
        raise FreelistError(pfn, f"in two places, one of them: {what}")
    where[pfn:end] = b"\1" * (end - pfn)


def _check_allocations(table: FrameTable) -> None:
    """The frames inside an allocation are its tails, and there are no others."""
    pfn = 0
    tails = {FrameTable.ALLOCATED: FrameTable.TAIL, FrameTable.ALLOCATED_MOVABLE: FrameTable.TAIL_MOVABLE}
    while pfn < table.frames:
        state = table.state[pfn]
        if state in {FrameTable.TAIL, FrameTable.TAIL_MOVABLE}:
            raise FreelistError(pfn, "inside an allocation that has no first frame")
        frames = 1
        if state in tails:
            frames = 1 << table.alloc_order[pfn]
            if table.state[pfn + 1 : pfn + frames] != bytes([tails[state]]) * (frames - 1):
                raise FreelistError(pfn, f"not all of its {frames} frames are its own")
        pfn += frames


def check_mappings(allocator: PageAllocator) -> None:
    """A frame is in the restricted direct map if and only if its block is nonsensitive and the frame has a mapping.

    Blocks that are changing just now may be either. Raises UnexpectedlyNonsensitiveError or UnexpectedlySensitiveError.
    """
    direct_map = allocator.direct_map
    if direct_map.nonsensitive_pgd is None:
        return
    changing = {frame for pfn, order in allocator.flipping.items() for frame in range(pfn, pfn + (1 << order))}
    pfn = 0
    while pfn < direct_map.frames:
        unrestricted, size = direct_map.walk(direct_map.pgd, pfn)
        restricted, restricted_size = direct_map.walk(direct_map.nonsensitive_pgd, pfn)
        wanted = unrestricted and not allocator.pageblocks.sensitive(pfn)
        if pfn not in changing and restricted != wanted:
            if restricted:
                raise UnexpectedlyNonsensitiveError(pfn)
            if pfn not in direct_map.removed:
                raise UnexpectedlySensitiveError(pfn)
        pfn += min(size, restricted_size, 1 << allocator.pageblocks.order)


def check_allocator(allocator: PageAllocator) -> None:
    """Check lists and mappings, and that no list mixes sensitivities with ASI off."""
    check_lists(allocator)
    check_mappings(allocator)
    if not allocator.asi:
        for zone in allocator.zones:
            for area in zone.free_area:
                for freetype, blocks in enumerate(area.free_list):
                    if blocks and freetype_sensitive(freetype):
                        raise FreelistError(next(iter(blocks)), "sensitive, with ASI off")
