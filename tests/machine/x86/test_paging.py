"""Translation: what the cross product of `test_access` does not reach."""

from __future__ import annotations

import pytest

from asikit.machine.x86 import (
    Access,
    BusError,
    Entry,
    GeneralProtection,
    PageFault,
    PagingMode,
    PfError,
    PhysicalMemory,
    Pte,
    is_canonical,
    lookup,
    walk,
)
from tests.machine.x86.tables import OPEN, Tables

MODE = PagingMode(wp=True, smep=False, smap=False)
LA57 = MODE._replace(la57=True)


@pytest.mark.parametrize(
    ("la57", "last_low", "first_high"),
    [(False, 0x7FFF_FFFF_FFFF, 0xFFFF_8000_0000_0000), (True, 0xFF_FFFF_FFFF_FFFF, 0xFF00_0000_0000_0000)],
)
def test_canonical(la57: bool, last_low: int, first_high: int) -> None:
    """The halves of the address space, to the byte; the hole and what is no 64-bit number is #GP."""
    memory = PhysicalMemory(4096)
    mode = LA57 if la57 else MODE
    for good in (0, last_low, first_high, (1 << 64) - 1):
        assert is_canonical(good, la57=la57)
        with pytest.raises(PageFault):
            walk(memory, 0, good, Access.READ, mode)
    for bad in (last_low + 1, first_high - 1, 1 << 63, 1 << 64, -1):
        assert not is_canonical(bad, la57=la57)
        with pytest.raises(GeneralProtection, match=f"^address {bad:#x} is not canonical$"):
            walk(memory, 0, bad, Access.READ, mode)


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize(("level", "size"), [(1, 1 << 12), (2, 1 << 21), (3, 1 << 30)])
def test_pages_of_all_sizes(levels: int, level: int, size: int) -> None:
    """The first and last byte of a page, its neighbours, and what the translation says of it."""
    memory = PhysicalMemory(1 << 31)
    tables = Tables(memory, levels=levels)
    mode = LA57 if levels == 5 else MODE
    vaddr = (0xFF12_0000_4000_0000 if levels == 5 else 0xFFFF_9876_4000_0000) & -size
    place = tables.map(vaddr, 1 << 30, OPEN | Pte.GLOBAL, level=level)
    for offset in (0, 1, size - 1):
        found = walk(memory, tables.root, vaddr + offset, Access.READ, mode)
        assert (found.paddr, found.page_bytes) == ((1 << 30) + offset, size)
        assert (found.writable, found.user, found.nx, found.dirty) == (True, True, False, False)
        assert (found.entry_paddr, found.global_) == (place, False)
    assert walk(memory, tables.root, vaddr, Access.WRITE, mode._replace(pge=True)).global_
    assert walk(memory, tables.root, vaddr, Access.READ, mode).dirty
    for outside in (vaddr - 1, vaddr + size):
        with pytest.raises(PageFault):
            walk(memory, tables.root, outside, Access.READ, mode)
    assert lookup(memory, tables.root, vaddr + size - 1, levels) == Entry(memory.read_u64(place), level, place)


def test_lookup_ends_where_the_kernels_does() -> None:
    """At an empty upper entry with nothing; at one that is not present but not empty with that one; a PTE always."""
    memory = PhysicalMemory(1 << 24)
    tables = Tables(memory)
    assert lookup(memory, tables.root, 0x1000) is None
    place = tables.slot(0x1000)
    assert lookup(memory, tables.root, 0x1000) == Entry(0, 1, place)
    middle = tables.slot(0x1000, 2)
    absent = 0x20_0000 | Pte.PSE | Pte.RW
    memory.write_u64(middle, absent)
    assert lookup(memory, tables.root, 0x1000) == Entry(absent, 2, middle)
    memory.write_u64(middle, 0x5000 | Pte.RW)
    assert lookup(memory, tables.root, 0x1000) == Entry(0x5000 | Pte.RW, 2, middle)


def test_check_only() -> None:
    """Without marking, the same verdict and translation, and memory stays as it is."""
    memory = PhysicalMemory(1 << 24)
    tables = Tables(memory)
    place = tables.map(0x1000, 0x5000)
    before = memory.read(0, memory.size)
    unmarked = walk(memory, tables.root, 0x1234, Access.WRITE, MODE, mark=False)
    assert memory.read(0, memory.size) == before
    assert unmarked == walk(memory, tables.root, 0x1234, Access.WRITE, MODE)
    assert memory.read_u64(place) == 0x5000 | OPEN | Pte.ACCESSED | Pte.DIRTY


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("ac", [False, True])
def test_implicit_accesses(user: bool, ac: bool) -> None:
    """4.6.1: an implicit access is supervisor-mode at any CPL, and AC does not let it through SMAP."""
    memory = PhysicalMemory(1 << 24)
    tables = Tables(memory)
    tables.map(0x1000, 0x5000, Pte.PRESENT)
    tables.map(0x2000, 0x6000, OPEN)
    mode = MODE._replace(smap=True, user=user, ac=ac, implicit=True)
    assert walk(memory, tables.root, 0x1000, Access.READ, mode).paddr == 0x5000
    with pytest.raises(PageFault) as caught:
        walk(memory, tables.root, 0x2000, Access.READ, mode)
    assert caught.value.error_code == PfError.P
    assert walk(memory, tables.root, 0x2000, Access.READ, mode._replace(smap=False)).paddr == 0x6000


@pytest.mark.parametrize("maxphyaddr", [36, 39, 46, 52])
def test_maxphyaddr(maxphyaddr: int) -> None:
    """The highest address bit is an address bit, the next is reserved (and with 52 bits none is)."""
    memory = PhysicalMemory(1 << 52)
    tables = Tables(memory)
    mode = MODE._replace(maxphyaddr=maxphyaddr)
    tables.map(0x1000, 1 << (maxphyaddr - 1))
    assert walk(memory, tables.root, 0x1000, Access.READ, mode).paddr == 1 << (maxphyaddr - 1)
    if maxphyaddr < 52:
        tables.map(0x1000, 1 << maxphyaddr)
        with pytest.raises(PageFault) as caught:
            walk(memory, tables.root, 0x1000, Access.READ, mode)
        assert caught.value.error_code == PfError.P | PfError.RSVD


def test_ignored_bits() -> None:
    """Bits that the tables of 4.5 call ignored change nothing: 11:9 and 62:52 anywhere, 6 and 8 of an upper entry."""
    memory = PhysicalMemory(1 << 24)
    tables = Tables(memory)
    ignored = 0x7FF << 52 | 0b111 << 9
    tables.map(0x1000, 0x5000, OPEN | ignored)
    for level in (2, 3, 4):
        place = tables.slot(0x1000, level)
        memory.write_u64(place, memory.read_u64(place) | ignored | Pte.DIRTY | Pte.GLOBAL)
    found = walk(memory, tables.root, 0x1000, Access.READ, MODE._replace(pge=True))
    assert (found.paddr, found.global_, found.dirty) == (0x5000, False, False)


def test_tables_that_map_themselves() -> None:
    """An entry used at every level gets its flags once."""
    memory = PhysicalMemory(1 << 24)
    memory.write_u64(0x1000 + 511 * 8, 0x1000 | OPEN)
    found = walk(memory, 0x1000, (1 << 64) - 8, Access.WRITE, MODE)
    assert found.paddr == 0x1FF8
    assert memory.read_u64(0x1FF8) == 0x1000 | OPEN | Pte.ACCESSED | Pte.DIRTY


def test_tables_outside_memory() -> None:
    """A paging structure where there is no memory is a bug of the modelled kernel, not a fault."""
    with pytest.raises(BusError, match=r"^no memory at physical address 0x800000 \(there are 0x1000 bytes\)$"):
        walk(PhysicalMemory(4096), 0x80_0000, 0, Access.READ, MODE)


def test_text_of_a_fault() -> None:
    """For people: the address and the flags of the error code."""
    assert str(PageFault(0x1000, PfError.P | PfError.W)) == "page fault at 0x1000 (P|W)"
    assert str(PageFault(0x1000, 0)) == "page fault at 0x1000 (not present)"
