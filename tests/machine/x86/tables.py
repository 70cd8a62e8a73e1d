"""Machines and page tables for tests."""

from __future__ import annotations

from asikit.machine.x86 import Core, Cpu, Cr0, Cr4, Efer, PhysicalMemory, Pte, load_cpu

__all__ = ["OPEN", "Tables", "cpu", "tables"]

OPEN = Pte.PRESENT | Pte.RW | Pte.USER


def cpu(*, levels: int = 4, size: int = 64 << 20, seed: int = 0) -> Cpu:
    """A processor of the generic model with NXE, WP and PCIDs on, SMEP and SMAP off."""
    core = Core(0, load_cpu("generic"), PhysicalMemory(size), levels=levels, seed=seed)
    (made,) = core.threads
    made.write_efer(made.efer | Efer.NXE)
    made.write_cr0(made.cr0 | Cr0.WP)
    made.write_cr4(made.cr4 | Cr4.PCIDE)
    return made


class Tables:
    """Page tables in physical memory, made as needed; upper entries allow everything."""

    def __init__(self, memory: PhysicalMemory, *, levels: int = 4, first: int = 0x10_0000) -> None:
        self.memory = memory
        self.levels = levels
        self.root = first
        self._next = first + 0x1000

    def slot(self, vaddr: int, level: int = 1) -> int:
        """The physical address of the entry of a level for an address; tables above it are made."""
        table = self.root
        for above in range(self.levels, level, -1):
            place = table | ((vaddr >> (3 + 9 * above)) & 511) << 3
            entry = self.memory.read_u64(place)
            if not entry & Pte.PRESENT:
                entry = self._next | OPEN
                self.memory.write_u64(place, entry)
                self._next += 0x1000
            table = entry & 0x000F_FFFF_FFFF_F000
        return table | ((vaddr >> (3 + 9 * level)) & 511) << 3

    def map(self, vaddr: int, paddr: int, flags: int = OPEN, *, level: int = 1) -> int:
        """Map a page of a level; return the physical address of its entry."""
        place = self.slot(vaddr, level)
        self.memory.write_u64(place, paddr | flags | (Pte.PSE if level > 1 else 0))
        return place


def tables(of: Cpu, *, pcid: int = 0, first: int = 0x10_0000) -> Tables:
    """Make empty tables and load them."""
    made = Tables(of.memory, levels=5 if of.mode.la57 else 4, first=first)
    of.write_cr3(made.root | pcid)
    return made
