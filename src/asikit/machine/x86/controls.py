"""Which values the processor refuses for its control registers (SDM 3A 2.5, 4.1.2, 4.10.1; SDM 2B, MOV to CR).

Each function raises GeneralProtection with the reason, or returns and has changed nothing.
"""

from __future__ import annotations

from typing import Final

from asikit.machine.x86.errors import UnsupportedError
from asikit.machine.x86.paging import GeneralProtection
from asikit.machine.x86.registers import PCID_MASK, Cr0, Cr4, Efer

__all__ = ["check_cr0", "check_cr4", "check_efer"]

_EFER_BITS: Final = sum(Efer)


def check_cr0(value: int, *, old: int, cr4: int, efer: int, cs_l: bool) -> None:
    """MOV to CR0, where it was `old`. Raises UnsupportedError for paging other than 4-level and 5-level."""
    if value >> 32:
        raise GeneralProtection(f"MOV to CR0: reserved bits in {value:#x}")
    if value & Cr0.PG and not value & Cr0.PE:
        raise GeneralProtection("MOV to CR0: PG without PE")
    if value & Cr0.NW and not value & Cr0.CD:
        raise GeneralProtection("MOV to CR0: NW without CD")
    changed = (value ^ old) & Cr0.PG
    if changed and old & Cr0.PG:
        if cr4 & Cr4.PCIDE:
            raise GeneralProtection("MOV to CR0: PG cleared while CR4.PCIDE is set")
        if cs_l:
            raise GeneralProtection("MOV to CR0: PG cleared in 64-bit mode")
    elif changed:
        _check_enabling(cr4, efer, cs_l=cs_l)


def _check_enabling(cr4: int, efer: int, *, cs_l: bool) -> None:
    if not efer & Efer.LME:
        raise UnsupportedError("32-bit and PAE paging are not modelled; set IA32_EFER.LME before CR0.PG")
    if not cr4 & Cr4.PAE:
        raise GeneralProtection("MOV to CR0: PG set with EFER.LME but without CR4.PAE")
    if cs_l:
        raise GeneralProtection("MOV to CR0: PG set with EFER.LME and CS.L")


def check_cr4(value: int, *, old: int, known: int, cr3: int, efer: int) -> None:
    """MOV to CR4, where it was `old`; `known` are the bits that this CPU has."""
    if value & ~known:
        raise GeneralProtection(f"MOV to CR4: reserved bits in {value:#x}")
    changed = value ^ old
    if efer & Efer.LMA:
        if not value & Cr4.PAE:
            raise GeneralProtection("MOV to CR4: PAE cleared in IA-32e mode")
        if changed & Cr4.LA57:
            raise GeneralProtection("MOV to CR4: LA57 changed in IA-32e mode")
    if changed & value & Cr4.PCIDE:
        if not efer & Efer.LMA:
            raise GeneralProtection("MOV to CR4: PCIDE set outside of IA-32e mode")
        if cr3 & PCID_MASK:
            raise GeneralProtection("MOV to CR4: PCIDE set while CR3 bits 11:0 are not 0")


def check_efer(value: int, *, old: int, cr0: int) -> None:
    """WRMSR to IA32_EFER, where it was `old`."""
    if value & ~_EFER_BITS:
        raise GeneralProtection(f"WRMSR to IA32_EFER: reserved bits in {value:#x}")
    if cr0 & Cr0.PG and (old ^ value) & Efer.LME:
        raise GeneralProtection("WRMSR to IA32_EFER: LME changed while paging is on")
