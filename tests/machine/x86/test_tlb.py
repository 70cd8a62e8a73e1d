"""What stays in the TLB and what each instruction removes (SDM 3A 4.10), one rule at a time.

`test_tlb_model` shows that nothing may be used that should be gone; here also that what may stay is really used, as a
stale translation that nobody sees would hide the bugs that this machine is to show.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.machine.x86 import CR3_NOFLUSH, Access, Cr4, Invpcid, PageFault, Pte, Tlb, Translation
from tests.machine.x86.tables import OPEN, Tables, cpu, tables

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.x86 import Cpu

HERE, THERE = 0x7000_0000, 0x7000_1000
SHARED = 0xC000_0000
OLD, NEW = 1 << 30, 2 << 30
MINE, OTHER = 1, 2


class Scene:
    """A processor under PCID 1 whose TLB has HERE and THERE under PCIDs 1 and 2 and one global page; all remapped.

    Every address was at OLD when it was cached, where there are o's, and is at NEW now, where there are n's.
    """

    def __init__(self, *, level: int = 1) -> None:
        self.cpu = cpu(size=4 << 30)
        self.tables = Tables(self.cpu.memory)
        self.cpu.write_cr3(self.tables.root | MINE)
        self.cpu.write_cr4(self.cpu.cr4 | Cr4.PGE)
        for paddr in (OLD, NEW):
            kernel = OPEN & ~Pte.USER
            for vaddr, flags in ((HERE, kernel), (THERE, kernel), (SHARED, kernel | Pte.GLOBAL)):
                self.tables.map(vaddr, paddr, flags, level=level)
                inside = vaddr & ((1 << (3 + 9 * level)) - 1)
                self.cpu.memory.write(paddr + inside, b"o" if paddr == OLD else b"n")
            if paddr == OLD:
                for pcid in (OTHER, MINE):
                    self.cpu.write_cr3(self.tables.root | pcid | CR3_NOFLUSH)
                    for vaddr in (HERE, THERE, SHARED):
                        self.cpu.load(vaddr, 1)

    def stale(self) -> set[str]:
        """Which entries are still there; this looks without walking."""
        return {name for name, (vaddr, pcid) in PLACES.items() if self.cpu.tlb.lookup(vaddr, pcid) is not None}

    def served_old(self) -> set[str]:
        """Which loads are served by the old translation."""
        served = set()
        for name, (vaddr, pcid) in PLACES.items():
            if self.cpu.cr4 & Cr4.PCIDE:
                self.cpu.write_cr3(self.tables.root | pcid | CR3_NOFLUSH)
            if self.cpu.load(vaddr, 1) == b"o":
                served.add(name)
        return served


PLACES = {
    "mine here": (HERE, MINE),
    "mine there": (THERE, MINE),
    "other here": (HERE, OTHER),
    "other there": (THERE, OTHER),
    "global": (SHARED, MINE),
    "global under the other": (SHARED, OTHER),
}
GLOBAL = {"global", "global under the other"}
ALL = set(PLACES)


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "flush", "left"),
    [
        ("nothing", lambda _on, _root: None, ALL),
        ("CR3, noflush", lambda on, root: on.write_cr3(root | MINE | CR3_NOFLUSH), ALL),
        ("CR3", lambda on, root: on.write_cr3(root | MINE), {"other here", "other there"} | GLOBAL),
        ("CR3, other PCID", lambda on, root: on.write_cr3(root | OTHER), {"mine here", "mine there"} | GLOBAL),
        ("INVPCID 0", lambda on, _root: on.invpcid(Invpcid.ADDRESS, OTHER, HERE), ALL - {"other here"}),
        ("INVPCID 1", lambda on, _root: on.invpcid(Invpcid.SINGLE_CONTEXT, OTHER), ALL - {"other here", "other there"}),
        ("INVPCID 2", lambda on, _root: on.invpcid(Invpcid.ALL_WITH_GLOBAL), set()),
        ("INVPCID 3", lambda on, _root: on.invpcid(Invpcid.ALL), GLOBAL),
        ("INVPCID 0, global", lambda on, _root: on.invpcid(Invpcid.ADDRESS, MINE, SHARED), ALL),
        ("INVLPG", lambda on, _root: on.invlpg(HERE + 0xFFF), ALL - {"mine here"}),
        ("INVLPG, global", lambda on, _root: on.invlpg(SHARED), ALL - GLOBAL),
        ("CR4.PGE", lambda on, _root: on.write_cr4(on.cr4 & ~Cr4.PGE), set()),
        ("CR4.PCIDE", lambda on, _root: on.write_cr4(on.cr4 & ~Cr4.PCIDE), set()),
        ("CR4.SMEP", lambda on, _root: on.write_cr4(on.cr4 | Cr4.SMEP), {"other here", "other there"}),
        ("CR4.SMAP", lambda on, _root: on.write_cr4(on.cr4 | Cr4.SMAP), ALL),
        ("CR0.WP", lambda on, _root: on.write_cr0(on.cr0 ^ 1 << 16), ALL),
        ("IA32_EFER.NXE", lambda on, _root: on.write_efer(on.efer ^ 1 << 11), ALL),
    ],
)
def test_what_is_left(name: str, flush: Callable[[Cpu, int], None], left: set[str], level: int) -> None:
    """Each way of flushing removes what it must, and nothing else, for pages of any size."""
    if level > 1:
        # HERE and THERE are one page.
        left = {entry for entry in left if not entry.endswith("there") or entry.replace("there", "here") in left}
    scene = Scene(level=level)
    assert scene.stale() == ALL
    flush(scene.cpu, scene.tables.root)
    assert scene.stale() == left, name
    assert scene.served_old() == left, name


def test_clearing_smep_flushes_nothing() -> None:
    """Only a change of CR4.SMEP from 0 to 1 does."""
    on = cpu(size=4 << 30)
    on.write_cr4(on.cr4 | Cr4.SMEP)
    tables(on).map(HERE, OLD)
    on.load(HERE, 1)
    on.write_cr4(on.cr4 & ~Cr4.SMEP)
    assert on.tlb.lookup(HERE, 0) is not None


def test_a_stale_translation_is_used() -> None:
    """Data comes from where the page was when it was cached, for loads, stores and fetches, until a flush."""
    scene = Scene()
    on = scene.cpu
    on.memory.write(OLD, b"old")
    on.memory.write(NEW, b"new")
    for _ in range(2):
        assert (on.load(HERE, 3), on.translate(HERE, Access.FETCH)) == (b"old", OLD)
    on.invlpg(HERE)
    assert (on.load(HERE, 3), on.translate(HERE, Access.FETCH)) == (b"new", NEW)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_a_page_that_is_gone_stays_usable(level: int) -> None:
    """More permissive than the tables: used all the same, by user code too; after the flush it faults."""
    on = cpu(size=4 << 30)
    mapped = tables(on)
    place = mapped.map(0x4000_0000, OLD, level=level)
    on.cpl = 3
    on.store(0x4000_0000, b"x")
    on.memory.write_u64(place, 0)
    on.store(0x4000_0000, b"y")
    assert on.memory.read(OLD, 1) == b"y"
    on.cpl = 0
    on.invlpg(0x4000_0000)
    with pytest.raises(PageFault):
        on.store(0x4000_0000, b"z")


@pytest.mark.parametrize(
    ("before", "access"),
    [(Pte.PRESENT | Pte.USER, Access.WRITE), (Pte.PRESENT | Pte.RW, Access.READ), (OPEN | Pte.NX, Access.FETCH)],
)
def test_a_less_permissive_translation_is_looked_up_again(before: int, access: Access) -> None:
    """Rights that were added count at once: no spurious fault (SDM 3A 4.10.4.3 would allow one)."""
    on = cpu(size=4 << 30)
    mapped = tables(on)
    mapped.map(HERE, OLD, before)
    on.load(HERE, 1)
    on.cpl = 3
    with pytest.raises(PageFault):
        on.translate(HERE, access)
    on.cpl = 0
    on.load(HERE, 1)
    on.cpl = 3
    mapped.map(HERE, NEW)
    assert on.translate(HERE, access) == NEW


def test_a_fault_removes_the_entry() -> None:
    """SDM 3A 4.10.4.1: after a fault the address is looked up again, also for what the old entry allowed."""
    on = cpu(size=4 << 30)
    mapped = tables(on)
    mapped.map(HERE, OLD, Pte.PRESENT)
    on.load(HERE, 1)
    with pytest.raises(PageFault):
        on.store(HERE, b"x")
    assert on.tlb.lookup(HERE, 0) is None
    mapped.map(HERE, NEW)
    assert on.translate(HERE) == NEW


def test_a_fault_of_two_pages_removes_the_entry() -> None:
    """A store that crosses pages removes the entry too; the check comes first there."""
    on = cpu(size=4 << 30)
    mapped = tables(on)
    mapped.map(HERE, OLD)
    mapped.map(THERE, OLD, Pte.PRESENT)
    on.load(THERE, 1)
    with pytest.raises(PageFault):
        on.store(THERE - 1, b"xy")
    assert on.tlb.lookup(THERE, 0) is None


def test_dirty_is_remembered() -> None:
    """A write through an entry with D clear walks and sets D; one with D set does not look at the tables again."""
    on = cpu(size=4 << 30)
    mapped = tables(on)
    place = mapped.map(HERE, OLD)
    on.load(HERE, 1)
    assert on.memory.read_u64(place) == OLD | OPEN | Pte.ACCESSED
    misses = on.tlb.misses
    on.store(HERE, b"x")
    assert on.memory.read_u64(place) == OLD | OPEN | Pte.ACCESSED | Pte.DIRTY
    assert on.tlb.misses == misses + 1
    on.memory.write_u64(place, OLD | OPEN)
    on.store(HERE, b"y")
    on.load(HERE, 1)
    assert on.memory.read_u64(place) == OLD | OPEN
    on.invlpg(HERE)
    on.store(HERE, b"z")
    assert on.memory.read_u64(place) == OLD | OPEN | Pte.ACCESSED | Pte.DIRTY


def test_global_pages_need_pge() -> None:
    """Without CR4.PGE the G flag is ignored: the page is a PCID's own."""
    on = cpu(size=4 << 30)
    tables(on, pcid=MINE).map(HERE, OLD, OPEN | Pte.GLOBAL)
    on.load(HERE, 1)
    (entry,) = on.tlb.entries()
    assert (entry.is_global, entry.tag) == (False, MINE)
    assert repr(entry) == "<TlbEntry 0x70000000 -> 0x40000000, 4096 bytes, pcid 1>"
    on.write_cr4(on.cr4 | Cr4.PGE)
    on.load(HERE, 1)
    (entry,) = on.tlb.entries()
    assert entry.is_global
    assert repr(entry) == "<TlbEntry 0x70000000 -> 0x40000000, 4096 bytes, global>"


def test_capacity_and_seeded_eviction() -> None:
    """No more entries than fit; which one goes depends on the seed alone; what went is looked up again."""

    def left(seed: int) -> list[int]:
        on = cpu(size=4 << 30, seed=seed)
        on.tlb.capacity = 8
        mapped = tables(on)
        for number in range(32):
            mapped.map(HERE + number * 4096, OLD + number * 4096)
            on.load(HERE + number * 4096, 1)
        assert (len(on.tlb), on.tlb.evictions) == (8, 24)
        for number in range(32):
            assert on.translate(HERE + number * 4096) == OLD + number * 4096
        return sorted(entry.page for entry in on.tlb.entries())

    assert left(1) == left(1)
    assert len({tuple(left(seed)) for seed in range(5)}) == 5


def test_refused_capacity() -> None:
    """A TLB has at least one entry."""
    with pytest.raises(ValueError, match=r"^a TLB has at least 1 entry, not 0$"):
        Tlb(0)
    assert Tlb(1).evict() is None


def test_same_page_again() -> None:
    """A translation of the same page takes the place of the old one."""
    tlb = Tlb(4)
    for paddr in (OLD, NEW):
        bits = {"writable": True, "user": True, "nx": False, "global_": False, "dirty": False}
        tlb.insert(HERE, MINE, Translation(paddr, 4096, **bits, entry_paddr=0))
    assert [entry.paddr for entry in tlb.entries()] == [NEW]
