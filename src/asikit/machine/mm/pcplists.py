"""Per-CPU page lists (pcplists): free pages kept close to a CPU, refilled and drained in batches.

Sizes are those of `zone_batchsize()` and `zone_highsize()` in mm/page_alloc.c. 6.16 also adapts them to the load
(`pcp->alloc_factor`, `pcp->free_count`); here they are constant.
"""

from __future__ import annotations

from collections import deque

from asikit.machine.mm.freetype import NR_SENSITIVITIES
from asikit.machine.mm.layout import PAGE_SIZE
from asikit.machine.mm.pageblock import MIGRATE_PCPTYPES, MIGRATE_TYPES, PAGEBLOCK_ORDER, Migratetype

PAGE_ALLOC_COSTLY_ORDER = 3
HPAGE_PMD_ORDER = PAGEBLOCK_ORDER

NR_LOWORDER_PCP_LISTS = MIGRATE_PCPTYPES * (PAGE_ALLOC_COSTLY_ORDER + 1)
NR_PCP_THP = 2
"""Lists of huge pages: movable ones, and others."""
NR_PCP_LISTS_PER_SENSITIVITY = NR_LOWORDER_PCP_LISTS + NR_PCP_THP
NR_PCP_LISTS = NR_PCP_LISTS_PER_SENSITIVITY * NR_SENSITIVITIES


def pcp_allowed_order(order: int) -> bool:
    """Return whether blocks of an order go through the lists."""
    return order <= PAGE_ALLOC_COSTLY_ORDER or order == HPAGE_PMD_ORDER


def order_to_pindex(freetype: int, order: int) -> int:
    """Return the list of a freetype and an order. HIGHATOMIC has none; its pages must be freed as MOVABLE."""
    sensitive, migratetype = divmod(freetype, MIGRATE_TYPES)
    if migratetype >= MIGRATE_PCPTYPES or not pcp_allowed_order(order):
        raise ValueError(f"no per-CPU list for freetype {freetype}, order {order}")
    if order > PAGE_ALLOC_COSTLY_ORDER:
        pindex = NR_LOWORDER_PCP_LISTS + (migratetype == Migratetype.MOVABLE)
    else:
        pindex = MIGRATE_PCPTYPES * order + migratetype
    return NR_PCP_LISTS_PER_SENSITIVITY * sensitive + pindex


def pindex_to_order(pindex: int) -> int:
    """Return the order of the blocks on a list."""
    pindex %= NR_PCP_LISTS_PER_SENSITIVITY
    return HPAGE_PMD_ORDER if pindex >= NR_LOWORDER_PCP_LISTS else pindex // MIGRATE_PCPTYPES


def pindex_sensitive(pindex: int) -> bool:
    """Return whether the blocks on a list are sensitive."""
    return pindex >= NR_PCP_LISTS_PER_SENSITIVITY


PINDEX_ORDER = tuple(pindex_to_order(pindex) for pindex in range(NR_PCP_LISTS))
"""`pindex_to_order` as a table."""

PINDEX = tuple(
    tuple(
        order_to_pindex(freetype, order)
        if pcp_allowed_order(order) and freetype % MIGRATE_TYPES < MIGRATE_PCPTYPES
        else -1
        for freetype in range(NR_SENSITIVITIES * MIGRATE_TYPES)
    )
    for order in range(HPAGE_PMD_ORDER + 1)
)
"""`order_to_pindex` as a table, by order and freetype; -1 where there is no list."""


def zone_batchsize(managed_pages: int) -> int:
    """Return how many pages move at once between a per-CPU list and the zone: about 1/4096 of it."""
    batch = max(min(managed_pages >> 10, (1 << 20) // PAGE_SIZE) // 4, 1)
    return max((1 << (batch + batch // 2).bit_length() - 1) - 1, 1)


def zone_highsize(batch: int, low_watermark: int, cpus: int) -> int:
    """Return how many pages a CPU's lists may hold: all CPUs' together as many as the low watermark."""
    return max(low_watermark // cpus, batch * 4)


class PerCpuPages:
    """`struct per_cpu_pages`: one CPU's lists of one zone. A list's head is the deque's right end."""

    __slots__ = ("batch", "count", "high", "lists")

    def __init__(self, batch: int, high: int) -> None:
        self.batch = batch
        self.high = high
        self.count = 0
        """Page frames on all lists."""
        self.lists: tuple[deque[int], ...] = tuple(deque() for _ in range(NR_PCP_LISTS))

    def take_coldest(self, count: int, pindex: int) -> list[tuple[int, int]]:
        """Remove blocks with `count` frames in all: the order of `free_pcppages_bulk()`.

        The list `pindex` comes first, then the others in turn. Returns first frames and orders.
        """
        taken = []
        count = min(count, self.count)
        while count > 0:
            blocks = self.lists[pindex]
            while count > 0 and blocks:
                order = PINDEX_ORDER[pindex]
                taken.append((blocks.popleft(), order))
                self.count -= 1 << order
                count -= 1 << order
            pindex = (pindex + 1) % NR_PCP_LISTS
        return taken
