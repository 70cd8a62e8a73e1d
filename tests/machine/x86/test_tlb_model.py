"""The TLB against what the manual lets a processor still use (SDM 3A 4.10).

The model keeps, for each PCID (and for global pages), the set of translations that were in the tables at an access and
that nothing has removed since. The processor must always use one of them or the tables as they are now, and its TLB
must hold nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asikit.machine.x86 import (
    CR3_NOFLUSH,
    Access,
    Core,
    Cr0,
    Cr4,
    Efer,
    Invpcid,
    PageFault,
    PhysicalMemory,
    TlbEntry,
    load_cpu,
)
from tests.machine.x86.oracle import Machine, allowed
from tests.machine.x86.tables import OPEN, Tables

P, RW, US, A, D, PS, G, NX = (1 << number for number in (0, 1, 2, 5, 6, 7, 8, 63))
LARGE = 1 << 21
BASE = 0x4000_0000
PAGES = (BASE, BASE + 0x1000, BASE + 0x7000)
OTHER = BASE + LARGE
ADDRESSES = (*PAGES, OTHER, OTHER + 0x1000)
FRAMES = (0x20_0000, 0x20_1000, 0x20_7000, 0x40_0000, 0x40_1000)
LARGE_FRAMES = (0x20_0000, 0x40_0000)
OFFSETS = (0, 8, 0xFF8)
PCIDS = (0, 1, 2)
GLOBAL = -1

addresses = st.sampled_from(ADDRESSES)
pcids = st.sampled_from(PCIDS)
leaf_flags = st.builds(lambda *flags: sum(flags), *(st.sampled_from([0, flag]) for flag in (RW, US, G, NX, D)))


@dataclass(frozen=True)
class Translated:
    """A translation, as the tables had it."""

    page: int
    size: int
    frame: int
    rw: bool
    us: bool
    xd: bool
    dirty: bool

    def covers(self, vaddr: int) -> bool:
        """Whether it translates an address."""
        return self.page <= vaddr < self.page + self.size

    def paddr(self, vaddr: int) -> int:
        """What it translates an address to."""
        return self.frame + vaddr - self.page


def seen_in(entry: TlbEntry) -> Translated:
    """A TLB entry in the terms of the model."""
    xd, rw, us = (bool(entry.rights >> number & 1) for number in range(3))
    return Translated(entry.page, entry.page_bytes, entry.paddr, rw, us, xd, entry.dirty)


class TlbMachine(RuleBasedStateMachine):
    """One processor with a TLB of few entries, two sets of page tables and three PCIDs, in any combination."""

    @initialize(seed=st.integers(0, 1000))
    def start(self, seed: int) -> None:
        """Map everything in both sets of tables, and turn PCIDs and global pages on."""
        model = load_cpu("generic")
        self.memory = PhysicalMemory(8 << 20)
        (self.cpu,) = Core(0, model, self.memory, seed=seed).threads
        self.cpu.tlb.capacity = 6
        self.spaces = [Tables(self.memory, first=first) for first in (0x10_0000, 0x18_0000)]
        for tables in self.spaces:
            for vaddr, frame in zip(ADDRESSES, FRAMES, strict=True):
                tables.map(vaddr, frame, OPEN | (G if vaddr in {PAGES[0], OTHER} else 0))
        for frame in (*FRAMES, 0x40_7000):
            for offset in OFFSETS:
                self.memory.write_u64(frame + offset, -frame - offset & (1 << 64) - 1)
        self.may: dict[int, set[Translated]] = {tag: set() for tag in (*PCIDS, GLOBAL)}
        self.space = self.spaces[0]
        self.stored = 0
        self.cpu.write_efer(self.cpu.efer | Efer.NXE)
        self.cpu.write_cr3(self.space.root)
        self.cpu.write_cr4(self.cpu.cr4 | Cr4.PCIDE | Cr4.PGE)

    # What the tables say now.

    def current(self, vaddr: int) -> tuple[Translated, bool] | None:
        """The translation in the tables, and whether it is global; None if there is none."""
        place = self.space.slot(vaddr, 2)
        entry = self.memory.read_u64(place)
        size = LARGE
        if not entry & PS:
            size = 0x1000
            entry = self.memory.read_u64(self.space.slot(vaddr))
        if not entry & P:
            return None
        frame = entry & 0x000F_FFFF_FFFF_F000
        bits = Translated(vaddr & -size, size, frame, *(bool(entry & bit) for bit in (RW, US, NX, D)))
        return bits, bool(entry & G and self.cpu.cr4 & Cr4.PGE)

    def allows(self, translation: Translated, access: Access) -> bool:
        """Whether a translation in the TLB serves an access (by the oracle of `test_access`)."""
        mode = self.cpu.mode
        machine = Machine(
            user=mode.user, access=int(access), nxe=mode.nxe, wp=mode.wp, smep=mode.smep, smap=mode.smap, ac=mode.ac
        )
        rights = (np.array([flag]) for flag in (translation.rw, translation.us, translation.xd))
        return bool(allowed(machine, *rights)[0])

    # What changes memory.

    @rule(space=st.sampled_from([0, 1]), vaddr=addresses, frame=st.sampled_from(FRAMES), flags=leaf_flags)
    def remap(self, space: int, vaddr: int, frame: int, flags: int) -> None:
        """Change a PTE, and flush nothing."""
        tables = self.spaces[space]
        if not self.memory.read_u64(tables.slot(vaddr, 2)) & PS:
            self.memory.write_u64(tables.slot(vaddr), frame | flags | P)

    @rule(space=st.sampled_from([0, 1]), vaddr=addresses)
    def unmap(self, space: int, vaddr: int) -> None:
        """Clear a PTE or a large PDE, and flush nothing."""
        tables = self.spaces[space]
        large = self.memory.read_u64(tables.slot(vaddr, 2)) & PS
        place = tables.slot(vaddr, 2 if large else 1)
        self.memory.write_u64(place, self.memory.read_u64(place) & ~P)

    @rule(space=st.sampled_from([0, 1]), frame=st.sampled_from(LARGE_FRAMES), flags=leaf_flags)
    def make_large(self, space: int, frame: int, flags: int) -> None:
        """Map a large page where small ones were, and flush nothing."""
        self.memory.write_u64(self.spaces[space].slot(BASE, 2), frame | flags | P | PS)

    @rule(space=st.sampled_from([0, 1]))
    def split(self, space: int) -> None:
        """Map small pages where a large one was, and flush nothing."""
        tables = self.spaces[space]
        table = (0x17_0000, 0x1F_0000)[space]
        self.memory.write_u64(tables.slot(BASE, 2), table | OPEN)
        for vaddr, frame in zip(PAGES, FRAMES, strict=False):
            tables.map(vaddr, frame)

    # What changes who asks.

    @rule(wp=st.booleans(), nxe=st.booleans(), smap=st.booleans())
    def protections(self, *, wp: bool, nxe: bool, smap: bool) -> None:
        """Change protections that flush nothing."""
        self.privileged()
        # A PTE with XD is at fault without NXE; the model knows no reserved bits.
        self.cpu.write_efer(self.cpu.efer | Efer.NXE if nxe or self.any_xd() else self.cpu.efer & ~Efer.NXE)
        self.cpu.write_cr0(self.cpu.cr0 | Cr0.WP if wp else self.cpu.cr0 & ~Cr0.WP)
        self.cpu.write_cr4(self.cpu.cr4 | Cr4.SMAP if smap else self.cpu.cr4 & ~Cr4.SMAP)

    @rule(cpl=st.sampled_from([0, 3]), ac=st.booleans())
    def privilege(self, *, cpl: int, ac: bool) -> None:
        """Change privilege, which flushes nothing."""
        self.cpu.cpl, self.cpu.ac = cpl, ac

    # Accesses.

    @rule(accesses=st.lists(st.tuples(addresses, st.sampled_from(Access), st.sampled_from(OFFSETS)), min_size=4))
    def use(self, accesses: list[tuple[int, Access, int]]) -> None:
        """Read, write and fetch here and there."""
        for vaddr, access, offset in accesses:
            self.access(vaddr, access, offset)

    @rule(access=st.sampled_from(Access))
    def use_everything(self, access: Access) -> None:
        """Access every page in the same way."""
        for vaddr in ADDRESSES:
            self.access(vaddr, access, 0)

    def access(self, vaddr: int, access: Access, offset: int) -> None:
        """Read, write or fetch: by a translation that may still be used, or not at all."""
        if not self.cpu.mode.nxe and self.any_xd():
            self.privilege(cpl=0, ac=False)
            self.cpu.write_efer(self.cpu.efer | Efer.NXE)
        usable = [
            held
            for tag in (self.cpu.pcid, GLOBAL)
            for held in self.may[tag]
            if held.covers(vaddr) and self.allows(held, access) and (held.dirty or access != Access.WRITE)
        ]
        now = self.current(vaddr)
        walked = now is not None and self.allows(now[0], access)
        expected = {held.paddr(vaddr) for held in usable}
        if now is not None and walked:
            expected.add(now[0].paddr(vaddr))
        faulted: int | None = None
        try:
            self.do(access, vaddr + offset, {paddr + offset for paddr in expected})
        except PageFault as fault:
            faulted = fault.vaddr
        if faulted is not None:
            assert not walked, "a fault although the tables allow the access"
            assert faulted == self.cpu.cr2 == vaddr + offset
            self.forget(self.cpu.pcid, vaddr)
            self.forget(GLOBAL, vaddr)
            return
        assert expected, "no fault although nothing allows the access"
        after = self.current(vaddr)
        if walked and after is not None:
            # Whether it walked is not seen from outside unless it had to; then D must be set by a write.
            assert usable or after[0].dirty or access != Access.WRITE
            self.may[GLOBAL if after[1] else self.cpu.pcid].add(after[0])

    def do(self, access: Access, vaddr: int, expected: set[int]) -> None:
        """Do an access through the interface, and see which frame it went to."""
        if access == Access.WRITE:
            self.stored += 1
            self.cpu.store_u64(vaddr, self.stored)
            assert any(self.memory.read_u64(paddr) == self.stored for paddr in expected)
        elif access == Access.READ:
            assert self.cpu.load_u64(vaddr) in {self.memory.read_u64(paddr) for paddr in expected}
            assert self.cpu.translate(vaddr) in expected
        else:
            self.cpu.fetch(vaddr)
            assert self.cpu.translate(vaddr, Access.FETCH) in expected

    # What flushes.

    @rule(space=st.sampled_from([0, 1]), pcid=pcids, noflush=st.booleans())
    def write_cr3(self, space: int, pcid: int, *, noflush: bool) -> None:
        """MOV to CR3, with PCIDs or (then PCID 0, always flushing) without."""
        self.privileged()
        self.space = self.spaces[space]
        if not self.cpu.cr4 & Cr4.PCIDE:
            self.cpu.write_cr3(self.space.root)
            self.may[0].clear()
            return
        self.cpu.write_cr3(self.space.root | pcid | (CR3_NOFLUSH if noflush else 0))
        if not noflush:
            self.may[pcid].clear()

    @rule(vaddr=addresses)
    def invlpg(self, vaddr: int) -> None:
        """The current PCID's and global translations of one address go."""
        self.privileged()
        self.cpu.invlpg(vaddr)
        self.forget(self.cpu.pcid, vaddr)
        self.forget(GLOBAL, vaddr)

    @rule(kind=st.sampled_from(Invpcid), pcid=pcids, vaddr=addresses)
    def invpcid(self, kind: Invpcid, pcid: int, vaddr: int) -> None:
        """The four types."""
        self.privileged()
        if not self.cpu.cr4 & Cr4.PCIDE:
            pcid = 0
        self.cpu.invpcid(kind, pcid, vaddr)
        if kind == Invpcid.ADDRESS:
            self.forget(pcid, vaddr)
        elif kind == Invpcid.SINGLE_CONTEXT:
            self.may[pcid].clear()
        else:
            self.forget_all(keep_global=kind == Invpcid.ALL)

    @rule()
    def toggle_global_pages(self) -> None:
        """Any change of CR4.PGE flushes everything."""
        self.privileged()
        self.cpu.write_cr4(self.cpu.cr4 ^ Cr4.PGE)
        self.forget_all(keep_global=False)

    @rule()
    def toggle_smep(self) -> None:
        """Setting CR4.SMEP flushes the current PCID and, being no exception there, global pages; clearing nothing."""
        self.privileged()
        self.cpu.write_cr4(self.cpu.cr4 ^ Cr4.SMEP)
        if self.cpu.cr4 & Cr4.SMEP:
            self.may[self.cpu.pcid].clear()
            self.may[GLOBAL].clear()

    @rule()
    def toggle_pcids(self) -> None:
        """Clearing CR4.PCIDE flushes everything; setting it nothing, and needs PCID 0."""
        self.privileged()
        if self.cpu.cr4 & Cr4.PCIDE:
            self.cpu.write_cr4(self.cpu.cr4 & ~Cr4.PCIDE)
            self.forget_all(keep_global=False)
            self.cpu.write_cr3(self.space.root)
        else:
            self.cpu.write_cr4(self.cpu.cr4 | Cr4.PCIDE)

    @precondition(lambda self: len(self.cpu.tlb) > 0)
    @rule()
    def evict(self) -> None:
        """A processor may drop any entry at any time."""
        self.cpu.tlb.evict()

    # The model's own.

    def privileged(self) -> None:
        """Go to CPL 0."""
        self.cpu.cpl = 0

    def any_xd(self) -> bool:
        """Whether an entry of the current tables has XD."""
        places = [self.space.slot(vaddr, 2) for vaddr in (BASE, OTHER)]
        places += [
            self.space.slot(vaddr) for vaddr in ADDRESSES if not self.memory.read_u64(self.space.slot(vaddr, 2)) & PS
        ]
        return any(self.memory.read_u64(place) & NX for place in places)

    def forget(self, tag: int, vaddr: int) -> None:
        """Nothing that translates an address may be used any more."""
        self.may[tag] = {held for held in self.may[tag] if not held.covers(vaddr)}

    def forget_all(self, *, keep_global: bool) -> None:
        """Nothing may be used any more."""
        for tag, held in self.may.items():
            if tag != GLOBAL or not keep_global:
                held.clear()

    @invariant()
    def holds_only_what_it_may(self) -> None:
        """Every entry of the TLB was in the tables once and has not been flushed since; and none is there twice."""
        entries = self.cpu.tlb.entries()
        assert len(entries) <= self.cpu.tlb.capacity
        assert len({(entry.tag, entry.page, entry.page_bytes) for entry in entries}) == len(entries)
        for entry in entries:
            assert seen_in(entry) in self.may[entry.tag], entry


TlbMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=60)
TestTlb = TlbMachine.TestCase
