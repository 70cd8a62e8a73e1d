"""One logical processor: memory access through paging and TLB, control registers, invalidation instructions."""

from enum import IntEnum
from struct import Struct
from typing import TYPE_CHECKING, Final

from asikit.x86.apic import LocalApic
from asikit.x86.controls import check_cr0, check_cr4, check_efer
from asikit.x86.errors import UnsupportedError
from asikit.x86.memory import FRAME_BYTES
from asikit.x86.paging import (
    Access,
    GeneralProtection,
    InvalidOpcode,
    PageFault,
    address_mask,
    is_canonical,
    rights_allow,
    walk,
)
from asikit.x86.registers import CR3_NOFLUSH, PCID_MASK, Cr0, Cr4, Efer, PagingMode
from asikit.x86.tlb import Tlb, TlbEntry

if TYPE_CHECKING:
    from asikit.x86.core import Core
    from asikit.x86.memory import PhysicalMemory
    from asikit.x86.recorder import Recorder

__all__ = ["Cpu", "Invpcid"]

_OFFSET: Final = FRAME_BYTES - 1
_ADDRESS_SPACE: Final = 1 << 64
_U64: Final = Struct("<Q")
_unpack_u64: Final = _U64.unpack_from
_pack_u64: Final = _U64.pack_into
_READ, _WRITE, _FETCH = Access.READ, Access.WRITE, Access.FETCH
_USER_CPL: Final = 3
_CR0_BITS: Final = sum(Cr0)
_CR4_BITS: Final = sum(Cr4)

Rights = tuple[tuple[bool, ...], ...]
"""For each Access, for each `TlbEntry.rights`: whether it is allowed."""


class Invpcid(IntEnum):
    """Types of INVPCID (SDM 2A, INVPCID; SDM 3A 4.10.4.1)."""

    ADDRESS = 0
    SINGLE_CONTEXT = 1
    ALL_WITH_GLOBAL = 2
    ALL = 3


class Cpu:
    """A logical processor (hardware thread) in 64-bit mode.

    It starts as a boot loader leaves it: paging on, CPL 0, interrupts off, CR3 zero, and of the protections (WP, SMEP,
    SMAP, NXE) none.

    Attributes:
        number: number of the logical processor in the machine.
        thread: 0 or 1, the place in its core.
        owner: whose code runs, as a tag for the microarchitectural recording.
        interrupts_enabled: RFLAGS.IF.
        cs_l: CS.L, a 64-bit code segment; False (compatibility mode) only to leave IA-32e mode.
        cr2: linear address of the last page fault that `load`, `store` or `fetch` raised.
        cr3_writes: MOVs to CR3 so far.
        cr3_noflush_writes: those of them that kept the PCID's TLB entries.
    """

    __slots__ = (
        "_ac",
        "_allowed",
        "_base",
        "_cpl",
        "_cr0",
        "_cr3",
        "_cr4",
        "_efer",
        "_fetch",
        "_mode",
        "_modes",
        "_paged",
        "_pcid",
        "_pcide",
        "_read",
        "_root",
        "_write",
        "apic",
        "core",
        "cr2",
        "cr3_noflush_writes",
        "cr3_writes",
        "cs_l",
        "interrupts_enabled",
        "memory",
        "number",
        "owner",
        "recorder",
        "thread",
        "tlb",
    )

    def __init__(self, number: int, core: "Core", thread: int, *, levels: int, seed: int) -> None:
        self.number = number
        self.core = core
        self.thread = thread
        self.memory: PhysicalMemory = core.memory
        self.tlb = Tlb(core.model.paging.tlb_entries, seed)
        self.apic = LocalApic(number, core.uncore.bus)
        self.owner = ""
        self.recorder: Recorder | None = None
        self.interrupts_enabled = False
        self.cs_l = True
        self.cr2 = 0
        self.cr3_writes = self.cr3_noflush_writes = 0
        self._cpl = 0
        self._ac = False
        self._cr0 = int(Cr0.PE | Cr0.ET | Cr0.PG)
        self._cr3 = 0
        self._cr4 = int(Cr4.PAE) | (int(Cr4.LA57) if levels == 5 else 0)  # noqa: PLR2004 - 4 or 5
        self._efer = int(Efer.LME | Efer.LMA)
        self._modes: dict[int, tuple[PagingMode, Rights]] = {}
        self._configure()
        if self._cr4 & ~self._cr4_bits():
            raise UnsupportedError(f"CPU model {core.model.name} has no 5-level paging")

    # Privilege and flags.

    @property
    def cpl(self) -> int:
        """Current privilege level, 0 (kernel) to 3 (user)."""
        return self._cpl

    @cpl.setter
    def cpl(self, value: int) -> None:
        if value != self._cpl:
            self._cpl = value
            self._select()

    @property
    def ac(self) -> bool:
        """RFLAGS.AC, which STAC and CLAC change: with CR4.SMAP, explicit supervisor accesses to user-mode addresses."""
        return self._ac

    @ac.setter
    def ac(self, value: bool) -> None:
        if value != self._ac:
            self._ac = value
            self._select()

    @property
    def mode(self) -> PagingMode:
        """How an address is translated now."""
        return self._mode

    # Memory.

    def load(self, vaddr: int, size: int) -> bytes:
        """Read `size` bytes, as one instruction; they may cross pages.

        :raises PageFault: At the first byte that cannot be read; CR2 is set.
        :raises GeneralProtection: A byte's address is not canonical.
        """
        offset = vaddr & _OFFSET
        frame = self._read.get(vaddr >> 12)
        if frame is not None and offset + size <= FRAME_BYTES:
            self.tlb.hits += 1
            return bytes(frame[offset : offset + size])
        return b"".join([self._load_part(part, length) for part, length in _parts(vaddr, size)])

    def store(self, vaddr: int, data: bytes) -> None:
        """Write bytes, as one instruction; they may cross pages, and are written all or not at all.

        :raises PageFault: At the first byte that cannot be written; CR2 is set.
        :raises GeneralProtection: A byte's address is not canonical.
        """
        offset = vaddr & _OFFSET
        size = len(data)
        frame = self._write.get(vaddr >> 12)
        if frame is not None and offset + size <= FRAME_BYTES:
            self.tlb.hits += 1
            frame[offset : offset + size] = data
            return
        parts = _parts(vaddr, size)
        if len(parts) > 1:
            for part, _ in parts:
                self._check(part, _WRITE)
        done = 0
        for part, length in parts:
            self._store_part(part, data[done : done + length])
            done += length

    def load_u64(self, vaddr: int) -> int:
        """Read 8 bytes as a number; raises as `load`."""
        offset = vaddr & _OFFSET
        frame = self._read.get(vaddr >> 12)
        if frame is not None and offset <= FRAME_BYTES - 8:
            self.tlb.hits += 1
            value: int = _unpack_u64(frame, offset)[0]
            return value
        return int.from_bytes(self.load(vaddr, 8), "little")

    def store_u64(self, vaddr: int, value: int) -> None:
        """Write a number of 64 bits; raises as `store`."""
        offset = vaddr & _OFFSET
        frame = self._write.get(vaddr >> 12)
        if frame is not None and offset <= FRAME_BYTES - 8:
            self.tlb.hits += 1
            _pack_u64(frame, offset, value)
            return
        self.store(vaddr, value.to_bytes(8, "little"))

    def fetch(self, vaddr: int) -> None:
        """Check that an instruction may be fetched from an address; raises as `load`."""
        if vaddr >> 12 in self._fetch:
            self.tlb.hits += 1
            return
        self.translate(vaddr, _FETCH)

    def translate(self, vaddr: int, access: Access = Access.READ) -> int:
        """Return the physical address that an access to one byte uses, with all that the access does but the data.

        Through the TLB, so possibly stale; sets accessed and dirty flags; raises as `load`.
        """
        if not self._paged:
            return vaddr & 0xFFFF_FFFF  # SDM 3A 4.1.1: linear addresses are physical, 32 bits of them
        entry = self.tlb.lookup(vaddr, self._pcid)
        if entry is not None and self._usable(entry, access):
            self.tlb.hits += 1
        else:
            entry = self._walk(vaddr, access, stale=entry is not None)
        paddr = entry.paddr | vaddr & (entry.page_bytes - 1)
        if self.recorder is None:
            self._note(entry, vaddr >> 12, paddr >> 12, access)
        return paddr

    def load_implicit(self, vaddr: int, size: int) -> bytes:
        """Read from a system structure (GDT, LDT, IDT, TSS): supervisor-mode at any CPL, never allowed by AC (4.6.1).

        :raises PageFault: As `load`, with U clear in the error code.
        """
        if not self._paged:
            return self.memory.read(vaddr & 0xFFFF_FFFF, size)
        mode = self._mode._replace(implicit=True)
        data = []
        for part, length in _parts(vaddr, size):
            entry = self.tlb.lookup(part, self._pcid)
            if entry is None or not _rights(mode)[_READ][entry.rights]:
                entry = self._walk(part, _READ, stale=entry is not None, mode=mode)
            else:
                self.tlb.hits += 1
            data.append(self.memory.read(entry.paddr | part & (entry.page_bytes - 1), length))
        return b"".join(data)

    # Control registers.

    @property
    def cr0(self) -> Cr0:
        """CR0."""
        return Cr0(self._cr0)

    @property
    def cr3(self) -> int:
        """CR3: root of the page tables and PCID; bit 63 reads as 0."""
        return self._cr3

    @property
    def cr4(self) -> Cr4:
        """CR4."""
        return Cr4(self._cr4)

    @property
    def efer(self) -> Efer:
        """IA32_EFER."""
        return Efer(self._efer)

    @property
    def pcid(self) -> int:
        """The current PCID; 0 without CR4.PCIDE (SDM 3A 4.10.1)."""
        return self._pcid

    @property
    def root(self) -> int:
        """Physical address of the topmost page table."""
        return self._root

    def write_cr3(self, value: int) -> None:
        """MOV to CR3 (SDM 3A 4.10.4.1): flushes the new PCID's entries but the global ones, unless bit 63 is set.

        :raises GeneralProtection: CPL above 0, a reserved bit, or bit 63 without CR4.PCIDE.
        """
        self._privileged("MOV to CR3")
        pcide = self._pcide
        noflush = pcide and value >= CR3_NOFLUSH
        target = int(value) & ~CR3_NOFLUSH if pcide else int(value)
        if target >> self._mode.maxphyaddr:
            raise GeneralProtection(f"MOV to CR3: reserved bits in {value:#x}")
        self.cr3_writes += 1
        self._cr3 = target
        self._root = target & ~PCID_MASK
        self._pcid = target & PCID_MASK if pcide else 0
        if noflush:
            self.cr3_noflush_writes += 1
        else:
            self.tlb.flush_pcid(self._pcid)
        self._select()

    def write_cr0(self, value: int) -> None:
        """MOV to CR0 (SDM 3A 2.5, 4.1.2); clearing PG flushes everything (4.10.4.1).

        :raises GeneralProtection: CPL above 0, a reserved bit, or a combination that the processor refuses.
        :raises UnsupportedError: Paging other than 4-level and 5-level.
        """
        self._privileged("MOV to CR0")
        value = int(value) | int(Cr0.ET)
        old, on = self._cr0 & Cr0.PG, value & Cr0.PG
        check_cr0(value, old=self._cr0, cr4=self._cr4, efer=self._efer, cs_l=self.cs_l)
        if on and not old:
            self._efer |= int(Efer.LMA)
        self._cr0 = value & _CR0_BITS
        if old and not on:
            self._efer &= ~int(Efer.LMA)
            self.tlb.flush_all()
        self._configure()

    def write_cr4(self, value: int) -> None:
        """MOV to CR4 (SDM 3A 2.5, 4.1.2, 4.10.1) with its flushes (4.10.4.1).

        :raises GeneralProtection: CPL above 0, a bit that this CPU lacks, or a change that the processor refuses.
        """
        self._privileged("MOV to CR4")
        value = int(value)
        changed = self._cr4 ^ value
        check_cr4(value, old=self._cr4, known=self._cr4_bits(), cr3=self._cr3, efer=self._efer)
        old_pcid = self._pcid
        self._cr4 = value
        if changed & Cr4.PGE or changed & ~value & Cr4.PCIDE:
            self.tlb.flush_all()
        elif changed & Cr4.PAE or changed & value & Cr4.SMEP:
            self.tlb.flush_pcid(old_pcid, keep_global=False)
        self._configure()

    def write_efer(self, value: int) -> None:
        """WRMSR to IA32_EFER (SDM 3A 2.2.1). Flushes nothing; LMA is read-only and a write to it ignored.

        :raises GeneralProtection: CPL above 0, a reserved bit, or LME changed while paging is on.
        """
        self._privileged("WRMSR")
        check_efer(value, old=self._efer, cr0=self._cr0)
        self._efer = int(value) & ~int(Efer.LMA) | self._efer & int(Efer.LMA)
        self._configure()

    # Invalidation.

    def invlpg(self, vaddr: int) -> None:
        """INVLPG: flush an address under the current PCID and globally; nothing for a non-canonical one (SDM 2A).

        :raises GeneralProtection: CPL above 0.
        """
        self._privileged("INVLPG")
        if is_canonical(vaddr, la57=self._mode.la57):
            self.tlb.flush_address(vaddr, self._pcid, keep_global=False)

    def invpcid(self, kind: Invpcid | int, pcid: int = 0, vaddr: int = 0) -> None:
        """INVPCID (SDM 2A; SDM 3A 4.10.4.1). `pcid` counts for types 0 and 1, `vaddr` for type 0.

        :raises GeneralProtection: CPL above 0, no such type, a PCID beyond 12 bits or not 0 without CR4.PCIDE, or an
            address that is not canonical.
        :raises InvalidOpcode: This CPU lacks the instruction.
        """
        if not self.core.model.paging.invpcid:
            raise InvalidOpcode("INVPCID: this CPU lacks it")
        self._privileged("INVPCID")
        if kind not in set(Invpcid):
            raise GeneralProtection(f"INVPCID: there is no type {kind}")
        if pcid >> 12:
            raise GeneralProtection(f"INVPCID: reserved bits in descriptor, PCID {pcid:#x}")
        if kind in {Invpcid.ADDRESS, Invpcid.SINGLE_CONTEXT} and pcid and not self._cr4 & Cr4.PCIDE:
            raise GeneralProtection(f"INVPCID: PCID {pcid} while CR4.PCIDE is clear")
        if kind == Invpcid.ADDRESS:
            if not is_canonical(vaddr, la57=self._mode.la57):
                raise GeneralProtection(f"INVPCID: address {vaddr:#x} is not canonical")
            self.tlb.flush_address(vaddr, pcid, keep_global=True)
        elif kind == Invpcid.SINGLE_CONTEXT:
            self.tlb.flush_pcid(pcid)
        else:
            self.tlb.flush_all(keep_global=kind == Invpcid.ALL)

    # How it works inside.

    def _load_part(self, vaddr: int, size: int) -> bytes:
        paddr = self.translate(vaddr, _READ)
        data = self.memory.read(paddr, size)
        if self.recorder is not None:
            self.recorder.load(self.thread, self.owner, paddr, data)
        return data

    def _store_part(self, vaddr: int, data: bytes) -> None:
        paddr = self.translate(vaddr, _WRITE)
        self.memory.write(paddr, data)
        if self.recorder is not None:
            self.recorder.store(self.thread, self.owner, paddr, data)

    def _check(self, vaddr: int, access: Access) -> None:
        """Raise what an access would raise, and set no flag."""
        if not self._paged:
            return
        entry = self.tlb.lookup(vaddr, self._pcid)
        if entry is None or not self._usable(entry, access):
            try:
                walk(self.memory, self._root, vaddr, access, self._mode, mark=False)
            except PageFault:
                self.tlb.drop(vaddr, self._pcid)
                self.cr2 = vaddr
                raise

    def _usable(self, entry: TlbEntry, access: Access) -> bool:
        """Whether a TLB entry serves an access without a walk.

        An entry that allows too little does not fault: the processor may report a spurious fault or look again (SDM 3A
        4.10.4.3), and this one looks again. A write through an entry with D clear must look again, to set D in memory
        (4.10.2.2, 4.8).
        """
        return self._allowed[access][entry.rights] and (entry.dirty or access != _WRITE)

    def _walk(self, vaddr: int, access: Access, *, stale: bool, mode: PagingMode | None = None) -> TlbEntry:
        tlb = self.tlb
        tlb.misses += 1
        if stale:
            tlb.drop(vaddr, self._pcid)
        try:
            translation = walk(self.memory, self._root, vaddr, access, mode or self._mode)
        except PageFault:
            # SDM 3A 4.10.4.1: a page fault invalidates the entries of its address, which is done already if any was.
            self.cr2 = vaddr
            raise
        return tlb.insert(vaddr, self._pcid, translation)

    def _note(self, entry: TlbEntry, page: int, pfn: int, access: Access) -> None:
        """Remember that an access to a page needs no further check while its TLB entry lives and the mode stays."""
        if access == _READ:
            self._read[page] = self.memory.frame(pfn)
        elif access == _FETCH:
            self._fetch.add(page)
        else:
            self._write[page] = self.memory.frame(pfn)
        self.tlb.note(entry, page)

    def _cr4_bits(self) -> int:
        paging = self.core.model.paging
        bits = _CR4_BITS
        for has, bit in (
            (paging.pcid, Cr4.PCIDE),
            (paging.la57, Cr4.LA57),
            (paging.smep, Cr4.SMEP),
            (paging.smap, Cr4.SMAP),
        ):
            if not has:
                bits &= ~int(bit)
        return bits

    def _privileged(self, instruction: str) -> None:
        if self._cpl:
            raise GeneralProtection(f"{instruction} at CPL {self._cpl}")

    def _configure(self) -> None:
        """Work out what depends on the control registers, after one of them changed."""
        cr0, cr4, paging = self._cr0, self._cr4, self.core.model.paging
        self._base = PagingMode(
            la57=bool(cr4 & Cr4.LA57),
            maxphyaddr=paging.maxphyaddr,
            wp=bool(cr0 & Cr0.WP),
            smep=bool(cr4 & Cr4.SMEP),
            smap=bool(cr4 & Cr4.SMAP),
            nxe=bool(self._efer & Efer.NXE),
            pge=bool(cr4 & Cr4.PGE),
            gib_pages=paging.gib_pages,
        )
        self._modes.clear()
        self._paged = bool(cr0 & Cr0.PG)
        self._pcide = bool(cr4 & Cr4.PCIDE)
        self._root = self._cr3 & address_mask(paging.maxphyaddr)
        self._pcid = self._cr3 & PCID_MASK if self._pcide else 0
        self._select()

    def _select(self) -> None:
        """Take the tables of the current privilege, AC and PCID; often done, so remembered."""
        base = self._base
        user = self._cpl == _USER_CPL
        key = user << 1 | self._ac
        known = self._modes.get(key)
        if known is None:
            mode = base._replace(user=user, ac=self._ac)
            known = self._modes[key] = (mode, _rights(mode))
        self._mode, self._allowed = known
        number = key | base.wp << 2 | base.smep << 3 | base.smap << 4 | base.nxe << 5
        view = self.tlb.view(self._pcid, number)
        self._read, self._write, self._fetch = view.read, view.write, view.fetch


def _parts(vaddr: int, size: int) -> list[tuple[int, int]]:
    """Split a range at page boundaries; it wraps at the top of the address space."""
    parts = []
    while size > 0:
        length = min(size, FRAME_BYTES - (vaddr & _OFFSET))
        parts.append((vaddr, length))
        vaddr = (vaddr + length) % _ADDRESS_SPACE
        size -= length
    return parts


def _rights(mode: PagingMode) -> Rights:
    """Tabulate `rights_allow` by Access and `TlbEntry.rights`."""
    return tuple(
        tuple(
            rights_allow(access, mode, nx=bool(rights & 1), writable=bool(rights & 2), user=bool(rights & 4))
            for rights in range(8)
        )
        for access in Access
    )
