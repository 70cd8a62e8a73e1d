"""Editing page tables, against the processor's own walk."""

from __future__ import annotations

import pytest

from asikit.machine.mm import BootMemory, Layout, Memblock, PageTableError, PageTables
from asikit.machine.mm import pgtable as pg
from asikit.machine.x86 import PhysicalMemory, Pte
from asikit.machine.x86 import lookup as x86_lookup

USER_ADDRESS = 0x0000_1234_5678_9000
FLAGS = pg.PRESENT | pg.RW | pg.USER | pg.NX


class Tables:
    """Empty page tables in 1 MiB of memory."""

    def __init__(self, levels: int = 4) -> None:
        self.memory = PhysicalMemory(1 << 20)
        self.layout = Layout(levels)
        self.memblock = Memblock(256)
        self.freed: list[int] = []
        self.changes: list[tuple[int, int, int]] = []
        self.tables = PageTables(
            BootMemory(self.memory, self.layout),
            self.layout,
            self.memblock.alloc,
            self.freed.append,
            lambda root, index, entry: self.changes.append((root, index, entry)),
        )
        self.root = self.tables.new_root()

    def walk(self, vaddr: int) -> tuple[int, int] | None:
        """What the processor finds: entry and level."""
        found = x86_lookup(self.memory, self.root << 12, vaddr, self.layout.levels)
        return None if found is None else (found[0], found[1])


def test_flag_bits_are_the_processors() -> None:
    """Plain numbers here, an IntFlag there."""
    for name in ("PRESENT", "RW", "USER", "PWT", "PCD", "ACCESSED", "DIRTY", "PSE", "GLOBAL", "NX"):
        assert getattr(pg, name) == int(Pte[name])


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("level", [1, 2, 3])
def test_mapped_page_is_what_the_processor_finds(levels: int, level: int) -> None:
    """Pages of all sizes; intermediate tables are made once, with user permission for user addresses only."""
    own = Tables(levels)
    size, frames = pg.level_bytes(level), pg.level_frames(level)
    for vaddr in (USER_ADDRESS & -size, own.layout.vmalloc.start & -size):
        own.tables.map_page(own.root, vaddr, 3 * frames, FLAGS, level)
        assert own.walk(vaddr) == (3 * frames << 12 | FLAGS | (pg.PSE if level > 1 else 0), level)
        entry = own.tables.lookup(own.root, vaddr + size - 1)
        assert (entry.pfn, entry.level, entry.vaddr, entry.present) == (3 * frames, level, vaddr, True)
    assert [index for _, index, _ in own.changes] == [
        own.layout.pgd_index(USER_ADDRESS),
        own.layout.pgd_index(own.layout.vmalloc.start),
    ]
    users = [bool(entry & pg.USER) for _, _, entry in own.changes]
    assert users == [True, False]


def test_entry_that_is_not_present_has_its_frame_inverted() -> None:
    """So a walk that goes on speculatively finds no memory (L1TF); the frame can be told all the same."""
    entry = pg.make_entry(0x1234, pg.RW | pg.NX)
    assert entry & pg.PTE_PFN_MASK == ~(0x1234 << 12) & pg.PTE_PFN_MASK
    assert pg.entry_pfn(entry) == 0x1234
    assert pg.entry_flags(entry) == pg.RW | pg.NX
    assert pg.make_entry(0x1234, pg.PRESENT) == 0x1234 << 12 | 1
    assert pg.entry_pfn(0) == pg.make_entry(0, 0) == 0


def test_unmap_and_protect_return_what_was_there() -> None:
    """And change the processor's walk."""
    own = Tables()
    own.tables.map_page(own.root, USER_ADDRESS, 5, FLAGS)
    old = own.tables.protect(own.root, USER_ADDRESS, clear_flags=pg.RW, set_flags=pg.DIRTY)
    assert pg.entry_flags(old.value) == FLAGS
    assert own.walk(USER_ADDRESS) == (5 << 12 | FLAGS & ~pg.RW | pg.DIRTY, 1)
    assert own.tables.unmap_page(own.root, USER_ADDRESS).pfn == 5
    assert own.tables.lookup(own.root, USER_ADDRESS).value == 0
    assert own.tables.unmap_page(own.root, USER_ADDRESS).value == 0
    with pytest.raises(PageTableError, match="nothing is mapped"):
        own.tables.protect(own.root, USER_ADDRESS)


def test_what_does_not_fit_is_refused() -> None:
    """Unaligned pages; large pages over small ones and the other way round."""
    own = Tables()
    block = USER_ADDRESS & -(2 << 20)
    with pytest.raises(PageTableError, match="not aligned"):
        own.tables.map_page(own.root, block, 1, FLAGS, level=2)
    with pytest.raises(PageTableError, match="not aligned"):
        own.tables.map_page(own.root, block + 4096, 512, FLAGS, level=2)
    own.tables.map_page(own.root, block, 512, FLAGS, level=2)
    with pytest.raises(PageTableError, match="2048 KiB page is mapped"):
        own.tables.map_page(own.root, block + 4096, 1, FLAGS)
    own.tables.map_page(own.root, block + (2 << 20), 1, FLAGS)
    with pytest.raises(PageTableError, match="smaller pages"):
        own.tables.map_page(own.root, block + (2 << 20), 512, FLAGS, level=2)
    with pytest.raises(PageTableError, match="no large page"):
        own.tables.split(own.tables.lookup(own.root, block + (2 << 20)), 77)


@pytest.mark.parametrize("level", [2, 3])
def test_split_changes_nothing_for_who_accesses_memory(level: int) -> None:
    """Every page has the frame and flags that it had."""
    own = Tables()
    size = pg.level_bytes(level)
    start = USER_ADDRESS & -size
    frames = pg.level_frames(level)
    own.tables.map_page(own.root, start, frames, FLAGS, level)
    own.tables.split(own.tables.lookup(own.root, start), own.memblock.alloc())
    entries = list(own.tables.range(own.root, start, start + size))
    below = pg.level_frames(level - 1)
    assert [entry.pfn for entry in entries] == list(range(frames, 2 * frames, below))
    assert {pg.entry_flags(entry.value) for entry in entries} == {FLAGS | (pg.PSE if level == 3 else 0)}
    assert own.walk(start + size - 4096) == (entries[-1].value, level - 1)


def test_range_yields_what_is_mapped_and_skips_holes() -> None:
    """Pages of both sizes; entries that are not present but not empty count."""
    own = Tables()
    start = 0x4000_0000
    own.tables.map_page(own.root, start, 512, FLAGS, level=2)
    own.tables.map_page(own.root, start + (2 << 20) + 0x5000, 7, FLAGS & ~pg.PRESENT)
    own.tables.map_page(own.root, start + (1 << 30), 8, FLAGS)
    found = [
        (entry.vaddr - start, entry.pfn) for entry in own.tables.range(own.root, start + 0x3000, start + (2 << 30))
    ]
    assert found == [(0, 512), ((2 << 20) + 0x5000, 7), (1 << 30, 8)]


def test_emptied_tables_are_freed_and_others_stay() -> None:
    """free_pgtables, with the entry of the root announced."""
    own = Tables()
    far = USER_ADDRESS + (1 << 30)
    own.tables.map_page(own.root, USER_ADDRESS, 5, FLAGS)
    own.tables.map_page(own.root, far, 6, FLAGS)
    own.tables.unmap_page(own.root, USER_ADDRESS)
    assert own.tables.free_empty(own.root, USER_ADDRESS, USER_ADDRESS + 4096) == 2
    assert own.walk(far) == (6 << 12 | FLAGS, 1)
    own.tables.unmap_page(own.root, far)
    assert own.tables.free_empty(own.root, USER_ADDRESS & -(1 << 39), far + 4096) == 3
    assert len(set(own.freed)) == 5
    assert own.memory.read(own.root << 12, 4096) == bytes(4096)
    assert own.changes[-1][2] == 0


def test_table_that_another_cpu_made_meanwhile_is_kept() -> None:
    """The one that was allocated for nothing goes back."""
    own = Tables()
    allocate = own.tables.allocate
    once = iter([True])

    def slow() -> int:
        if next(once, False):
            own.tables.map_page(own.root, USER_ADDRESS + 4096, 9, FLAGS)
        return allocate()

    own.tables.allocate = slow
    own.tables.map_page(own.root, USER_ADDRESS, 8, FLAGS)
    assert own.walk(USER_ADDRESS) == (8 << 12 | FLAGS, 1)
    assert own.walk(USER_ADDRESS + 4096) == (9 << 12 | FLAGS, 1)
    assert len(own.freed) == 1
    own.tables.free = None


def test_roots_share_the_tables_below_copied_entries() -> None:
    """What is mapped later, below entries that were preallocated, shows in both (I8)."""
    own = Tables()
    area = own.layout.vmalloc
    own.tables.preallocate(own.root, area.start + 4096, area.start + (2 << 39))
    other = own.tables.new_root()
    own.tables.copy_pgd_entries(own.root, other)
    for vaddr in (area.start, area.start + (2 << 39) - 4096):
        own.tables.map_page(own.root, vaddr, 11, pg.PAGE_KERNEL)
        assert own.tables.lookup(other, vaddr).pfn == 11
    half = bytes(2048)
    assert own.memory.read(other << 12, 2048) == half
    assert own.memory.read((other << 12) + 2048, 2048) == own.memory.read((own.root << 12) + 2048, 2048) != half


def test_entries_of_the_root_can_be_replaced() -> None:
    """Found by a lookup that ended there."""
    own = Tables()
    entry = own.tables.lookup(own.root, USER_ADDRESS)
    assert entry.level == 4
    own.tables.set_entry(own.root, entry, 0x5000 | pg.PAGE_TABLE)
    assert own.changes == [(own.root, own.layout.pgd_index(USER_ADDRESS), 0x5000 | pg.PAGE_TABLE)]
