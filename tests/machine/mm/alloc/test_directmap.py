"""The two direct maps and set_memory_*, checked by reading the raw tables."""

from __future__ import annotations

import itertools

import pytest

from asikit.machine.mm import (
    GFP_KERNEL,
    GFP_USER,
    AtomicFlipError,
    DirectMap,
    FlipAllocatesError,
    FlipRangeError,
    Layout,
    Memblock,
    NotDirectMappedError,
    OutOfMemoryError,
    SplitError,
)
from asikit.machine.mm import pgtable as pg
from asikit.machine.mm._checks import check_mappings
from asikit.machine.x86 import PhysicalMemory, lookup
from tests.machine.mm.alloc.rig import Rig, TestContext, TestFlusher, TracedMemory

BLOCK = 512


def flags_of(rig: Rig, root: int, pfn: int) -> int:
    """The flags of a frame's leaf, without the size bit."""
    found = lookup(rig.memory, root << 12, rig.layout.virt(pfn << 12), rig.layout.levels)
    assert found is not None
    return pg.entry_flags(found[0]) & ~pg.PSE


def level_of(rig: Rig, root: int, pfn: int) -> int:
    """The level of a frame's leaf."""
    found = lookup(rig.memory, root << 12, rig.layout.virt(pfn << 12), rig.layout.levels)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("frames", [4 * BLOCK, 3 * BLOCK + 77])
def test_all_memory_is_mapped_and_all_of_it_is_sensitive(levels: int, frames: int) -> None:
    """2 MiB pages, small ones only at a ragged end; nothing in the restricted map, whose tables are all there."""
    rig = Rig(frames, levels=levels, pageblock_order=9)
    assert rig.unrestricted() == set(range(frames))
    assert rig.restricted() == set()
    assert rig.direct_map.nonsensitive_pgd is not None
    for root in (rig.direct_map.pgd, rig.direct_map.nonsensitive_pgd):
        assert level_of(rig, root, BLOCK + 5) == 2
        assert level_of(rig, root, frames - 1) == (1 if frames % BLOCK else 2)
    assert flags_of(rig, rig.direct_map.pgd, 3) == pg.PAGE_KERNEL
    assert all(rig.direct_map.direct_map_sensitive(pfn) for pfn in (0, BLOCK, frames - 1))


def test_gigabyte_pages_are_for_the_unrestricted_map_only() -> None:
    """The restricted one needs an entry for each pageblock."""
    frames = (1 << 18) + BLOCK
    memory, layout, memblock = PhysicalMemory(frames << 12), Layout(), Memblock(frames)
    access = TracedMemory(memory, layout)
    direct_map = DirectMap(access, layout, frames, memblock.alloc, memory.read_u64, gigabyte_pages=True)
    direct_map.build()
    assert direct_map.nonsensitive_pgd is not None
    levels = [
        direct_map.tables.lookup(root, layout.virt(pfn << 12)).level
        for root, pfn in itertools.product((direct_map.pgd, direct_map.nonsensitive_pgd), (0, 1 << 18))
    ]
    assert levels == [3, 2, 2, 2]
    direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=False)
    direct_map.pageblocks.set_sensitive(BLOCK, BLOCK, sensitive=False)
    direct_map.set_memory_ro(layout.virt(BLOCK + 7 << 12))
    for root in (direct_map.pgd, direct_map.nonsensitive_pgd):
        entry = direct_map.tables.lookup(root, layout.virt(BLOCK + 7 << 12))
        assert (entry.level, entry.pfn, pg.entry_flags(entry.value)) == (1, BLOCK + 7, pg.PAGE_KERNEL_RO)
    assert direct_map.tables.lookup(direct_map.pgd, layout.virt(5 * BLOCK << 12)).level == 2


def test_without_asi_there_is_no_restricted_map() -> None:
    """And all counts as nonsensitive."""
    rig = Rig(2 * BLOCK, asi=False, pageblock_order=9)
    assert rig.direct_map.nonsensitive_pgd is None
    assert not rig.direct_map.direct_map_sensitive(BLOCK)
    assert not rig.direct_map.pageblocks.sensitive(BLOCK)
    rig.direct_map.set_memory_ro(rig.layout.virt(BLOCK << 12))
    rig.direct_map.remove_restricted(BLOCK)
    with pytest.raises(FlipRangeError, match="ASI is off"):
        rig.direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=False)


def test_change_of_sensitivity_flips_one_block_and_nothing_else() -> None:
    """In without a flush, out with one of just these addresses, and no entry of any table but the block's changes."""
    rig = Rig(4 * BLOCK, pageblock_order=9)
    rig.direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=False)
    assert rig.restricted() == set(range(BLOCK, 2 * BLOCK))
    assert rig.flusher.log == []
    before = len(rig.access.stores)
    rig.direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=True)
    assert rig.restricted() == set()
    start = rig.layout.virt(BLOCK << 12)
    assert rig.flusher.log == [("flush", start, start + (2 << 20))]
    assert len(rig.access.stores) == before
    assert rig.unrestricted() == set(range(4 * BLOCK))


@pytest.mark.parametrize(("pfn", "frames"), [(BLOCK + 1, BLOCK), (BLOCK, 1), (BLOCK, 0), (0, 100 * BLOCK)])
def test_sensitivity_changes_by_whole_pageblocks(pfn: int, frames: int) -> None:
    """I7."""
    rig = Rig(4 * BLOCK, pageblock_order=9)
    with pytest.raises(FlipRangeError, match="whole pageblocks"):
        rig.direct_map.set_direct_map_sensitive(pfn, frames, sensitive=False)


@pytest.mark.parametrize("context", [TestContext(irqs_enabled=False), TestContext(may_block=False)])
def test_sensitivity_does_not_change_in_atomic_context(context: TestContext) -> None:
    """I7: with interrupts off, or where blocking is forbidden, a shootdown could wait for ever."""
    rig = Rig(4 * BLOCK, pageblock_order=9)
    rig.direct_map.attach(context=context)
    with pytest.raises(AtomicFlipError):
        rig.direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=False)
    assert rig.restricted() == set()


def test_change_of_sensitivity_never_allocates() -> None:
    """I7: a restricted mapping larger than a block would have to be split; that is refused, not done."""
    rig = Rig(4 * BLOCK, pageblock_order=9)
    rig.direct_map.tables.allocate = lambda: pytest.fail("a page table is allocated")
    rig.direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=False)
    rig.direct_map.pageblocks.order = 8
    with pytest.raises(FlipAllocatesError, match="larger than a pageblock"):
        rig.direct_map.set_direct_map_sensitive(2 * BLOCK, BLOCK // 2, sensitive=False)


def test_set_memory_splits_where_it_must_and_only_there() -> None:
    """A whole large page keeps its entry; a part of one splits it in both maps."""
    rig = Rig(4 * BLOCK, pageblock_order=9)
    direct_map = rig.direct_map
    assert direct_map.nonsensitive_pgd is not None
    roots = (direct_map.pgd, direct_map.nonsensitive_pgd)
    direct_map.set_memory_ro(rig.layout.virt(BLOCK << 12), BLOCK)
    assert [level_of(rig, root, BLOCK) for root in roots] == [2, 2]
    direct_map.set_memory_rw(rig.layout.virt(BLOCK << 12), BLOCK + 3)
    assert [level_of(rig, root, BLOCK) for root in roots] == [2, 2]
    direct_map.set_memory_ro(rig.layout.virt((2 * BLOCK - 1) << 12), 2)
    assert [level_of(rig, root, pfn) for root in roots for pfn in (BLOCK, 2 * BLOCK, 3 * BLOCK)] == [1, 1, 2] * 2
    read_only = [not flags_of(rig, direct_map.pgd, pfn) & pg.RW for pfn in range(4 * BLOCK)]
    assert [pfn for pfn, is_ro in enumerate(read_only) if is_ro] == [2 * BLOCK - 1, 2 * BLOCK]


OPERATIONS = {"ro": (0, pg.RW), "rw": (pg.RW, 0), "x": (0, pg.NX), "nx": (pg.NX, 0), "np": (0, 1), "p": (1, 0)}


@pytest.mark.parametrize("sensitive", [False, True])
@pytest.mark.parametrize("names", list(itertools.product(OPERATIONS, repeat=3)), ids="-".join)
def test_attributes_are_mirrored_and_presence_is_not(names: tuple[str, ...], sensitive: bool) -> None:
    """For every sequence of three calls: same flags in both maps, but present only if nonsensitive and present."""
    rig = Rig(2 * BLOCK, pageblock_order=9)
    direct_map = rig.direct_map
    assert direct_map.nonsensitive_pgd is not None
    if not sensitive:
        direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=False)
        direct_map.pageblocks.set_sensitive(BLOCK, BLOCK, sensitive=False)
    flags = pg.PAGE_KERNEL
    for name in names:
        getattr(direct_map, f"set_memory_{name}")(rig.layout.virt((BLOCK + 9) << 12), 2)
        to_set, to_clear = OPERATIONS[name]
        flags = flags & ~to_clear | to_set
        assert flags_of(rig, direct_map.pgd, BLOCK + 9) == flags
        restricted = flags if not sensitive else flags & ~pg.PRESENT
        assert flags_of(rig, direct_map.nonsensitive_pgd, BLOCK + 10) == restricted
        assert flags_of(rig, direct_map.nonsensitive_pgd, BLOCK + 11) == pg.PAGE_KERNEL & ~(pg.PRESENT * sensitive)


def test_changes_are_flushed_everywhere_and_no_change_is_not() -> None:
    """After a split everything, after a change its addresses."""
    rig = Rig(2 * BLOCK, pageblock_order=9)
    start = rig.layout.virt((BLOCK + 1) << 12)
    rig.direct_map.set_memory_rw(start)
    assert rig.flusher.log == [("flush", 0, 1 << 64)]
    rig.flusher.log.clear()
    rig.direct_map.set_memory_ro(start)
    assert rig.flusher.log == [("flush", 0, 1 << 64), ("flush", start, start + 4096)]
    rig.flusher.log.clear()
    rig.direct_map.set_memory_ro(start)
    assert rig.flusher.log == []


@pytest.mark.parametrize("offset", [-4096, 2 * BLOCK << 12, (2 * BLOCK - 1) << 12, 1])
def test_set_memory_is_for_the_direct_map(offset: int) -> None:
    """-EFAULT for two pages that are not both there, or no pages."""
    rig = Rig(2 * BLOCK, pageblock_order=9)
    with pytest.raises(NotDirectMappedError):
        rig.direct_map.set_memory_ro(rig.layout.direct_map.start + offset, 2)


@pytest.mark.parametrize("pages", [0, 1])
def test_split_without_memory_changes_nothing(pages: int) -> None:
    """-ENOMEM: with no page at all, and with one for the unrestricted map but none for the other."""
    rig = Rig(4 * BLOCK, pageblock_order=9)
    spare = iter([rig.memblock.alloc()] * pages)

    def allocate() -> int:
        pfn = next(spare, None)
        if pfn is None:
            raise OutOfMemoryError("none left")
        return pfn

    rig.direct_map.attach(allocate=allocate)
    with pytest.raises(SplitError, match="no page to split"):
        rig.direct_map.set_memory_np(rig.layout.virt((BLOCK + 1) << 12))
    assert rig.unrestricted() == set(range(4 * BLOCK))
    assert rig.restricted() == set()
    rig.direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=False)
    assert rig.restricted() == set(range(BLOCK, 2 * BLOCK))


def test_split_that_another_cpu_did_meanwhile_is_kept() -> None:
    """The page for a second table goes back."""
    rig = Rig(4 * BLOCK, pageblock_order=9, asi=False)
    freed: list[int] = []
    allocate = rig.direct_map.tables.allocate
    address = rig.layout.virt((BLOCK + 1) << 12)

    def slow() -> int:
        rig.direct_map.attach(allocate=allocate)
        rig.direct_map.set_memory_ro(address + 4096)
        return allocate()

    rig.direct_map.attach(allocate=slow, free=freed.append)
    rig.direct_map.set_memory_ro(address)
    assert len(freed) == 1
    flags = [flags_of(rig, rig.direct_map.pgd, BLOCK + index) & pg.RW for index in range(4)]
    assert flags == [pg.RW, 0, 0, pg.RW]


@pytest.mark.parametrize("sensitive", [False, True])
def test_removed_page_stays_out_whatever_happens(sensitive: bool) -> None:
    """I10's experiment: one page out of the restricted map, through changes of its block and of attributes."""
    rig = Rig(4 * BLOCK, pageblock_order=9)
    direct_map = rig.direct_map
    page = BLOCK + 5

    def flip(*, to: bool) -> None:
        direct_map.set_direct_map_sensitive(BLOCK, BLOCK, sensitive=to)
        direct_map.pageblocks.set_sensitive(BLOCK, BLOCK, sensitive=to)

    if not sensitive:
        flip(to=False)
    direct_map.remove_restricted(page)
    start = rig.layout.virt(page << 12)
    assert ("flush", start, start + 4096) in rig.flusher.log
    block = set(range(BLOCK, 2 * BLOCK))
    assert rig.restricted() == (set() if sensitive else block - {page})
    for to in (True, False):
        if direct_map.pageblocks.sensitive(page) != to:
            flip(to=to)
    direct_map.set_memory_np(start)
    direct_map.set_memory_p(start)
    assert rig.restricted() == block - {page}
    assert rig.unrestricted() == set(range(4 * BLOCK))
    check_mappings(rig.allocator)
    with pytest.raises(NotDirectMappedError):
        direct_map.remove_restricted(1 << 40)


def test_asis_own_accesses_are_not_counted() -> None:
    """Edits of the restricted map and changes of sensitivity stand outside of the logical clock."""
    counted: list[str] = []

    class Memory(TracedMemory):
        def store(self, vaddr: int, data: bytes) -> None:
            super().store(vaddr, data)
            self.note(vaddr)

        def store_u64(self, vaddr: int, value: int) -> None:
            super().store_u64(vaddr, value)
            self.note(vaddr)

        def note(self, vaddr: int) -> None:
            if context.uncounted_depth == 0:
                counted.append(hex(vaddr))

    results = []
    for asi in (True, False):
        rig = Rig(8 * BLOCK, pageblock_order=9, asi=asi)
        context = rig.context
        memory = Memory(rig.memory, rig.layout)
        rig.direct_map.attach(access=memory)
        rig.allocator.access = memory
        counted.clear()
        pages = [rig.allocator.alloc_pages(gfp) for gfp in (GFP_KERNEL, GFP_USER, GFP_KERNEL)]
        rig.direct_map.set_memory_ro(rig.layout.virt(pages[0] << 12))
        results.append(len(counted))
    assert results[0] == results[1] == 3


def test_a_pageblock_is_no_larger_than_what_one_entry_maps() -> None:
    """Else a change of sensitivity were more than one step."""
    with pytest.raises(ValueError, match="order is 1 to 9, not 10"):
        Rig(2 * BLOCK, pageblock_order=10)


def test_flusher_is_replaced_after_boot() -> None:
    """As the rest of what the running kernel has instead of early boot."""
    rig = Rig(2 * BLOCK, pageblock_order=9)
    later = TestFlusher()
    rig.direct_map.attach(flusher=later)
    rig.direct_map.set_memory_ro(rig.layout.virt(BLOCK << 12), BLOCK)
    assert len(later.log) == 1
    assert rig.flusher.log == []
