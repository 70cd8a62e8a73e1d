"""Control registers and EFER: the bits that decide about paging (SDM 3A 2.5, 2.2.1, 4.1.3)."""

from __future__ import annotations

from enum import IntFlag
from typing import NamedTuple

__all__ = ["CR3_NOFLUSH", "PCID_MASK", "Cr0", "Cr4", "Efer", "PagingMode"]

CR3_NOFLUSH = 1 << 63
"""Bit 63 of the operand of MOV to CR3 with CR4.PCIDE: keep the PCID's TLB entries (SDM 3A 4.10.4.1). Reads as 0."""
PCID_MASK = 0xFFF
"""CR3 bits 11:0 are the PCID with CR4.PCIDE (SDM 3A 4.5, table 4-13)."""


class Cr0(IntFlag):
    """CR0 (SDM 3A 2.5)."""

    PE = 1 << 0
    MP = 1 << 1
    EM = 1 << 2
    TS = 1 << 3
    ET = 1 << 4
    NE = 1 << 5
    WP = 1 << 16
    AM = 1 << 18
    NW = 1 << 29
    CD = 1 << 30
    PG = 1 << 31


class Cr4(IntFlag):
    """CR4 (SDM 3A 2.5), without the bits of features that the model lacks."""

    VME = 1 << 0
    PVI = 1 << 1
    TSD = 1 << 2
    DE = 1 << 3
    PSE = 1 << 4
    PAE = 1 << 5
    MCE = 1 << 6
    PGE = 1 << 7
    PCE = 1 << 8
    OSFXSR = 1 << 9
    OSXMMEXCPT = 1 << 10
    UMIP = 1 << 11
    LA57 = 1 << 12
    VMXE = 1 << 13
    FSGSBASE = 1 << 16
    PCIDE = 1 << 17
    OSXSAVE = 1 << 18
    SMEP = 1 << 20
    SMAP = 1 << 21


class Efer(IntFlag):
    """IA32_EFER (SDM 3A 2.2.1)."""

    SCE = 1 << 0
    LME = 1 << 8
    LMA = 1 << 10
    NXE = 1 << 11


class PagingMode(NamedTuple):
    """What decides about a translation besides the tables (SDM 3A 4.1.3) and who asks (4.6).

    :ivar la57: 5-level paging, CR4.LA57.
    :ivar maxphyaddr: Width of a physical address in bits; address bits at or above it are reserved (4.1.4).
    :ivar wp: Supervisor-mode writes need R/W too, CR0.WP.
    :ivar smep: No supervisor-mode fetches from user-mode addresses, CR4.SMEP.
    :ivar smap: No supervisor-mode data accesses to user-mode addresses, CR4.SMAP, unless `ac` allows an explicit one.
    :ivar nxe: Bit 63 of an entry forbids fetches, EFER.NXE; else it is reserved.
    :ivar pge: G makes a translation global, CR4.PGE.
    :ivar user: The access is made at CPL 3.
    :ivar ac: EFLAGS.AC.
    :ivar implicit: An access to a system structure (descriptor table, TSS), supervisor-mode at any CPL (4.6.1).
    :ivar gib_pages: 1 GiB pages exist (CPUID.80000001H:EDX.Page1GB); else PS of a PDPTE is reserved.
    """

    la57: bool = False
    maxphyaddr: int = 46
    wp: bool = True
    smep: bool = True
    smap: bool = True
    nxe: bool = True
    pge: bool = False
    user: bool = False
    ac: bool = False
    implicit: bool = False
    gib_pages: bool = True
