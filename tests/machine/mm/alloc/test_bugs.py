"""Bugs put in on purpose, each caught by name: those of the published code, and those that its design must avoid.

Each test overrides one small method, runs random operations, and looks which promise the independent account says is
broken. Without the override the same run is clean (`test_the_same_runs_are_clean`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from asikit.machine.mm import GFP_USER, DirectMap, Gfp, PageAllocator, UnexpectedlyNonsensitiveError, UnmappedPageError
from asikit.machine.mm._requests import NOBLOCK, RequestClass
from tests.machine.mm.alloc.model import Model, RandomRun, Violation
from tests.machine.mm.alloc.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.mm.buddy import Zone
    from asikit.trace import PageKind

REQUEST = GFP_USER | Gfp.ZERO

MACHINE: dict[str, Any] = {"frames": 768, "pageblock_order": 4, "debug": False}


def run(
    prepare: Callable[[Rig], None] | None = None,
    check_every: int = 30,
    **rig: Any,  # noqa: ANN401 - Rig's own
) -> Model:
    """Run random operations, with a full check after each few."""
    machine = Rig(**{**MACHINE, **rig})
    if prepare is not None:
        prepare(machine)
    model = Model(machine)
    RandomRun(model, seed=5).run(4000, check_every)
    return model


def caught(**rig: Any) -> str:  # noqa: ANN401 - Rig's own
    """Run as `run` does, and return the name of the broken promise."""
    with pytest.raises(Violation) as violation:
        run(**rig)
    return violation.value.rule


def test_the_same_runs_are_clean() -> None:
    """Nothing is found where nothing is wrong, and the run does what the bugs need."""
    counters = run().allocator.counters
    assert min(counters.flips_to_sensitive, counters.flips_to_nonsensitive) > 5


def test_published_bug_mirror_copies_presence() -> None:
    """mirror_asi_direct_map: set_memory_np and then set_memory_p make a sensitive page present (DM, Hansen)."""

    def mirror_all(rig: Rig) -> None:
        rig.direct_map.cpa.mapped = lambda _pfn: True

    assert caught(prepare=mirror_all) == "a sensitive page is in the restricted map"


def test_published_bug_mirror_is_found_by_the_allocator_too() -> None:
    """At the free of that very page, in debug mode."""
    rig = Rig(pageblock_order=9, frames=2048)
    rig.direct_map.cpa.mapped = lambda _pfn: True
    pfn = rig.allocator.alloc_pages(REQUEST)
    vaddr = rig.layout.virt(pfn << 12)
    rig.direct_map.set_memory_np(vaddr)
    rig.direct_map.set_memory_p(vaddr)
    with pytest.raises(UnexpectedlyNonsensitiveError):
        rig.allocator.free_pages(pfn)


def test_bug_flip_without_zeroing() -> None:
    """Old secrets become readable."""

    class NoZeroing(PageAllocator):
        def _zero(self, pfn: int, frames: int) -> None:
            pass

    assert caught(allocator_class=NoZeroing) == "a nonsensitive page has old secrets"


def test_bug_flip_zeroes_the_request_only() -> None:
    """The rest of the pageblock is readable as well."""

    class ZeroOne(PageAllocator):
        def _zero(self, pfn: int, frames: int) -> None:
            super()._zero(pfn, min(frames, 1))

    assert caught(allocator_class=ZeroOne) == "a nonsensitive page has old secrets"


def test_bug_flip_without_shootdown() -> None:
    """Another CPU's TLB still has the page when its new owner puts a secret there."""

    class NoShootdown(DirectMap):
        def _shoot_down(self, start: int, end: int) -> None:
            pass

    assert caught(direct_map_class=NoShootdown) == "a sensitive page is in some TLB"


def test_bug_shootdown_of_the_first_page_only() -> None:
    """The others of the pageblock stay in TLBs."""

    class ShortShootdown(DirectMap):
        def _shoot_down(self, start: int, end: int) -> None:
            super()._shoot_down(start, min(end, start + 4096))

    assert caught(direct_map_class=ShortShootdown) == "a sensitive page is in some TLB"


def test_published_bug_worker_never_queued() -> None:
    """The asynchronous unmap of 2024, v1: shootdowns are left to a worker that nobody queues."""

    class Deferred(DirectMap):
        def _shoot_down(self, start: int, end: int) -> None:
            self.__dict__.setdefault("work", []).append((start, end))

        def asi_work(self) -> None:
            """What the worker would do."""
            for start, end in self.__dict__.pop("work", []):
                super()._shoot_down(start, end)

    assert caught(direct_map_class=Deferred) == "a sensitive page is in some TLB"


def test_queued_work_that_runs_before_reuse_is_no_bug() -> None:
    """The check is about reuse, not about how the flush is done."""

    class Deferred(DirectMap):
        def _shoot_down(self, start: int, end: int) -> None:
            self.__dict__.setdefault("work", []).append((start, end))

        def asi_work(self) -> None:
            for start, end in self.__dict__.pop("work", []):
                super()._shoot_down(start, end)

    class Waits(PageAllocator):
        def _prep_new_page(self, *args: Any) -> None:  # noqa: ANN401 - handed through
            assert isinstance(self.direct_map, Deferred)
            self.direct_map.asi_work()
            super()._prep_new_page(*args)

    run(direct_map_class=Deferred, allocator_class=Waits)


def test_bug_merging_across_sensitivity() -> None:
    """Without can_merge_freetypes a block of both would be handed out whole."""

    def merge_all(rig: Rig) -> None:
        for zone in rig.allocator.zones:
            zone.can_merge = lambda _one, _other: True  # type: ignore[method-assign, assignment]

    assert caught(prepare=merge_all, frames=320, max_order=7, check_every=1) == "blocks are merged across sensitivity"


@pytest.mark.parametrize("asked", [1, 7])
def test_bug_freetype_without_sensitivity(asked: int) -> None:
    """gfp_freetype forgets it, always or now and then: "will allocate from the wrong freetype"."""

    class Forgetful(PageAllocator):
        requests = 0

        def _freetype(self, request: RequestClass, kind: PageKind, cache: str | None) -> int:
            self.requests += 1
            freetype = super()._freetype(request, kind, cache)
            return freetype % 4 if self.requests % asked == 0 else freetype

    assert caught(allocator_class=Forgetful) == "a page of the wrong sensitivity is handed out"


def test_bug_fallback_crosses_sensitivity() -> None:
    """find_suitable_fallback takes any list that is not empty."""

    def fall_back_anywhere(rig: Rig) -> None:
        for zone in rig.allocator.zones:
            zone.find_suitable_fallback = any_list(zone)  # type: ignore[method-assign, assignment]

    def any_list(zone: Zone) -> Callable[[int, int], int | None]:
        def find(order: int, freetype: int) -> int | None:
            lists = zone.free_area[order].free_list
            return next((other for other, blocks in enumerate(lists) if blocks and other != freetype), None)

        return find

    assert caught(prepare=fall_back_anywhere) in {
        "a page of the wrong sensitivity is handed out",
        "a block is on a list of the other sensitivity",
    }


def test_bug_pcplists_mix_sensitivities() -> None:
    """Freed pages go to the list of their migratetype, as before the series."""

    class OldPindex(PageAllocator):
        def _free_to_lists(self, pfn: int, order: int) -> None:
            if order == 0 and self.pageblocks.sensitive(pfn):
                self.pcp[0][self.context.cpu_number].lists[0].append(pfn)
                self.pcp[0][self.context.cpu_number].count += 1
            else:
                super()._free_to_lists(pfn, order)

    assert caught(allocator_class=OldPindex) in {
        "a page of the wrong sensitivity is handed out",
        "a block is on a list of the other sensitivity",
    }


def test_bug_flip_from_atomic_context() -> None:
    """ALLOC_NOBLOCK is derived in one place and forgotten in the other; the direct map refuses."""

    class Forgetful(PageAllocator):
        def _rmqueue_buddy(self, zone: Zone, order: int, freetype: int, flags: int) -> int | None:
            return super()._rmqueue_buddy(zone, order, freetype, flags & ~NOBLOCK)

    assert caught(allocator_class=Forgetful) == "sensitivity changes in atomic context"


def test_bug_flip_from_atomic_context_that_the_direct_map_lets_through() -> None:
    """The account notices by itself."""

    class Forgetful(PageAllocator):
        def _rmqueue_buddy(self, zone: Zone, order: int, freetype: int, flags: int) -> int | None:
            return super()._rmqueue_buddy(zone, order, freetype, flags & ~NOBLOCK)

    class Careless(DirectMap):
        def check_may_flip(self) -> None:
            pass

    assert caught(allocator_class=Forgetful, direct_map_class=Careless) == "sensitivity changes in atomic context"


def test_bug_bits_without_mapping() -> None:
    """The pageblock says nonsensitive, the restricted map does not have it: only slow, but I6 is broken."""

    class NotMapped(DirectMap):
        def _write_restricted(self, start: int, end: int, *, sensitive: bool) -> None:
            if sensitive:
                super()._write_restricted(start, end, sensitive=sensitive)

    assert caught(direct_map_class=NotMapped) == "a nonsensitive page is not in the restricted map"


def test_bug_unmapping_forgotten() -> None:
    """The pageblock says sensitive, and everybody can read it."""

    class NotUnmapped(DirectMap):
        def _write_restricted(self, start: int, end: int, *, sensitive: bool) -> None:
            if not sensitive:
                super()._write_restricted(start, end, sensitive=sensitive)

    assert caught(direct_map_class=NotUnmapped) == "a sensitive page is in the restricted map"


def test_bug_tail_is_lost() -> None:
    """What a request does not need of the block must be freed."""

    class NoTail(PageAllocator):
        def _rmqueue_asi(self, zone: Zone, order: int, freetype: int) -> int | None:
            return super()._rmqueue_asi(zone, max(order, zone.pageblock_order), freetype)

    assert caught(allocator_class=NoTail) == "a frame is lost"


def test_bug_stale_unmapped_page_is_handed_out() -> None:
    """A page is freed while it has no mapping; the next owner's clear_page_erms would oops (found at UNM's trial)."""

    class Careless(PageAllocator):
        def _check_free(self, pfn: int, order: int) -> None:
            self.debug, debug = False, self.debug
            super()._check_free(pfn, order)
            self.debug = debug

    rig = Rig(allocator_class=Careless)
    rig.direct_map.attach(allocate=lambda: rig.allocator.alloc_pages(REQUEST))
    pfn = rig.allocator.alloc_pages(REQUEST)
    rig.direct_map.set_memory_np(rig.layout.virt(pfn << 12))
    rig.allocator.free_pages(pfn)
    with pytest.raises(UnmappedPageError, match=f"page frame {pfn:#x}"):
        rig.allocator.alloc_pages(REQUEST)
