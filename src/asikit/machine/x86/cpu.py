"""One logical processor: its control registers, which say how its memory is reached, and invalidation instructions."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

from asikit.machine.x86.apic import LocalApic
from asikit.machine.x86.controls import check_cr0, check_cr4, check_efer
from asikit.machine.x86.errors import UnsupportedError
from asikit.machine.x86.mmu import Mmu
from asikit.machine.x86.paging import GeneralProtection, InvalidOpcode, address_mask, is_canonical
from asikit.machine.x86.registers import CR3_NOFLUSH, PCID_MASK, Cr0, Cr4, Efer, PagingMode
from asikit.machine.x86.tlb import Tlb

if TYPE_CHECKING:
    from asikit.machine.x86.core import Core

__all__ = ["Cpu", "Invpcid"]

_CR0_BITS: Final = sum(Cr0)
_CR4_BITS: Final = sum(Cr4)


class Invpcid(IntEnum):
    """Types of INVPCID (SDM 2A, INVPCID; SDM 3A 4.10.4.1)."""

    ADDRESS = 0
    SINGLE_CONTEXT = 1
    ALL_WITH_GLOBAL = 2
    ALL = 3


class Cpu(Mmu):
    """A logical processor (hardware thread) in 64-bit mode; how it reaches memory is `Mmu`'s part.

    It starts as a boot loader leaves it: paging on, CPL 0, interrupts off, CR3 zero, and of the protections (WP, SMEP,
    SMAP, NXE) none.

    :ivar number: Number of the logical processor in the machine.
    :ivar core: The core that it is a thread of.
    :ivar apic: Its local APIC.
    :ivar interrupts_enabled: RFLAGS.IF.
    :ivar cs_l: CS.L, a 64-bit code segment; False (compatibility mode) only to leave IA-32e mode.
    :ivar cr3_writes: MOVs to CR3 so far.
    :ivar cr3_noflush_writes: Those of them that kept the PCID's TLB entries.
    """

    __slots__ = (
        "_cr0",
        "_cr3",
        "_cr4",
        "_efer",
        "_pcide",
        "apic",
        "core",
        "cr3_noflush_writes",
        "cr3_writes",
        "cs_l",
        "interrupts_enabled",
        "number",
    )

    def __init__(self, number: int, core: Core, thread: int, *, levels: int, seed: int) -> None:
        self.number = number
        self.core = core
        self.apic = LocalApic(number, core.uncore.bus)
        self.interrupts_enabled = False
        self.cs_l = True
        self.cr3_writes = self.cr3_noflush_writes = 0
        self._cr0 = int(Cr0.PE | Cr0.ET | Cr0.PG)
        self._cr3 = 0
        self._cr4 = int(Cr4.PAE) | (int(Cr4.LA57) if levels == 5 else 0)  # noqa: PLR2004 - 4 or 5
        self._efer = int(Efer.LME | Efer.LMA)
        self._pcide = False
        super().__init__(core.memory, Tlb(core.model.paging.tlb_entries, seed), thread, self._paging_mode())
        if self._cr4 & ~self._cr4_bits():
            raise UnsupportedError(f"CPU model {core.model.name} has no 5-level paging")

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

    # Sleeping.

    def halt(self) -> None:
        """HLT or MWAIT: what the core has shared out between its threads is the other's alone, with what is in it."""
        if self.recorder is not None:
            self.recorder.sleep(self.thread)

    def wake(self) -> None:
        """The first instruction after it: what the core shares out is shared out again."""
        if self.recorder is not None:
            self.recorder.wake(self.thread)

    # How it works inside.

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
        """Let memory be reached as the control registers say, after one of them changed."""
        self._pcide = bool(self._cr4 & Cr4.PCIDE)
        self._root = self._cr3 & address_mask(self.core.model.paging.maxphyaddr)
        self._pcid = self._cr3 & PCID_MASK if self._pcide else 0
        self._set_mode(self._paging_mode(), paged=bool(self._cr0 & Cr0.PG))

    def _paging_mode(self) -> PagingMode:
        """Work out how the control registers have addresses translated, for the kernel and with AC clear."""
        cr0, cr4, paging = self._cr0, self._cr4, self.core.model.paging
        return PagingMode(
            la57=bool(cr4 & Cr4.LA57),
            maxphyaddr=paging.maxphyaddr,
            wp=bool(cr0 & Cr0.WP),
            smep=bool(cr4 & Cr4.SMEP),
            smap=bool(cr4 & Cr4.SMAP),
            nxe=bool(self._efer & Efer.NXE),
            pge=bool(cr4 & Cr4.PGE),
            gib_pages=paging.gib_pages,
        )
