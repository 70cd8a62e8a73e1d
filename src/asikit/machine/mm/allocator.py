"""The page allocator: per-CPU lists over buddy zones, with a free list for each migratetype and sensitivity.

mm/page_alloc.c of 6.16 with "mm: ASI direct map management" (Sep 2025). The restricted direct map says at any moment
what the lists say: memory moves between sensitivities by whole pageblocks, only here, in `_rmqueue_asi`.

The allocator's own data (`struct page`, free lists) are Python objects and not in modelled memory, for speed: its
doings touch modelled memory only to clear pages and to edit the direct map. Left out: NUMA, compaction, swap, the OOM
killer, CMA, page isolation and memory hotplug.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.mm._checks import check_allocator
from asikit.machine.mm._observing import AllocatorCounters, AllocatorObserver
from asikit.machine.mm._requests import HIGHATOMIC, NOBLOCK, NOFRAGMENT, AllocationRequest, RequestClass, classify
from asikit.machine.mm._zones import DMA32_END, Zones
from asikit.machine.mm.buddy import MAX_ORDER, FrameTable, Zone
from asikit.machine.mm.errors import (
    DoubleFreeError,
    MightSleepError,
    NotDirectMappedError,
    OutOfMemoryError,
    StillInUseError,
    UnexpectedlyNonsensitiveError,
    UnexpectedlySensitiveError,
    UnmappedPageError,
    WrongOrderError,
)
from asikit.machine.mm.freetype import freetype_sensitive
from asikit.machine.mm.gfp import Gfp
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE
from asikit.machine.mm.page import Page
from asikit.machine.mm.pageblock import MIGRATE_PCPTYPES, MIGRATE_TYPES, Migratetype
from asikit.machine.mm.pcplists import (
    HPAGE_PMD_ORDER,
    PAGE_ALLOC_COSTLY_ORDER,
    PINDEX,
)
from asikit.machine.mm.text import kernel_function
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.context import Context
    from asikit.machine.mm.directmap import DirectMap

MAX_RECLAIM_RETRIES = 16

_ZERO_PAGE = bytes(PAGE_SIZE)
_NO_FLAGS = Gfp(0)


class PageAllocator:
    """Hands out page frames.

    :param access: How it clears pages.
    :param direct_map: Built, all sensitive; with its pageblocks.
    :param free: The frames that nobody reserved at boot (`Memblock.free_ranges`).
    :param context: The running CPU.
    :param cpus: Number of CPUs, each with lists of its own.
    :param debug: Check the mappings of each block at allocation and free, by a walk.
    :param sensitivity: Decides whether a request's memory is sensitive; None: if it has `Gfp.SENSITIVE`.
    :param allocated_by: Returns the name of the function that allocates, for `sensitivity`.
    :param dma32_end: The first frame of the NORMAL zone.
    """

    def __init__(
        self,
        access: KernelMemory,
        direct_map: DirectMap,
        free: Iterable[range],
        context: Context,
        *,
        cpus: int = 1,
        debug: bool = False,
        sensitivity: Callable[[AllocationRequest], bool] | None = None,
        allocated_by: Callable[[], str] | None = None,
        max_order: int = MAX_ORDER,
        dma32_end: int = DMA32_END,
    ) -> None:
        self.access = access
        self.direct_map = direct_map
        self.context = context
        self.asi = direct_map.nonsensitive_pgd is not None
        self.debug = debug
        self.sensitivity = sensitivity
        self.allocated_by = allocated_by
        self.observers: list[AllocatorObserver] = []
        self.reclaimers: list[Callable[[int], int]] = []
        """Called when memory is short and the caller may block, with the order wanted; each returns frames freed."""
        self.counters = AllocatorCounters()
        self.pageblocks = direct_map.pageblocks
        self.table = FrameTable(self.pageblocks)
        self._zones = Zones(self.table, free, cpus, max_order, dma32_end)
        self.zones = self._zones.zones
        self.pcp = self._zones.pcp
        self.flipping: dict[int, int] = {}
        """Blocks on their way between sensitivities, on no list: order by first frame."""
        self.cpus = cpus
        self.max_order = max_order
        self._requests: dict[int, RequestClass] = {}
        self._pages: list[Page | None] = [None] * self.table.frames
        self._reserved = Page(-1, kind=PageKind.RESERVED)
        self._single_zone = len(self.zones) == 1

    # Allocation.

    @kernel_function("__alloc_pages")
    def alloc_pages(
        self, gfp: Gfp, order: int = 0, *, kind: PageKind = PageKind.KERNEL, cache: str | None = None
    ) -> int:
        """Return the first of ``1 << order`` page frames, aligned to that.

        `Gfp.ZERO` has them cleared. `kind` and `cache` say what for. Raises OutOfMemoryError.
        """
        request = self._requests.get(int(gfp)) or self._classify(gfp)
        freetype = self._freetype(request, kind, cache)
        if self.debug:
            self._might_alloc(request)
        pfn = self._get_page_from_freelist(order, freetype, request)
        if pfn is None:
            pfn = self._alloc_slowpath(order, freetype, request)
        self._prep_new_page(pfn, order, request, kind, cache)
        if self.debug:
            self._check_mapping(pfn, order, sensitive=freetype_sensitive(freetype))
        elif self.pageblocks.sensitive(pfn) != (freetype >= MIGRATE_TYPES):
            self.counters.bad_pages += 1
        if request.zero:
            for frame in range(pfn, pfn + (1 << order)):
                self.clear_page(frame)
        for observer in self.observers:
            observer.on_alloc(pfn, order, gfp, request.migratetype)
        return pfn

    def _classify(self, gfp: Gfp) -> RequestClass:
        request = classify(gfp, len(self.zones) - 1)
        self._requests[int(gfp)] = request
        return request

    def _freetype(self, request: RequestClass, kind: PageKind, cache: str | None) -> int:
        """Return the freetype of a request: `gfp_freetype()`, with the policy's decision in place of the flag."""
        if not self.asi:
            return request.migratetype
        sensitive = request.sensitive
        if self.sensitivity is not None:
            caller = self.allocated_by() if self.allocated_by is not None else ""
            sensitive = self.sensitivity(AllocationRequest(request.gfp, kind, cache, caller))
        return request.migratetype + (MIGRATE_TYPES if sensitive else 0)

    def _might_alloc(self, request: RequestClass) -> None:
        if not request.fast_flags & NOBLOCK and not self.context.may_block:
            raise MightSleepError(f"cpu {self.context.cpu_number}: a request that may block where that is forbidden")

    def _get_page_from_freelist(self, order: int, freetype: int, request: RequestClass) -> int | None:
        """The first attempt, with the low watermark: `get_page_from_freelist()`."""
        flags = request.fast_flags
        if self._single_zone:
            # The common case, at little cost; `_zones.watermark_ok` says the same.
            zone = self.zones[0]
            if order == 0 and zone.free_pages - zone.nr_reserved_highatomic > zone.watermark_low:
                return self._rmqueue(0, order, freetype, flags)
        elif request.highest_zone == 1:
            pfn = self._try_zones(order, freetype, request, flags | NOFRAGMENT, low=True)
            if pfn is not None:
                return pfn
        return self._try_zones(order, freetype, request, flags, low=True)

    def _try_zones(self, order: int, freetype: int, request: RequestClass, flags: int, *, low: bool) -> int | None:
        """Try the zones from the request's highest down; `low`: keep to the low watermark, else to the minimum."""
        highest = request.highest_zone
        for index in range(highest, -1, -1):
            zone = self.zones[index]
            mark = zone.watermark_low if low else zone.watermark_min
            if not self._zones.watermark_ok(index, order, freetype, mark, highest, flags):
                continue
            pfn = self._rmqueue(index, order, freetype, flags)
            if pfn is not None:
                if flags & HIGHATOMIC:
                    zone.reserve_highatomic_pageblock(pfn, order)
                return pfn
        return None

    def _alloc_slowpath(self, order: int, freetype: int, request: RequestClass) -> int:
        """Use reserves, then reclaim if the caller may block: `__alloc_pages_slowpath()`. There is no OOM killer."""
        flags = request.slow_flags
        if request.highatomic and order > 0:
            flags |= HIGHATOMIC
        pfn = self._try_zones(order, freetype, request, flags, low=False)
        retries = 0 if flags & NOBLOCK or order > self.max_order else MAX_RECLAIM_RETRIES
        while pfn is None and retries:
            progress = self._direct_reclaim(order, request, force=retries == 1)
            pfn = self._try_zones(order, freetype, request, flags, low=False)
            # No progress: one more attempt with the last reserve, as `should_reclaim_retry()`.
            retries = retries - 1 if progress else min(retries - 1, 1)
        if pfn is None:
            self.counters.failures += 1
            raise OutOfMemoryError(self._describe_failure(order, freetype, request), order)
        return pfn

    def _direct_reclaim(self, order: int, request: RequestClass, *, force: bool) -> int:
        """Have caches give memory back, and what is on CPUs' lists and reserved; return frames that came back."""
        progress = sum(reclaim(order) for reclaim in list(self.reclaimers))
        for zone in self.zones[request.highest_zone :: -1]:
            if zone.unreserve_highatomic_pageblock(request.migratetype, force=force):
                break
        self.drain_all_pages()
        return progress

    def _describe_failure(self, order: int, freetype: int, request: RequestClass) -> str:
        zones = ", ".join(
            f"{zone.name} {zone.free_of(sensitive=False)} nonsensitive and {zone.free_of(sensitive=True)} sensitive"
            for zone in self.zones
        )
        sensitive = "sensitive" if freetype_sensitive(freetype) else "nonsensitive"
        flags = "|".join(flag.name for flag in request.gfp if flag.name) or "none"
        return f"page allocation failure: order {order}, {sensitive}, gfp {flags}; free frames: {zones}"

    # Taking pages from a zone.

    def _rmqueue(self, index: int, order: int, freetype: int, flags: int) -> int | None:
        """From this CPU's lists, or from the zone's: `rmqueue()`."""
        if order <= PAGE_ALLOC_COSTLY_ORDER or order == HPAGE_PMD_ORDER:
            pfn = self._rmqueue_pcplist(index, order, freetype, flags)
            if pfn is not None:
                return pfn
        return self._rmqueue_buddy(self.zones[index], order, freetype, flags)

    def _rmqueue_pcplist(self, index: int, order: int, freetype: int, flags: int) -> int | None:
        """`rmqueue_pcplist()`; refills are `rmqueue_bulk()`, which never changes sensitivity."""
        pcp = self.pcp[index][self.context.cpu_number]
        blocks = pcp.lists[PINDEX[order][freetype]]
        if not blocks:
            zone = self.zones[index]
            rmqueue, nofragment = zone.rmqueue, bool(flags & NOFRAGMENT)
            for _ in range(pcp.batch if not order else max(pcp.batch >> order, 2)):
                pfn = rmqueue(order, freetype, nofragment=nofragment)
                if pfn is None:
                    break
                # In the order of addresses for the taker: the first one taken is the list's head.
                blocks.appendleft(pfn)
                pcp.count += 1 << order
            if not blocks:
                return None
        pcp.count -= 1 << order
        return blocks.pop()

    def _rmqueue_buddy(self, zone: Zone, order: int, freetype: int, flags: int) -> int | None:
        """`rmqueue_buddy()`: the reserve first for who may use it, then lists, then the other sensitivity."""
        highatomic = freetype - freetype % MIGRATE_TYPES + Migratetype.HIGHATOMIC
        pfn = zone.rmqueue_smallest(order, highatomic) if flags & HIGHATOMIC else None
        if pfn is None:
            pfn = zone.rmqueue(order, freetype, nofragment=bool(flags & NOFRAGMENT))
        if pfn is None and flags & NOBLOCK:
            pfn = zone.rmqueue_smallest(order, highatomic)
        if pfn is None and self.asi and not flags & NOBLOCK:
            pfn = self._rmqueue_asi(zone, order, freetype)
        return pfn

    # Changes of sensitivity.

    def _rmqueue_asi(self, zone: Zone, order: int, freetype: int) -> int | None:
        """Take whole pageblocks from the other sensitivity, change them, and keep what is not needed (I6, I7).

        What a failure half-way leaves is a block of the old sensitivity on its old list.
        """
        alloc_order = max(order, zone.pageblock_order)
        if alloc_order > zone.max_order:
            return None
        self.direct_map.check_may_flip()
        pfn = zone.rmqueue(alloc_order, (freetype + MIGRATE_TYPES) % (2 * MIGRATE_TYPES))
        if pfn is None:
            return None
        frames = 1 << alloc_order
        self.flipping[pfn] = alloc_order
        with self.context.uncounted():
            try:
                self._change_sensitivity(pfn, frames, sensitive=freetype_sensitive(freetype))
            except BaseException:
                self.direct_map.restore(pfn, frames)
                del self.flipping[pfn]
                zone.free_one_page(pfn, alloc_order)
                raise
        del self.flipping[pfn]
        for tail in range(order, alloc_order):
            zone.free_one_page(pfn + (1 << tail), tail)
        return pfn

    @kernel_function("__rmqueue_asi")
    def _change_sensitivity(self, pfn: int, frames: int, *, sensitive: bool) -> None:
        """Zero, map and flush as the direction needs, then say so in the pageblock bits."""
        counters = self.counters
        if not sensitive:
            self._zero(pfn, frames)
        self.direct_map.set_direct_map_sensitive(pfn, frames, sensitive=sensitive)
        self.pageblocks.set_sensitive(pfn, frames, sensitive=sensitive)
        counters.flipped_frames += frames
        if sensitive:
            counters.flips_to_sensitive += 1
        else:
            counters.flips_to_nonsensitive += 1
        for block in range(pfn >> self.pageblocks.order, (pfn + frames) >> self.pageblocks.order):
            for observer in self.observers:
                observer.on_flip(block, sensitive)

    def _zero(self, pfn: int, frames: int) -> None:
        """Clear what was sensitive before it becomes readable."""
        for frame in range(pfn, pfn + frames):
            self.clear_page(frame)
        self.counters.zeroed_frames += frames

    @kernel_function("clear_page_erms")
    def clear_page(self, pfn: int) -> None:
        """Clear a page through the direct map."""
        self.access.store(self.direct_map.layout.virt(pfn << PAGE_SHIFT), _ZERO_PAGE)

    # Metadata.

    def page(self, pfn: int) -> Page:
        """Return a frame's metadata; inside an allocation, that of its first frame. NotDirectMappedError."""
        if not 0 <= pfn < self.table.frames:
            raise NotDirectMappedError(pfn << PAGE_SHIFT, "no such page frame")
        page = self._pages[pfn]
        if page is None:
            kind = PageKind.RESERVED if self.table.state[pfn] == FrameTable.RESERVED else PageKind.FREE
            page = self._pages[pfn] = Page(pfn, kind=kind)
        return page

    def get_page(self, pfn: int) -> Page:
        """Count one more user of an allocated page, and return it."""
        page = self.page(pfn)
        if page.refcount <= 0:
            raise DoubleFreeError(pfn, "a reference is taken to a page that nobody has")
        page.refcount += 1
        return page

    def put_page(self, pfn: int) -> None:
        """Count one user less, and free the page with the last one."""
        page = self.page(pfn)
        self.free_pages(page.pfn, page.order)

    def split_page(self, pfn: int) -> None:
        """Make of an allocation as many of order 0, each to be freed on its own: `split_page()`."""
        page = self.page(pfn)
        self._check_free(pfn, page.order)
        state = self.table.state
        for frame in range(pfn, pfn + (1 << page.order)):
            state[frame] = state[pfn]
            self.table.alloc_order[frame] = 0
            self._pages[frame] = Page(
                frame, page.refcount, page.mapcount, page.kind, page.cache, page.gfp, owner=page.owner
            )

    def _prep_new_page(self, pfn: int, order: int, request: RequestClass, kind: PageKind, cache: str | None) -> None:
        table = self.table
        self.counters.allocations += 1
        movable = request.migratetype == Migratetype.MOVABLE
        page = self._pages[pfn]
        if page is None or page.pfn != pfn:
            page = self._pages[pfn] = Page(pfn)
        page.refcount = 1
        page.kind = kind
        page.cache = cache
        page.gfp = request.gfp
        page.order = order
        table.state[pfn] = FrameTable.ALLOCATED_MOVABLE if movable else FrameTable.ALLOCATED
        table.alloc_order[pfn] = order
        if order:
            tail = FrameTable.TAIL_MOVABLE if movable else FrameTable.TAIL
            table.state[pfn + 1 : pfn + (1 << order)] = bytes([tail]) * ((1 << order) - 1)
            self._pages[pfn + 1 : pfn + (1 << order)] = [page] * ((1 << order) - 1)

    # Freeing.

    @kernel_function("__free_pages")
    def free_pages(self, pfn: int, order: int = 0) -> None:
        """Drop a reference to an allocation, and free it if that was the last one.

        The pages stay in the restricted map or out of it: freeing changes no mapping. Raises DoubleFreeError,
        WrongOrderError or StillInUseError, with `debug` also what is wrong with a mapping, and changes nothing then.
        """
        self._check_free(pfn, order)
        page = self.page(pfn)
        if page.refcount > 1:
            page.refcount -= 1
            return
        self._free_prepare(page)
        self._free_to_lists(pfn, order)
        for observer in self.observers:
            observer.on_free(pfn, order)

    def _check_free(self, pfn: int, order: int) -> None:
        table = self.table
        state = table.state[pfn] if 0 <= pfn < table.frames else FrameTable.RESERVED
        if state not in {FrameTable.ALLOCATED, FrameTable.ALLOCATED_MOVABLE}:
            raise DoubleFreeError(pfn, f"freed, but it is {_STATES[state]}")
        if table.alloc_order[pfn] != order:
            raise WrongOrderError(pfn, f"freed with order {order}, allocated with order {table.alloc_order[pfn]}")
        if self.debug:
            self._check_mapping(pfn, order, sensitive=self.asi and self.pageblocks.sensitive(pfn))

    def _free_prepare(self, page: Page) -> None:
        """`free_pages_prepare()`."""
        pfn, order, table = page.pfn, page.order, self.table
        if page.mapcount:
            raise StillInUseError(pfn, f"freed, but {page.mapcount} page-table entries map it")
        self.counters.frees += 1
        page.refcount = 0
        page.kind = PageKind.FREE
        page.cache = page.owner = page.private = None
        page.gfp = _NO_FLAGS
        page.index = 0
        page.order = 0
        table.state[pfn] = FrameTable.FREE
        if order:
            table.state[pfn + 1 : pfn + (1 << order)] = bytes((1 << order) - 1)
            self._pages[pfn + 1 : pfn + (1 << order)] = [None] * ((1 << order) - 1)

    def _free_to_lists(self, pfn: int, order: int) -> None:
        """`free_frozen_page_commit()`: to this CPU's lists, of which the coldest go to the zone when there are many."""
        index = self._zones.index_of(pfn)
        zone = self.zones[index]
        if order > PAGE_ALLOC_COSTLY_ORDER and order != HPAGE_PMD_ORDER:
            zone.free_one_page(pfn, order)
            return
        freetype = zone.freetype(pfn)
        if freetype % MIGRATE_TYPES >= MIGRATE_PCPTYPES:
            freetype += Migratetype.MOVABLE - Migratetype.HIGHATOMIC
        pcp = self.pcp[index][self.context.cpu_number]
        pindex = PINDEX[order][freetype]
        pcp.lists[pindex].append(pfn)
        pcp.count += 1 << order
        if pcp.count >= pcp.high:
            for block, block_order in pcp.take_coldest(pcp.batch, pindex):
                zone.free_one_page(block, block_order)

    def drain_pages(self, cpu: int) -> None:
        """Give what is on one CPU's lists back to the zones."""
        for zone, pcps in zip(self.zones, self.pcp, strict=True):
            for pfn, order in pcps[cpu].take_coldest(pcps[cpu].count, 0):
                zone.free_one_page(pfn, order)

    def drain_all_pages(self) -> None:
        """Give what is on all CPUs' lists back to the zones: since 6.2 the lists' locks are enough, no CPU is asked."""
        for cpu in range(self.cpus):
            self.drain_pages(cpu)

    # Checks.

    def _check_mapping(self, pfn: int, order: int, *, sensitive: bool) -> None:
        """Compare a block's mappings with what it is to be (`bad_page()`), by a walk; see `DirectMap.walk_present`."""
        direct_map = self.direct_map
        for frame in range(pfn, pfn + (1 << order)):
            if not direct_map.walk_present(direct_map.pgd, frame):
                raise UnmappedPageError(frame)
            if direct_map.nonsensitive_pgd is None:
                continue
            absent = direct_map.direct_map_sensitive(frame)
            if sensitive and not absent:
                raise UnexpectedlyNonsensitiveError(frame)
            if absent and not sensitive and frame not in direct_map.removed:
                raise UnexpectedlySensitiveError(frame)

    def check(self) -> None:
        """Check everything that must hold of the allocator (I6): FreelistError and the other BadPageErrors."""
        check_allocator(self)

    @property
    def free_frames(self) -> int:
        """Page frames that are free, on the zones' lists and on the CPUs'."""
        on_cpus = sum(pcp.count for pcps in self.pcp for pcp in pcps)
        return sum(zone.free_pages for zone in self.zones) + on_cpus


_STATES = {
    FrameTable.FREE: "free already",
    FrameTable.TAIL: "inside a larger allocation",
    FrameTable.TAIL_MOVABLE: "inside a larger allocation",
    FrameTable.RESERVED: "reserved, or no page frame",
}
