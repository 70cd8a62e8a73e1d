"""A copy of an address space that shares pages until somebody writes: kernel/fork.c and mm/memory.c."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from asikit.machine.mm.mmstruct import MmStruct
from asikit.machine.mm.pgtable import RW
from asikit.machine.mm.vma import Vma, VmFlags

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["dup_mm"]


def dup_mm(mm: MmStruct, number: int, *, on_pgd_change: Iterable[Callable[[int, int], None]] = ()) -> MmStruct:
    """Return a copy-on-write copy of an address space, which has one user, the caller.

    Private pages become read-only in both; the parent's TLB entries are flushed before this returns or raises.

    :param number: The copy's id.
    :param on_pgd_change: Called for the copy's changes of its top-level table, from the first on.
    :raises OutOfMemoryError: Nothing is left of the copy, and the parent's memory is what it was.
    """
    child = MmStruct(mm.services, mm.page_cache, number, on_pgd_change=on_pgd_change, pgd_order=mm.pgd_order)
    child.mmap_base, child.start_brk, child.brk = mm.mmap_base, mm.start_brk, mm.brk
    try:
        with mm.mmap_lock, child.mmap_lock:
            _dup_mmap(mm, child)
    except BaseException:
        child.put()
        raise
    return child


def _dup_mmap(mm: MmStruct, child: MmStruct) -> None:
    try:
        for area in mm.vmas:
            if area.flags & VmFlags.DONTCOPY:
                continue
            if area.file is not None:
                area.file.get()
            child.vmas.insert(replace(area))
            if area.anon:  # vma_needs_copy(): otherwise faults will find the pages again
                _copy_page_range(mm, child, area)
    finally:
        # Also after a failure: entries of the parent may be read-only already, and its TLBs must not disagree.
        mm.services.flusher.flush_tlb_mm_range(mm.id, 0, mm.services.layout.user_end)


def _copy_page_range(mm: MmStruct, child: MmStruct, area: Vma) -> None:
    """Copy the entries of one area: `copy_present_pte()` for each."""
    allocator, zero_page = mm.services.allocator, mm.services.zero_page
    for entry in mm.tables.range(mm.pgd, area.start, area.end):
        target = child.tables.ensure(child.pgd, entry.vaddr)
        value = entry.value
        if value & RW and area.is_cow:
            value &= ~RW
            mm.access.store_u64(entry.address, value)
        if entry.pfn != zero_page:
            allocator.get_page(entry.pfn).mapcount += 1
        child.access.store_u64(target.address, value)
