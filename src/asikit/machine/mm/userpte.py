"""Page-table entries of user memory: what an area's pages may be used for (arch/x86/mm/pgprot.c, mm/mprotect.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.machine.mm.inode import TMPFS
from asikit.machine.mm.pgtable import ACCESSED, DIRTY, GLOBAL, NX, PRESENT, RW, USER, entry_flags, make_entry
from asikit.machine.mm.vma import Vma, VmFlags

if TYPE_CHECKING:
    from asikit.machine.mm.mmstruct import MmStruct

__all__ = ["PROTNONE", "change_protection", "vm_page_prot"]

PROTNONE: Final = GLOBAL
"""`_PAGE_PROTNONE`: marks an entry that is not present for the processor but keeps its page."""


def vm_page_prot(area: Vma) -> int:
    """Return the flags of an area's fresh entries: `vma->vm_page_prot`.

    Never writable in a private area: the first write decides whether the page has to be copied. In a shared one of a
    file on a disk neither, as the file system is told of the first write (`vma_wants_writenotify()`).
    """
    if not area.flags & VmFlags.ACCESS:
        return PROTNONE | ACCESSED
    flags = PRESENT | USER | ACCESSED
    if not area.flags & VmFlags.EXEC:
        flags |= NX
    if area.shared and area.flags & VmFlags.WRITE and area.file is not None and area.file.filesystem is TMPFS:
        flags |= RW
    return flags


def change_protection(mm: MmStruct, start: int, end: int) -> int:
    """Give the pages of a range the flags of their areas (mm/mprotect.c); return how many entries changed.

    The caller flushes TLBs and holds mmap_lock.
    """
    changed = 0
    for area in mm.vmas.intersecting(start, end):
        prot = vm_page_prot(area)
        for entry in mm.tables.range(mm.pgd, max(area.start, start), min(area.end, end)):
            new = prot & ~RW if entry.pfn == mm.services.zero_page else prot
            value = make_entry(entry.pfn, new | entry_flags(entry.value) & (ACCESSED | DIRTY))
            if value != entry.value:
                mm.access.store_u64(entry.address, value)
                changed += 1
    return changed
