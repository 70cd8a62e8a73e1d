"""The page allocator: what a request gets, fallbacks, reserves, running out, wrong frees."""

from __future__ import annotations

import pytest

from asikit.machine.mm import (
    GFP_ATOMIC,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_NOWAIT,
    GFP_USER,
    AllocationRequest,
    BadPageError,
    DoubleFreeError,
    FreelistError,
    Gfp,
    MightSleepError,
    Migratetype,
    NotDirectMappedError,
    OutOfMemoryError,
    StillInUseError,
    UnexpectedlyNonsensitiveError,
    UnexpectedlySensitiveError,
    UnmappedPageError,
    WrongOrderError,
)
from asikit.machine.mm.freetype import FALLBACKS
from asikit.trace import PageKind
from tests.machine.mm.alloc.rig import Rig


def exhaust(rig: Rig, gfp: Gfp, order: int = 0) -> list[int]:
    """Allocate until it fails."""
    pages = []
    try:
        while True:
            pages.append(rig.allocator.alloc_pages(gfp, order))
    except OutOfMemoryError:
        return pages


@pytest.mark.parametrize("order", range(6))
@pytest.mark.parametrize("gfp", [GFP_KERNEL, GFP_HIGHUSER_MOVABLE | Gfp.ZERO])
def test_allocation_has_the_metadata_of_its_request(order: int, gfp: Gfp) -> None:
    """For each of its frames; freed, nothing of it remains."""
    rig = Rig()
    allocator = rig.allocator
    before = allocator.free_frames
    pfn = allocator.alloc_pages(gfp, order, kind=PageKind.SLAB, cache="dentry")
    assert pfn % (1 << order) == 0
    assert allocator.free_frames == before - (1 << order)
    for frame in range(pfn, pfn + (1 << order)):
        page = allocator.page(frame)
        assert (page.pfn, page.order, page.gfp, page.kind, page.cache) == (pfn, order, gfp, PageKind.SLAB, "dentry")
        assert (page.refcount, page.mapcount, page.owner) == (1, 0, None)
    allocator.page(pfn).owner = "inode"
    allocator.check()
    allocator.free_pages(pfn, order)
    allocator.check()
    assert allocator.free_frames == before
    for frame in range(pfn, pfn + (1 << order)):
        page = allocator.page(frame)
        assert (page.kind, page.cache, page.owner, page.refcount) == (PageKind.FREE, None, None, 0)


def test_metadata_of_reserved_and_of_no_frames() -> None:
    """Reserved ones say so; beyond memory is an error."""
    rig = Rig()
    assert rig.allocator.page(0).kind is PageKind.RESERVED
    with pytest.raises(NotDirectMappedError, match="no such page frame"):
        rig.allocator.page(1 << 30)


def test_zeroed_memory_is_cleared_in_clear_page_erms() -> None:
    """Through the direct map, a page at a time, with the kernel's own call stack."""
    rig = Rig()
    dirty = rig.allocator.alloc_pages(GFP_USER, 2)
    rig.fill(dirty, 0xAA, 2)
    rig.allocator.free_pages(dirty, 2)
    rig.access.stores.clear()
    pfn = rig.allocator.alloc_pages(GFP_USER | Gfp.ZERO, 2)
    assert pfn == dirty
    assert rig.memory.read(pfn << 12, 4 << 12) == bytes(4 << 12)
    assert rig.access.stores == [(rig.layout.virt((pfn + i) << 12), 4096, "clear_page_erms") for i in range(4)]
    assert rig.access.stack == []


def test_observers_are_told_what_happened() -> None:
    """Allocation with flags and migratetype, free, and the block that changed before."""
    events: list[tuple[object, ...]] = []

    class Observer:
        def on_alloc(self, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
            events.append(("alloc", pfn, order, gfp, migratetype))

        def on_free(self, pfn: int, order: int) -> None:
            events.append(("free", pfn, order))

        def on_flip(self, pageblock: int, sensitive: bool) -> None:
            events.append(("flip", pageblock, sensitive))

    rig = Rig()
    rig.allocator.observers.append(Observer())
    pfn = rig.allocator.alloc_pages(GFP_KERNEL | Gfp.RECLAIMABLE, 1)
    rig.allocator.free_pages(pfn, 1)
    assert ("flip", pfn >> 4, False) in events
    assert events[-2:] == [
        ("alloc", pfn, 1, GFP_KERNEL | Gfp.RECLAIMABLE, Migratetype.RECLAIMABLE),
        ("free", pfn, 1),
    ]


def test_policy_decides_sensitivity_in_place_of_the_flag() -> None:
    """It sees flags, kind, cache and the allocating function."""
    asked: list[AllocationRequest] = []

    def policy(request: AllocationRequest) -> bool:
        asked.append(request)
        return request.cache == "secrets"

    rig = Rig(sensitivity=policy, allocated_by=lambda: "kmem_cache_alloc")
    plain = rig.allocator.alloc_pages(GFP_USER)
    secret = rig.allocator.alloc_pages(GFP_KERNEL, kind=PageKind.SLAB, cache="secrets")
    assert not rig.direct_map.direct_map_sensitive(plain)
    assert rig.direct_map.direct_map_sensitive(secret)
    assert asked[-1] == AllocationRequest(GFP_KERNEL, PageKind.SLAB, "secrets", "kmem_cache_alloc")
    assert rig.allocator.asi
    off = Rig(sensitivity=policy, asi=False)
    off.allocator.alloc_pages(GFP_KERNEL, kind=PageKind.SLAB, cache="secrets")
    off.allocator.check()
    assert len(asked) == 2


@pytest.mark.parametrize("gfp", [GFP_KERNEL, GFP_USER, GFP_ATOMIC])
@pytest.mark.parametrize("order", [0, 2, 5])
def test_running_out_is_an_error_and_nothing_else(gfp: Gfp, order: int) -> None:
    """Lists are whole afterwards, and all of the memory comes back."""
    rig = Rig()
    before = rig.allocator.free_frames
    pages = exhaust(rig, gfp, order)
    assert rig.allocator.counters.failures == 1
    rig.allocator.check()
    for pfn in pages:
        rig.allocator.free_pages(pfn, order)
    rig.allocator.check()
    assert rig.allocator.free_frames == before
    assert len(exhaust(rig, gfp, order)) == len(pages)


def test_failure_says_what_was_wanted_and_what_there_is() -> None:
    """One line, with both sensitivities: memory may be plentiful and of the wrong one."""
    rig = Rig()
    rig.allocator.alloc_pages(GFP_KERNEL, 4)
    with pytest.raises(OutOfMemoryError) as error:
        rig.allocator.alloc_pages(GFP_NOWAIT, 6)
    zone = rig.allocator.zones[0]
    assert zone.free_of(sensitive=False) == 0
    assert str(error.value) == (
        "page allocation failure: order 6, nonsensitive, gfp KSWAPD_RECLAIM; "
        f"free frames: DMA32 0 nonsensitive and {zone.free_pages} sensitive"
    )
    assert error.value.order == 6


def test_reserves_are_for_who_cannot_wait() -> None:
    """GFP_ATOMIC goes below the minimum that GFP_NOWAIT and GFP_KERNEL stop at."""
    rig = Rig()
    exhaust(rig, GFP_KERNEL)
    left = rig.allocator.free_frames
    assert left >= rig.allocator.zones[0].watermark_min
    assert exhaust(rig, GFP_NOWAIT) == []
    more = exhaust(rig, GFP_ATOMIC)
    assert more
    assert rig.allocator.free_frames >= rig.allocator.zones[0].watermark_min * 3 // 8


def test_caches_are_asked_to_give_memory_back_first() -> None:
    """Only for callers that may block, and as long as that helps."""
    rig = Rig()
    cache = exhaust(rig, GFP_KERNEL)

    def shrink(order: int) -> int:
        for _ in range(1 << order):
            if cache:
                rig.allocator.free_pages(cache.pop())
        return min(len(cache), 1)

    rig.allocator.reclaimers.append(shrink)
    with pytest.raises(OutOfMemoryError):
        rig.allocator.alloc_pages(GFP_NOWAIT)
    held = len(cache)
    rig.allocator.alloc_pages(GFP_KERNEL)
    assert len(cache) < held
    assert rig.allocator.alloc_pages(GFP_KERNEL, 3) % 8 == 0
    rig.allocator.check()


def test_memory_on_another_cpus_list_is_found_before_giving_up() -> None:
    """drain_all_pages, in direct reclaim."""
    rig = Rig(cpus=2)
    pages = exhaust(rig, GFP_USER)
    rig.allocator.pcp[0][1].high = 1000
    rig.context.cpu_number = 1
    for pfn in pages:
        rig.allocator.free_pages(pfn)
    rig.context.cpu_number = 0
    assert rig.allocator.pcp[0][1].count == len(pages)
    rig.allocator.alloc_pages(GFP_USER, 4)
    assert rig.allocator.pcp[0][1].count == 0
    rig.allocator.check()


def test_lists_of_a_cpu_overflow_into_the_zone() -> None:
    """At `high`, a batch of the coldest."""
    rig = Rig()
    pcp = rig.allocator.pcp[0][0]
    pcp.batch, pcp.high = 4, 8
    pages = [rig.allocator.alloc_pages(GFP_USER) for _ in range(12)]
    rig.allocator.drain_pages(0)
    for pfn in pages[:8]:
        rig.allocator.free_pages(pfn)
    assert pcp.count == 4
    assert [rig.allocator.alloc_pages(GFP_USER) for _ in range(4)] == pages[7:3:-1]


def test_each_cpu_has_lists_of_its_own() -> None:
    """What one frees, that one gets next."""
    rig = Rig(cpus=2)
    mine, other = rig.allocator.alloc_pages(GFP_USER), rig.allocator.alloc_pages(GFP_USER)
    rig.allocator.free_pages(mine)
    rig.context.cpu_number = 1
    rig.allocator.free_pages(other)
    assert rig.allocator.alloc_pages(GFP_USER) == other
    rig.context.cpu_number = 0
    assert rig.allocator.alloc_pages(GFP_USER) == mine


# Zones.


def test_requests_go_to_the_highest_zone_and_fall_back_to_lower_ones() -> None:
    """Normal first; with DMA32 asked for, only there; NORMAL requests leave DMA32 its reserve."""
    rig = Rig(1024, dma32_end=512)
    low, high = rig.allocator.zones
    assert (low.name, high.name) == ("DMA32", "Normal")
    assert rig.allocator.alloc_pages(GFP_USER) >= 512
    assert rig.allocator.alloc_pages(GFP_USER | Gfp.DMA32) < 512
    pages = exhaust(rig, GFP_USER)
    assert min(pages) < 512 <= max(pages)
    assert low.free_pages >= low.watermark_min
    rig.allocator.check()
    reserve = high.managed_pages // 256
    assert len(exhaust(rig, GFP_USER | Gfp.DMA32)) == reserve == 2


def test_another_zone_is_preferred_to_fragmenting_a_pageblock() -> None:
    """ALLOC_NOFRAGMENT: no page is stolen from a movable block while DMA32 has a block to claim whole."""
    rig = Rig(1024, dma32_end=512)
    high = rig.allocator.zones[1]
    pages = [rig.allocator.alloc_pages(GFP_HIGHUSER_MOVABLE) for _ in range(400)]
    assert min(pages) >= 512
    for pfn in pages[::2]:
        rig.allocator.free_pages(pfn)
    rig.allocator.drain_all_pages()
    whole = []
    while (block := high.rmqueue_smallest(4, 4 + Migratetype.MOVABLE)) is not None:
        whole.append(block)
    assert high.free_pages > high.watermark_low
    assert rig.allocator.alloc_pages(GFP_USER) < 512
    assert (high.steals, high.claims) == (0, 0)
    for block in whole:
        high.free_one_page(block, 4)
    rig.allocator.check()


def test_zones_meet_where_blocks_can_end() -> None:
    """At a multiple of the largest order."""
    with pytest.raises(ValueError, match="multiple of 32 frames, not at 0x208"):
        Rig(1024, dma32_end=520)


# Fallbacks between migratetypes.


def test_fallback_order_is_the_kernels() -> None:
    """fallbacks[] of mm/page_alloc.c; the reserve has none."""
    assert FALLBACKS[Migratetype.UNMOVABLE] == (Migratetype.RECLAIMABLE, Migratetype.MOVABLE)
    assert FALLBACKS[Migratetype.MOVABLE] == (Migratetype.RECLAIMABLE, Migratetype.UNMOVABLE)
    assert FALLBACKS[Migratetype.RECLAIMABLE] == (Migratetype.UNMOVABLE, Migratetype.MOVABLE)
    assert FALLBACKS[Migratetype.HIGHATOMIC] == ()


def test_unmovable_request_claims_a_whole_block() -> None:
    """All memory is movable at boot; the largest block changes type, and its rest serves the next requests."""
    rig = Rig()
    pfn = rig.allocator.alloc_pages(GFP_USER)
    zone = rig.allocator.zones[0]
    assert rig.allocator.pageblocks.migratetype(pfn) == Migratetype.UNMOVABLE
    assert zone.claims == 1
    again = rig.allocator.alloc_pages(GFP_USER)
    assert again >> 5 == pfn >> 5
    assert zone.claims == 1


def half_used_blocks(rig: Rig, gfp: Gfp, keep: int) -> list[int]:
    """Fill memory with pages of one kind, then free all but each block's first `keep`."""
    pages = sorted(exhaust(rig, gfp))
    for pfn in pages:
        if pfn % 16 >= keep:
            rig.allocator.free_pages(pfn)
    rig.allocator.drain_all_pages()
    return pages


def test_block_that_is_half_free_is_claimed_with_its_free_pages() -> None:
    """try_to_claim_block counts free and alike pages; movable ones are not alike to an unmovable request."""
    rig = Rig()
    half_used_blocks(rig, GFP_HIGHUSER_MOVABLE, keep=8)
    zone = rig.allocator.zones[0]
    claims = zone.claims
    pfn = rig.allocator.alloc_pages(GFP_USER, 2)
    assert rig.allocator.pageblocks.migratetype(pfn) == Migratetype.UNMOVABLE
    assert zone.claims == claims + 1
    rig.allocator.check()


def test_page_is_stolen_from_a_block_that_is_mostly_used() -> None:
    """The block keeps its type, and the page goes back to it."""
    rig = Rig()
    half_used_blocks(rig, GFP_HIGHUSER_MOVABLE, keep=12)
    zone = rig.allocator.zones[0]
    steals = zone.steals
    # Blocks that the watermark kept free are claimed first.
    pfn = rig.allocator.alloc_pages(GFP_USER, 1)
    while rig.allocator.pageblocks.migratetype(pfn) == Migratetype.UNMOVABLE:
        pfn = rig.allocator.alloc_pages(GFP_USER, 1)
    assert rig.allocator.pageblocks.migratetype(pfn) == Migratetype.MOVABLE
    assert zone.steals > steals
    rig.allocator.free_pages(pfn, 1)
    rig.allocator.drain_all_pages()
    rig.allocator.check()


def test_small_movable_requests_do_not_claim() -> None:
    """They can be moved away later, so they may share an unmovable block: every other pair of pages is free here."""
    rig = Rig()
    zone = rig.allocator.zones[0]
    for pfn in exhaust(rig, GFP_USER):
        if pfn % 4 < 2:
            rig.allocator.free_pages(pfn)
    rig.allocator.drain_all_pages()
    claims = zone.claims
    pages = exhaust(rig, GFP_HIGHUSER_MOVABLE)
    shared = [pfn for pfn in pages if rig.allocator.pageblocks.migratetype(pfn) == Migratetype.UNMOVABLE]
    assert len(shared) > 100
    assert zone.steals >= len(shared) // 2
    assert zone.claims - claims <= 1
    rig.allocator.check()


def test_highatomic_reserve_serves_atomic_requests_of_higher_orders() -> None:
    """A block is reserved when one of them nearly fails, used by them, and given back before memory runs out."""
    rig = Rig(2048, pageblock_order=3, max_order=4)
    zone = rig.allocator.zones[0]
    held = exhaust(rig, GFP_USER, 1)
    atomic = GFP_ATOMIC | Gfp.SENSITIVE
    pfn = rig.allocator.alloc_pages(atomic, 1)
    assert zone.nr_reserved_highatomic == 8
    assert rig.allocator.pageblocks.migratetype(pfn) == Migratetype.HIGHATOMIC
    rig.allocator.check()
    second = rig.allocator.alloc_pages(atomic, 1)
    assert second >> 3 == pfn >> 3
    rig.allocator.free_pages(second, 1)
    rig.allocator.free_pages(held.pop(), 1)
    rig.allocator.drain_all_pages()
    rig.allocator.check()
    exhaust(rig, GFP_USER)
    assert zone.nr_reserved_highatomic == 0
    rig.allocator.check()


def test_reserve_of_whole_blocks_is_given_back_too() -> None:
    """Requests as large as a pageblock reserve it as it is; it keeps its sensitivity all the time."""
    rig = Rig(2048, pageblock_order=3, max_order=4)
    zone = rig.allocator.zones[0]
    pages = exhaust(rig, GFP_USER, 3)
    rig.allocator.free_pages(pages.pop(), 3)
    rig.allocator.free_pages(pages.pop(), 3)
    rig.allocator.drain_all_pages()
    pfn = rig.allocator.alloc_pages(GFP_ATOMIC | Gfp.SENSITIVE, 3)
    assert zone.nr_reserved_highatomic == 8
    rig.allocator.free_pages(pfn, 3)
    rig.allocator.drain_all_pages()
    rig.allocator.check()
    assert not zone.unreserve_highatomic_pageblock(Migratetype.MOVABLE)
    assert zone.unreserve_highatomic_pageblock(Migratetype.MOVABLE, force=True)
    assert zone.nr_reserved_highatomic == 0
    assert rig.allocator.pageblocks.sensitive(pfn)
    assert not zone.unreserve_highatomic_pageblock(Migratetype.MOVABLE, force=True)
    rig.allocator.check()


# Wrong frees and references.


def test_wrong_frees_are_named_and_change_nothing() -> None:
    """Twice, with another order, from the inside, what never was allocated, what is still mapped."""
    rig = Rig(debug=False)
    allocator = rig.allocator
    pfn = allocator.alloc_pages(GFP_USER, 2)
    with pytest.raises(WrongOrderError, match="freed with order 1, allocated with order 2"):
        allocator.free_pages(pfn, 1)
    with pytest.raises(DoubleFreeError, match="inside a larger allocation"):
        allocator.free_pages(pfn + 1)
    with pytest.raises(DoubleFreeError, match="reserved, or no page frame"):
        allocator.free_pages(0)
    with pytest.raises(DoubleFreeError, match="reserved, or no page frame"):
        allocator.free_pages(1 << 40)
    allocator.page(pfn).mapcount = 2
    with pytest.raises(StillInUseError, match="2 page-table entries map it"):
        allocator.free_pages(pfn, 2)
    allocator.page(pfn).mapcount = 0
    allocator.free_pages(pfn, 2)
    with pytest.raises(DoubleFreeError, match=f"page frame {pfn:#x}: freed, but it is free already"):
        allocator.free_pages(pfn, 2)
    allocator.check()


def test_last_reference_frees() -> None:
    """get_page and put_page; a page nobody has cannot be got."""
    rig = Rig()
    pfn = rig.allocator.alloc_pages(GFP_USER, 1)
    assert rig.allocator.get_page(pfn + 1).refcount == 2
    rig.allocator.put_page(pfn)
    assert rig.allocator.page(pfn).kind is PageKind.KERNEL
    rig.allocator.put_page(pfn + 1)
    assert rig.allocator.page(pfn).kind is PageKind.FREE
    with pytest.raises(DoubleFreeError, match="nobody has"):
        rig.allocator.get_page(pfn)


def test_split_allocation_is_freed_page_by_page() -> None:
    """split_page."""
    rig = Rig()
    pfn = rig.allocator.alloc_pages(GFP_HIGHUSER_MOVABLE, 2, kind=PageKind.ANON)
    rig.allocator.split_page(pfn)
    rig.allocator.check()
    for frame in (pfn + 3, pfn, pfn + 2, pfn + 1):
        assert rig.allocator.page(frame).kind is PageKind.ANON
        rig.allocator.free_pages(frame)
    rig.allocator.check()


# Wrong mappings, found in debug mode.


def corrupt(rig: Rig, root: int | None, pfn: int, *, present: bool) -> None:
    """Change one leaf behind everybody's back."""
    assert root is not None
    entry = rig.direct_map.tables.lookup(root, rig.layout.virt(pfn << 12))
    value = pfn << 12 | 0x63 if present else 0
    rig.memory.write_u64(rig.layout.phys(entry.address), value)


@pytest.mark.parametrize(
    ("gfp", "error", "message"),
    [
        (GFP_USER, UnexpectedlyNonsensitiveError, "page unexpectedly nonsensitive"),
        (GFP_KERNEL, UnexpectedlySensitiveError, "page unexpectedly sensitive"),
    ],
)
def test_wrong_mapping_is_found_at_free_and_at_allocation(gfp: Gfp, error: type[BadPageError], message: str) -> None:
    """By a walk; the invariants' check finds it as well."""
    rig = Rig()
    pfn = rig.allocator.alloc_pages(gfp)
    corrupt(rig, rig.direct_map.nonsensitive_pgd, pfn, present=gfp == GFP_USER)
    with pytest.raises(error, match=f"page frame {pfn:#x}: {message}"):
        rig.allocator.free_pages(pfn)
    with pytest.raises(error):
        rig.allocator.check()
    rig.allocator.debug = False
    rig.allocator.free_pages(pfn)
    rig.allocator.debug = True
    with pytest.raises(error) as caught:
        rig.allocator.alloc_pages(gfp)
    assert caught.value.pfn == pfn


def test_page_without_unrestricted_mapping_is_not_freed() -> None:
    """The failure mode of reused secretmem pages: clear_page_erms oopses on the next owner."""
    rig = Rig()
    pfn = rig.allocator.alloc_pages(GFP_USER)
    vaddr = rig.layout.virt(pfn << 12)
    rig.direct_map.attach(allocate=lambda: rig.allocator.alloc_pages(GFP_KERNEL | Gfp.ZERO))
    rig.direct_map.set_memory_np(vaddr)
    with pytest.raises(UnmappedPageError, match="set_memory_p before freeing"):
        rig.allocator.free_pages(pfn)
    rig.direct_map.set_memory_p(vaddr)
    rig.allocator.free_pages(pfn)
    rig.allocator.check()


def test_request_that_may_block_is_refused_in_atomic_context() -> None:
    """might_alloc, in debug mode, whether it would have had to wait or not."""
    rig = Rig()
    rig.context.may_block = False
    with pytest.raises(MightSleepError):
        rig.allocator.alloc_pages(GFP_KERNEL)
    rig.allocator.alloc_pages(GFP_ATOMIC | Gfp.SENSITIVE)


def test_block_on_the_wrong_list_is_counted_without_debug() -> None:
    """No walk: the pageblock's bit tells."""
    rig = Rig(debug=False)
    pfn = rig.allocator.alloc_pages(GFP_KERNEL)
    rig.allocator.free_pages(pfn)
    rig.allocator.pageblocks.nonsensitive[pfn >> 4] = 0
    rig.allocator.alloc_pages(GFP_KERNEL)
    assert rig.allocator.counters.bad_pages == 1


# The check of the invariants itself.


def spoil_count(rig: Rig) -> None:
    """A frame too few."""
    rig.allocator.zones[0].free_pages -= 1


def spoil_nr_free(rig: Rig) -> None:
    """A block too many."""
    rig.allocator.zones[0].free_area[5].nr_free += 1


def spoil_place(rig: Rig) -> None:
    """A frame on two lists."""
    rig.allocator.pcp[0][0].lists[14].append(next(iter(rig.allocator.zones[0].free_area[5].free_list[5])))
    rig.allocator.pcp[0][0].count += 1


def spoil_lost(rig: Rig) -> None:
    """A frame on none."""
    rig.allocator.pcp[0][0].lists[15].append(rig.allocator.alloc_pages(GFP_USER))
    rig.allocator.pcp[0][0].count += 1


def spoil_bit(rig: Rig) -> None:
    """A pageblock's bit that no list knows of."""
    rig.allocator.pageblocks.nonsensitive[20] = 1


def spoil_pcp(rig: Rig) -> None:
    """A page on a CPU's list of the other sensitivity."""
    pcp = rig.allocator.pcp[0][0]
    rig.allocator.free_pages(rig.allocator.alloc_pages(GFP_USER))
    pcp.lists[0].append(pcp.lists[14].pop())


def spoil_pcp_count(rig: Rig) -> None:
    """A CPU's lists miscounted."""
    rig.allocator.pcp[0][0].count += 1


def spoil_mark(rig: Rig) -> None:
    """The head of a free block not marked."""
    rig.allocator.table.buddy_order[next(iter(rig.allocator.zones[0].free_area[5].free_list[5]))] = 3


def spoil_merge(rig: Rig) -> None:
    """Buddies left apart."""
    zone = rig.allocator.zones[0]
    pfn = next(iter(zone.free_area[5].free_list[5]))
    zone.del_from_free_list(pfn, 5, 5)
    for half in range(4):
        zone.add_to_free_list(pfn + 8 * half, 3, 5)


def spoil_alignment(rig: Rig) -> None:
    """A block where none can be."""
    zone = rig.allocator.zones[0]
    pfn = rig.allocator.alloc_pages(GFP_USER, 2)
    rig.allocator.table.state[pfn + 1 : pfn + 3] = bytes(2)
    zone.add_to_free_list(pfn + 1, 1, 4)


def spoil_tail(rig: Rig) -> None:
    """An allocation whose middle is free."""
    pfn = rig.allocator.alloc_pages(GFP_USER, 2)
    rig.allocator.table.state[pfn + 1] = 1


def spoil_head(rig: Rig) -> None:
    """The inside of an allocation, without one."""
    rig.allocator.table.state[rig.allocator.alloc_pages(GFP_USER)] = 3


def spoil_head_mark(rig: Rig) -> None:
    """A frame marked as a free block's head that is on no list."""
    rig.allocator.table.buddy_order[rig.allocator.alloc_pages(GFP_USER, 1)] = 0


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_count, "free frames, counted"),
        (spoil_nr_free, "order 5 has"),
        (spoil_place, "in two places"),
        (spoil_lost, "on a free list, but not free"),
        (spoil_bit, "its pageblock is"),
        (spoil_pcp, "of the other sensitivity"),
        (spoil_pcp_count, "per-CPU lists hold"),
        (spoil_mark, "marked 3"),
        (spoil_merge, "not merged"),
        (spoil_alignment, "no block of order 1"),
        (spoil_tail, "not all of its 4 frames"),
        (spoil_head, "no first frame"),
        (spoil_head_mark, "marked as heads"),
    ],
)
def test_check_finds_what_is_wrong(spoil: object, message: str) -> None:
    """Each contradiction has words of its own."""
    rig = Rig()
    rig.allocator.check()
    assert callable(spoil)
    spoil(rig)
    with pytest.raises(FreelistError, match=message):
        rig.allocator.check()


def test_check_finds_a_frame_on_no_list() -> None:
    """Free, and lost."""
    rig = Rig()
    rig.allocator.table.state[rig.allocator.alloc_pages(GFP_USER)] = 0
    with pytest.raises(FreelistError, match="free, but on no list"):
        rig.allocator.check()


def test_list_operations_refuse_what_is_not_there() -> None:
    """A block that is not on the list it is taken from."""
    zone = Rig().allocator.zones[0]
    with pytest.raises(FreelistError, match="not on the free list of order 2, freetype 0"):
        zone.del_from_free_list(0, 2, 0)
    with pytest.raises(FreelistError, match="not on the free list of order 2, freetype 1"):
        zone.move_to_free_list(0, 2, 1, 2)


def test_no_list_is_sensitive_with_asi_off() -> None:
    """All pageblocks count as nonsensitive then, and GFP_USER gets them."""
    rig = Rig(asi=False)
    pfn = rig.allocator.alloc_pages(GFP_USER)
    rig.allocator.check()
    assert rig.allocator.counters.flipped_frames == 0
    assert not rig.allocator.pageblocks.sensitive(pfn)
    zone = rig.allocator.zones[0]
    rig.allocator.pageblocks.nonsensitive[10] = 0
    free = next(pfn for pfn, order in enumerate(rig.allocator.table.buddy_order) if order == 5 and pfn >> 4 == 10)
    zone.move_to_free_list(free, 5, 1, 5)
    rig.allocator.pageblocks.nonsensitive[11] = 0
    with pytest.raises(FreelistError, match="with ASI off"):
        rig.allocator.check()
