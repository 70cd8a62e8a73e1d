"""The zones of a machine: DMA32 (below 4 GiB) and NORMAL, their watermarks and per-CPU lists.

There is no ZONE_DMA, as with CONFIG_ZONE_DMA=n: GFP_DMA means nothing then. ZONE_HIGHMEM and ZONE_MOVABLE are empty
on 64 bits.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING

from asikit.machine.mm._requests import HIGHATOMIC, MIN_RESERVE, NOBLOCK
from asikit.machine.mm.buddy import FrameTable, Zone
from asikit.machine.mm.layout import PAGE_SIZE
from asikit.machine.mm.pageblock import MIGRATE_PCPTYPES, MIGRATE_TYPES, Migratetype
from asikit.machine.mm.pcplists import PerCpuPages, zone_batchsize, zone_highsize

if TYPE_CHECKING:
    from collections.abc import Iterable

DMA32_END = 1 << 20
"""The first page frame above 4 GiB."""

LOWMEM_RESERVE_RATIO = 256
"""`sysctl_lowmem_reserve_ratio` of ZONE_DMA32."""
WATERMARK_SCALE_FACTOR = 10
"""`watermark_scale_factor`, in 1/10,000 of a zone."""
MIN_FREE_KBYTES = (128, 262_144)
"""Bounds of `min_free_kbytes` (`calculate_min_free_kbytes()`)."""


class Zones:
    """All zones, from the lowest addresses up, with each CPU's lists.

    :ivar zones: The zones that have frames; the last is where a request without limits begins.
    :ivar pcp: By zone, by CPU.
    :ivar lowmem_reserve: By zone, by the highest zone of a request: frames kept for those that can use no other.
    """

    def __init__(self, table: FrameTable, free: Iterable[range], cpus: int, max_order: int, dma32_end: int) -> None:
        if dma32_end & (1 << max_order) - 1:
            raise ValueError(f"zones meet at a multiple of {1 << max_order} frames, not at {dma32_end:#x}")
        self.table = table
        bounds = [("DMA32", 0, min(dma32_end, table.frames)), ("Normal", dma32_end, table.frames)]
        self.zones = tuple(Zone(name, start, end, table, max_order) for name, start, end in bounds if start < end)
        for frames in free:
            self._free_core(frames)
        self._set_watermarks()
        managed = [zone.managed_pages for zone in self.zones]
        self.lowmem_reserve = tuple(
            tuple(sum(managed[index + 1 : highest + 1]) // LOWMEM_RESERVE_RATIO for highest in range(len(managed)))
            for index in range(len(managed))
        )
        self.pcp = tuple(tuple(_per_cpu_pages(zone, cpus) for _ in range(cpus)) for zone in self.zones)

    def index_of(self, pfn: int) -> int:
        """Return the number of the zone that a frame is in."""
        return len(self.zones) - 1 if pfn >= self.zones[-1].start_pfn else 0

    def _free_core(self, frames: range) -> None:
        """Give free frames to their zones, in the largest aligned blocks: `__free_memory_core()`."""
        pfn, end = frames.start, frames.stop
        while pfn < end:
            zone = self.zones[self.index_of(pfn)]
            limit = min(end, zone.end_pfn)
            order = min(zone.max_order, (pfn & -pfn).bit_length() - 1 if pfn else zone.max_order)
            while pfn + (1 << order) > limit:
                order -= 1
            self.table.state[pfn : pfn + (1 << order)] = bytes([FrameTable.FREE]) * (1 << order)
            zone.free_one_page(pfn, order)
            zone.managed_pages += 1 << order
            pfn += 1 << order

    def _set_watermarks(self) -> None:
        """`init_per_zone_wmark_min()` and `__setup_per_zone_wmarks()`."""
        managed = sum(zone.managed_pages for zone in self.zones)
        kbytes = isqrt(managed * (PAGE_SIZE >> 10) * 16)
        pages = min(max(kbytes, MIN_FREE_KBYTES[0]), MIN_FREE_KBYTES[1]) // (PAGE_SIZE >> 10)
        for zone in self.zones:
            zone.watermark_min = pages * zone.managed_pages // max(managed, 1)
            gap = max(zone.watermark_min // 4, zone.managed_pages * WATERMARK_SCALE_FACTOR // 10_000)
            zone.watermark_low = zone.watermark_min + gap

    def watermark_ok(  # noqa: PLR0917 - the kernel's own signature
        self, index: int, order: int, freetype: int, mark: int, highest: int, flags: int
    ) -> bool:
        """Whether a zone may give a block and keep its reserves: `__zone_watermark_ok()`."""
        zone = self.zones[index]
        free = zone.free_pages - (1 << order) + 1
        if flags & (MIN_RESERVE | NOBLOCK):
            if flags & MIN_RESERVE:
                mark -= mark // 2
                if flags & NOBLOCK:
                    mark -= mark // 4
        else:
            free -= zone.nr_reserved_highatomic
        if free <= mark + self.lowmem_reserve[index][highest]:
            return False
        return order == 0 or _has_block(zone, order, freetype, flags)


def _has_block(zone: Zone, order: int, freetype: int, flags: int) -> bool:
    """Whether a block that is large enough can be had: of this sensitivity, or of the other if that may change."""
    own = freetype - freetype % MIGRATE_TYPES
    other = MIGRATE_TYPES - own
    for current in range(order, zone.max_order + 1):
        area = zone.free_area[current]
        if not area.nr_free:
            continue
        if any(area.free_list[own : own + MIGRATE_PCPTYPES]):
            return True
        if flags & HIGHATOMIC and area.free_list[own + Migratetype.HIGHATOMIC]:
            return True
        may_change = not flags & NOBLOCK and current >= zone.pageblock_order
        if may_change and any(area.free_list[other : other + MIGRATE_PCPTYPES]):
            return True
    return False


def _per_cpu_pages(zone: Zone, cpus: int) -> PerCpuPages:
    batch = zone_batchsize(zone.managed_pages)
    return PerCpuPages(batch, zone_highsize(batch, zone.watermark_low, cpus))
