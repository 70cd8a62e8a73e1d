"""Changes of sensitivity inside the page allocator: when, what, in which order, and what a failure leaves."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from asikit.machine.mm import (
    GFP_ATOMIC,
    GFP_KERNEL,
    GFP_NOWAIT,
    GFP_USER,
    AtomicFlipError,
    DirectMap,
    Gfp,
    OutOfMemoryError,
    PageAllocator,
)
from tests.machine.mm.alloc.model import Model
from tests.machine.mm.alloc.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK = 512


def give_all(rig: Rig, gfp: Gfp) -> list[int]:
    """Hand out everything, a page at a time."""
    pages = []
    try:
        while True:
            pages.append(rig.allocator.alloc_pages(gfp))
    except OutOfMemoryError:
        return pages


@pytest.mark.parametrize(("levels", "order"), [(4, 0), (4, 9), (4, 10), (5, 3)])
def test_first_nonsensitive_request_changes_whole_blocks(levels: int, order: int) -> None:
    """2 MiB, or as much as is asked for; the rest goes to the nonsensitive lists, for the next requests."""
    rig = Rig(8 * BLOCK, pageblock_order=9, levels=levels)
    pfn = rig.allocator.alloc_pages(GFP_KERNEL, order)
    frames = 1 << max(order, 9)
    assert rig.restricted() == set(range(pfn & -frames, (pfn & -frames) + frames))
    counters = rig.allocator.counters
    assert (counters.flips_to_nonsensitive, counters.flipped_frames, counters.zeroed_frames) == (1, frames, frames)
    rig.allocator.check()
    if order < 9:
        again = rig.allocator.alloc_pages(GFP_KERNEL, order)
        assert again in rig.restricted()
        assert counters.flips_to_nonsensitive == 1


def test_freeing_changes_no_mapping() -> None:
    """Pages go back to the lists of their own sensitivity."""
    rig = Rig()
    pages = [rig.allocator.alloc_pages(GFP_KERNEL) for _ in range(100)]
    before = rig.restricted()
    for pfn in pages:
        rig.allocator.free_pages(pfn)
    rig.allocator.drain_all_pages()
    assert rig.restricted() == before


def test_order_of_steps_on_the_way_to_nonsensitive() -> None:
    """Zeroed before it is mapped, mapped before it counts as nonsensitive, and off all lists meanwhile."""
    steps: list[tuple[object, ...]] = []

    class Stepping(DirectMap):
        def set_direct_map_sensitive(self, pfn: int, nr_pages: int, *, sensitive: bool) -> None:
            content = rig.memory.read(pfn << 12, nr_pages << 12)
            steps.append(("zeroed", not any(content), "mapped", not self.direct_map_sensitive(pfn)))
            assert rig.allocator.flipping == {pfn: 4}
            rig.allocator.check()
            super().set_direct_map_sensitive(pfn, nr_pages, sensitive=sensitive)
            steps.append(("mapped", not self.direct_map_sensitive(pfn), "bit", not self.pageblocks.sensitive(pfn)))
            rig.allocator.check()

    rig = Rig(direct_map_class=Stepping)
    for pfn in give_all(rig, GFP_USER):
        rig.fill(pfn, 0x55)
        rig.allocator.free_pages(pfn)
    rig.allocator.drain_all_pages()
    pfn = rig.allocator.alloc_pages(GFP_KERNEL)
    assert steps == [("zeroed", True, "mapped", False), ("mapped", True, "bit", False)]
    assert not rig.allocator.pageblocks.sensitive(pfn)
    assert rig.allocator.flipping == {}


def test_order_of_steps_on_the_way_to_sensitive() -> None:
    """Unmapped before the shootdown, and that is over before the block counts as sensitive; nothing is zeroed."""
    rig = Rig()
    pages = give_all(rig, GFP_KERNEL)
    for pfn in pages:
        rig.fill(pfn, 0x55)
        rig.allocator.free_pages(pfn)
    rig.allocator.drain_all_pages()
    steps = []

    class Flusher:
        def flush_tlb_kernel_range(self, start: int, end: int) -> None:
            pfn = rig.layout.phys(start) >> 12
            steps.append(
                (end - start, rig.direct_map.direct_map_sensitive(pfn), rig.allocator.pageblocks.sensitive(pfn))
            )

        def flush_tlb_mm_range(self, mm: int, start: int, end: int) -> None:
            steps.append((end - start, mm == 0, False))

        def flush_tlb_all(self) -> None:
            steps.append((0, False, False))

    rig.direct_map.attach(flusher=Flusher())
    taken = []
    while not rig.allocator.counters.flips_to_sensitive:
        taken.append(rig.allocator.alloc_pages(GFP_USER, 4))
    assert steps == [(16 << 12, True, False)]
    assert rig.memory.read(taken[-1] << 12, 4096) == b"\x55" * 4096
    assert rig.restricted().isdisjoint(range(taken[-1], taken[-1] + 16))


@pytest.mark.parametrize("gfp", [GFP_ATOMIC, GFP_NOWAIT])
def test_request_that_may_not_block_gets_no_block_of_the_other_sensitivity(gfp: Gfp) -> None:
    """ALLOC_NOBLOCK, at the first attempt already: it fails while sensitive memory is plentiful."""
    rig = Rig()
    rig.context.irqs_enabled = rig.context.may_block = False
    with pytest.raises(OutOfMemoryError):
        rig.allocator.alloc_pages(gfp)
    assert rig.allocator.counters.flipped_frames == 0
    rig.context.irqs_enabled = rig.context.may_block = True
    rig.allocator.free_pages(rig.allocator.alloc_pages(GFP_KERNEL))
    rig.context.irqs_enabled = rig.context.may_block = False
    rig.allocator.alloc_pages(gfp)
    rig.allocator.check()


def test_caller_that_lies_about_its_context_is_caught() -> None:
    """GFP_KERNEL with interrupts off: an error in every mode, before anything is taken."""
    rig = Rig(debug=False)
    rig.context.irqs_enabled = False
    with pytest.raises(AtomicFlipError, match="cpu 0: change of sensitivity with interrupts off"):
        rig.allocator.alloc_pages(GFP_KERNEL)
    rig.allocator.check()
    assert rig.restricted() == set()


def test_fragments_are_used_up_before_a_block_changes() -> None:
    """__rmqueue_asi comes last: after stealing from other migratetypes of the same sensitivity."""
    rig = Rig()
    pages = give_all(rig, GFP_KERNEL | Gfp.MOVABLE)
    for pfn in pages:
        if pfn % 16 < 15:
            continue
        rig.allocator.free_pages(pfn)
    rig.allocator.drain_all_pages()
    for pfn in [pfn for pfn in pages if pfn % 16 < 15][:64]:
        rig.allocator.free_pages(pfn)
    flips = rig.allocator.counters.flips_to_sensitive + rig.allocator.counters.flips_to_nonsensitive
    rig.allocator.alloc_pages(GFP_KERNEL)
    assert rig.allocator.counters.flips_to_sensitive + rig.allocator.counters.flips_to_nonsensitive == flips


def test_part_of_a_block_never_changes() -> None:
    """At a ragged end of memory, and around reserved frames: those stay sensitive for ever."""
    rig = Rig(1024 + 7)
    give_all(rig, GFP_KERNEL)
    restricted = rig.restricted()
    assert restricted
    assert restricted.isdisjoint(range(1024, 1024 + 7))
    assert restricted.isdisjoint(range(16))
    rig.allocator.check()


@pytest.mark.parametrize("stores", [0, 1, 9, 15])
def test_failure_while_zeroing_leaves_the_block_where_it_was(stores: int) -> None:
    """Sensitive, unmapped, on its old list: the next attempt succeeds."""
    rig = Rig()
    before = rig.allocator.free_frames
    rig.access.refuse_after = stores
    with pytest.raises(RuntimeError, match="machine check"):
        rig.allocator.alloc_pages(GFP_KERNEL)
    rig.access.refuse_after = -1
    assert rig.restricted() == set()
    assert rig.allocator.free_frames == before
    rig.allocator.check()
    rig.allocator.alloc_pages(GFP_KERNEL)
    rig.allocator.check()


def test_failure_half_way_through_the_mapping_is_undone() -> None:
    """Some entries were present already: they are taken out and flushed before the block is used again."""

    class Failing(DirectMap):
        fail = True

        def set_direct_map_sensitive(self, pfn: int, nr_pages: int, *, sensitive: bool) -> None:
            if self.fail:
                super().set_direct_map_sensitive(pfn, nr_pages, sensitive=sensitive)
                raise KeyboardInterrupt
            super().set_direct_map_sensitive(pfn, nr_pages, sensitive=sensitive)

    rig = Rig(direct_map_class=Failing)
    with pytest.raises(KeyboardInterrupt):
        rig.allocator.alloc_pages(GFP_KERNEL)
    assert rig.restricted() == set()
    assert len(rig.flusher.log) == 1
    rig.allocator.check()


def test_what_the_change_does_is_asis_own_and_named() -> None:
    """It runs as __rmqueue_asi inside __alloc_pages, outside of the logical clock."""
    seen = []

    class Watching(DirectMap):
        def set_direct_map_sensitive(self, pfn: int, nr_pages: int, *, sensitive: bool) -> None:
            seen.append((list(rig.access.stack), rig.context.uncounted_depth))
            super().set_direct_map_sensitive(pfn, nr_pages, sensitive=sensitive)

    rig = Rig(direct_map_class=Watching)
    rig.allocator.alloc_pages(GFP_KERNEL)
    assert seen == [(["__alloc_pages", "__rmqueue_asi"], 1)]
    zeroing = [name for _, size, name in rig.access.stores if size == 4096]
    assert zeroing == ["clear_page_erms"] * 16
    assert rig.context.uncounted_depth == 0


def test_other_cpus_may_allocate_while_a_block_changes() -> None:
    """Zeroing reaches memory, so another CPU may run there: it never sees the block, and the books balance."""

    class Interleaved(PageAllocator):
        inside = False

        def clear_page(self, pfn: int) -> None:
            super().clear_page(pfn)
            if self.flipping and not self.inside:
                self.inside = True
                with other_cpu(rig):
                    allocation = model.alloc(GFP_USER, 0, 1)
                    assert allocation is not None
                    if pfn % 3:
                        model.free(allocation, 1)
                    model.check()
                self.inside = False

    rig = Rig(allocator_class=Interleaved)
    model = Model(rig)
    for _ in range(100):
        assert model.alloc(GFP_KERNEL, 2, 0) is not None
    assert rig.allocator.counters.flips_to_nonsensitive > 10
    model.check()
    rig.allocator.check()


@contextmanager
def other_cpu(rig: Rig) -> Iterator[None]:
    """Run as CPU 1 for a while."""
    before = rig.context.cpu_number
    rig.context.cpu_number = 1
    yield
    rig.context.cpu_number = before


def test_more_than_half_of_memory_changes_sides_and_back() -> None:
    """The series' smoke test: take it nonsensitive, look at every page's mapping, free, the same sensitive."""
    rig = Rig(2048)
    for gfp in (GFP_KERNEL, GFP_USER, GFP_KERNEL):
        pages = give_all(rig, gfp)
        assert len(pages) > 1024
        wanted = gfp & Gfp.SENSITIVE == 0
        restricted = rig.restricted()
        assert all((pfn in restricted) == wanted for pfn in pages)
        for pfn in pages:
            rig.fill(pfn, 0x77)
            rig.allocator.free_pages(pfn)
        rig.allocator.check()
    assert rig.allocator.counters.flips_to_sensitive > 10
