"""Translation of linear addresses by 4-level and 5-level paging (SDM 3A 4.5 to 4.8).

Section numbers are those of chapter 4 of volume 3A (editions since 2024 number the same chapter 5).

A fault leaves every accessed and dirty flag as it was. The manual asks for them only where an entry is "used as part of
linear-address translation" (4.8); some processors set the accessed flags of the upper entries of a translation that
then fails, and kvm-unit-tests' access.c takes either.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from asikit.machine.x86.memory import PhysicalMemory
    from asikit.machine.x86.registers import PagingMode

__all__ = [
    "Access",
    "Entry",
    "GeneralProtection",
    "InvalidOpcode",
    "PageFault",
    "PfError",
    "Pte",
    "Translation",
    "address_mask",
    "is_canonical",
    "lookup",
    "rights_allow",
    "walk",
]


class Access(IntEnum):
    """What an instruction does with an address."""

    READ = 0
    WRITE = 1
    FETCH = 2


class Pte(IntFlag):
    """Flags of a paging-structure entry of any level (SDM 3A 4.5, tables 4-14 to 4-20)."""

    PRESENT = 1 << 0
    RW = 1 << 1
    USER = 1 << 2
    PWT = 1 << 3
    PCD = 1 << 4
    ACCESSED = 1 << 5
    DIRTY = 1 << 6
    """In an entry that maps a page; ignored in others."""
    PSE = 1 << 7
    """PS: a PDE or PDPTE that maps a page. In a PTE this is the PAT bit, in a PML4E or PML5E it is reserved."""
    GLOBAL = 1 << 8
    """In an entry that maps a page; ignored in others."""
    SOFTW1 = 1 << 9
    SOFTW2 = 1 << 10
    SOFTW3 = 1 << 11
    PAT_LARGE = 1 << 12
    """PAT, in an entry that maps a large page."""
    NX = 1 << 63
    """XD: no fetches. Reserved without EFER.NXE."""


class PfError(IntFlag):
    """The error code of a page fault (SDM 3A 4.7, figure 4-12)."""

    P = 1 << 0
    """There is a translation, or a reserved bit is why there is none; clear for an entry that is not present."""
    W = 1 << 1
    """The access was a write."""
    U = 1 << 2
    """The access was made in user mode."""
    RSVD = 1 << 3
    """A reserved bit is set in an entry."""
    I = 1 << 4  # noqa: E741 - the manual's I/D flag
    """The access was a fetch; reported only with CR4.SMEP or EFER.NXE."""


# Plain numbers: arithmetic on an IntFlag costs several times as much.
_PRESENT: Final = int(Pte.PRESENT)
_RW: Final = int(Pte.RW)
_USER: Final = int(Pte.USER)
_ACCESSED: Final = int(Pte.ACCESSED)
_DIRTY: Final = int(Pte.DIRTY)
_PSE: Final = int(Pte.PSE)
_GLOBAL: Final = int(Pte.GLOBAL)
_NX: Final = int(Pte.NX)

_PF_P: Final = int(PfError.P)
_PF_W: Final = int(PfError.W)
_PF_U: Final = int(PfError.U)
_PF_RSVD: Final = int(PfError.RSVD)
_PF_I: Final = int(PfError.I)

_ENTRY_ADDRESS: Final = (1 << 52) - (1 << 12)
_SHIFTS_4: Final = (39, 30, 21, 12)
_SHIFTS_5: Final = (48, *_SHIFTS_4)
_PDPTE_SHIFT, _PDE_SHIFT, _PTE_SHIFT = 30, 21, 12
_PDPTE_LEVEL: Final = 3
_PAT_LARGE: Final = int(Pte.PAT_LARGE)


class PageFault(Exception):  # noqa: N818 - the architecture's name, #PF
    """#PF: `vaddr` is what CR2 gets, `error_code` what is pushed (a PfError)."""

    def __init__(self, vaddr: int, error_code: int) -> None:
        super().__init__(vaddr, error_code)
        self.vaddr = vaddr
        self.error_code = error_code

    def __str__(self) -> str:
        """Text for people: `page fault at 0x1000 (P|W)`."""
        flags = "|".join(flag.name or "" for flag in PfError if flag & self.error_code) or "not present"
        return f"page fault at {self.vaddr:#x} ({flags})"


class GeneralProtection(Exception):  # noqa: N818 - the architecture's name, #GP
    """#GP(0): a non-canonical address or a register value that the processor refuses; the message says which."""


class InvalidOpcode(Exception):  # noqa: N818 - the architecture's name, #UD
    """#UD: an instruction that this CPU model does not have."""


class Entry(NamedTuple):
    """A paging-structure entry as it stands in memory.

    `level` is 1 for a PTE, 2 for a PDE and so on; `paddr` is the entry's own physical address.
    """

    entry: int
    level: int
    paddr: int


@dataclass(frozen=True, slots=True)
class Translation:
    """A translation: what a TLB entry is made of (SDM 3A 4.10.2.2).

    :ivar paddr: Physical address of `vaddr`.
    :ivar page_bytes: 4 KiB, 2 MiB or 1 GiB.
    :ivar writable: R/W of every entry.
    :ivar user: U/S of every entry: a user-mode address.
    :ivar nx: XD of any entry.
    :ivar global_: G of the entry that maps the page, with CR4.PGE.
    :ivar dirty: D of the entry that maps the page, after the access.
    :ivar entry_paddr: Physical address of the entry that maps the page.
    """

    paddr: int
    page_bytes: int
    writable: bool
    user: bool
    nx: bool
    global_: bool
    dirty: bool
    entry_paddr: int


def is_canonical(vaddr: int, *, la57: bool = False) -> bool:
    """Whether bits 63 to 47 (56 with 5-level paging) of a 64-bit address are equal (SDM 1 3.3.7.1)."""
    return (vaddr >> (56 if la57 else 47)) in ((0, 0xFF) if la57 else (0, 0x1FFFF))


def address_mask(maxphyaddr: int) -> int:
    """Return the mask of the physical address in an entry that does not map a large page."""
    return (1 << maxphyaddr) - (1 << 12)


def rights_allow(access: Access, mode: PagingMode, *, writable: bool, user: bool, nx: bool) -> bool:
    """Whether the rights of a translation (as in Translation) allow an access (SDM 3A 4.6.1)."""
    if mode.user and not mode.implicit:
        if not user:
            return False
        if access == Access.WRITE:
            return writable
        return access == Access.READ or not (nx and mode.nxe)
    if access == Access.FETCH:
        return not (user and mode.smep) and not (nx and mode.nxe)
    if user and mode.smap and (mode.implicit or not mode.ac):
        return False
    return access == Access.READ or writable or not mode.wp


def _error_code(access: int, mode: PagingMode, cause: int) -> int:
    code = cause
    if access == Access.WRITE:
        code |= _PF_W
    elif access == Access.FETCH and (mode.smep or mode.nxe):
        code |= _PF_I
    if mode.user and not mode.implicit:
        code |= _PF_U
    return code


def walk(
    memory: PhysicalMemory, root: int, vaddr: int, access: Access, mode: PagingMode, *, mark: bool = True
) -> Translation:
    """Translate an address as the processor does, with every check; sets accessed and dirty flags.

    :param root: Physical address of the PML4 (PML5) table.
    :param mark: False to check only, and set no flag.
    :raises PageFault: No translation, or one that does not allow the access.
    :raises GeneralProtection: The address is not canonical (4.5).
    :raises BusError: A paging structure lies outside physical memory.
    """
    if not is_canonical(vaddr, la57=mode.la57):
        raise GeneralProtection(f"address {vaddr:#x} is not canonical")
    path, shift = _descend(memory, root, vaddr, access, mode)
    rights, nx = _RW | _USER, 0
    for _, entry in path:
        rights &= entry
        nx |= entry & _NX
    writable, user = bool(rights & _RW), bool(rights & _USER)
    if not rights_allow(access, mode, writable=writable, user=user, nx=bool(nx)):
        raise PageFault(vaddr, _error_code(access, mode, _PF_P))
    entry_paddr, entry = path[-1]
    dirty = entry & _DIRTY or access == Access.WRITE
    if mark:
        for used_paddr, used in path:
            if not used & _ACCESSED:
                memory.write_u64(used_paddr, used | _ACCESSED)
        if dirty and not entry & _DIRTY:
            memory.write_u64(entry_paddr, entry | _ACCESSED | _DIRTY)
    page_bytes = 1 << shift
    return Translation(
        paddr=entry & _ENTRY_ADDRESS & -page_bytes | vaddr & (page_bytes - 1),
        page_bytes=page_bytes,
        writable=writable,
        user=user,
        nx=bool(nx),
        global_=bool(mode.pge and entry & _GLOBAL),
        dirty=bool(dirty),
        entry_paddr=entry_paddr,
    )


def _descend(
    memory: PhysicalMemory, root: int, vaddr: int, access: Access, mode: PagingMode
) -> tuple[list[tuple[int, int]], int]:
    """Follow the entries to a page: each one's physical address and value, and the page's size as a power of 2."""
    reserved = (1 << 52) - (1 << mode.maxphyaddr) | (0 if mode.nxe else _NX)
    path = []
    table = root & _ENTRY_ADDRESS
    for shift in _SHIFTS_5 if mode.la57 else _SHIFTS_4:
        entry_paddr = table | ((vaddr >> shift) & 511) << 3
        entry = memory.read_u64(entry_paddr)
        if not entry & _PRESENT:
            raise PageFault(vaddr, _error_code(access, mode, 0))
        forbidden = reserved
        last = shift == _PTE_SHIFT
        if entry & _PSE and not last:
            if shift == _PDE_SHIFT or (shift == _PDPTE_SHIFT and mode.gib_pages):
                last = True
                # Bits below the address of a large page, but for PAT (tables 4-16 and 4-18).
                forbidden |= (1 << shift) - 2 * _PAT_LARGE
            else:
                forbidden |= _PSE
        if entry & forbidden:
            raise PageFault(vaddr, _error_code(access, mode, _PF_P | _PF_RSVD))
        path.append((entry_paddr, entry))
        if last:
            break
        table = entry & _ENTRY_ADDRESS
    return path, shift


def lookup(memory: PhysicalMemory, root: int, vaddr: int, levels: int = 4) -> Entry | None:
    """Find the entry at which the walk of an address ends, as the kernel's `lookup_address`: no checks, nothing is set.

    :param root: Physical address of the topmost table.
    :param levels: 4 or 5.
    :return: The entry that maps the page, or the first that is not present but not empty either; None for an empty one
        above the lowest level. Callers look at PRESENT.
    """
    table = root & _ENTRY_ADDRESS
    for level in range(levels, 0, -1):
        paddr = table | ((vaddr >> (3 + 9 * level)) & 511) << 3
        entry = memory.read_u64(paddr)
        if level > 1 and not entry:
            return None
        if level == 1 or not entry & _PRESENT or (level <= _PDPTE_LEVEL and entry & _PSE):
            return Entry(entry, level, paddr)
        table = entry & _ENTRY_ADDRESS
    return None
