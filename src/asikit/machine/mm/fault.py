"""Page faults of user memory: mm/memory.c, from `handle_pte_fault()` downwards.

Read faults map one page, not also its neighbours that happen to be cached (`do_fault_around()`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from asikit.machine.mm.errors import MmError
from asikit.machine.mm.gfp import GFP_HIGHUSER_MOVABLE, Gfp
from asikit.machine.mm.inode import TMPFS
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE
from asikit.machine.mm.pgtable import DIRTY, RW, WalkEnd, entry_flags, make_entry
from asikit.machine.mm.text import Symbol, kernel_function
from asikit.machine.mm.userpte import vm_page_prot
from asikit.machine.mm.vma import Vma, VmFlags
from asikit.trace import PageKind

if TYPE_CHECKING:
    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.inode import Inode
    from asikit.machine.mm.mmstruct import MmStruct

__all__ = ["SegvError", "SigbusError", "UserFaultError", "VmFault"]

_NO_FLAGS = Gfp(0)

_FILE_FAULT = {True: Symbol("shmem_fault"), False: Symbol("filemap_fault")}
"""`vma->vm_ops->fault`, by whether the file is in tmpfs."""


class UserFaultError(MmError):
    """A user access that no page can be had for.

    :ivar address: The faulting address.
    """

    signal: ClassVar[str] = ""

    def __init__(self, address: int, reason: str) -> None:
        super().__init__(f"user address {address:#x}: {reason}")
        self.address = address


class SegvError(UserFaultError):
    """Nothing is mapped there, or it may not be used like this: VM_FAULT_SIGSEGV."""

    signal = "SIGSEGV"


class SigbusError(UserFaultError):
    """A page beyond the end of the mapped file: VM_FAULT_SIGBUS."""

    signal = "SIGBUS"


class VmFault:
    """One page fault, `struct vm_fault`: an access that the area allows, under mmap_lock.

    Each method leaves the entry and the counts of pages as they were if it runs out of memory.
    """

    def __init__(self, mm: MmStruct, area: Vma, vaddr: int, *, write: bool) -> None:
        self.access: KernelMemory = mm.access
        self._mm = mm
        self._services = mm.services
        self._allocator = mm.services.allocator
        self._area = area
        self._vaddr = vaddr & -PAGE_SIZE
        self._write = write

    @kernel_function("__handle_mm_fault")
    def handle(self) -> None:
        """Find out what is missing, and do it: `handle_pte_fault()`."""
        entry = self._mm.tables.ensure(self._mm.pgd, self._vaddr)
        if not entry.value:
            if self._area.file is None:
                self._do_anonymous_page(entry)
            else:
                self._do_fault(entry, self._area.file)
        elif self._write and not entry.value & RW:
            self._do_wp_page(entry)
        # Otherwise it is spurious: another thread was faster, or a TLB had an entry from before a change that allowed
        # more. The fault itself removed that entry (SDM volume 3, 4.10.4.1), so there is nothing to flush.

    @kernel_function("do_anonymous_page")
    def _do_anonymous_page(self, entry: WalkEnd) -> None:
        """Memory that was never written: a zeroed page, or for a read the one page of zeroes that all share."""
        prot = vm_page_prot(self._area)
        if not self._write:
            self._set_pte(entry, self._services.zero_page, prot)
            return
        self._area.anon = True
        pfn = self._alloc_anon(Gfp.ZERO)
        self._add_rmap(pfn)
        self._set_pte(entry, pfn, prot | RW | DIRTY)

    @kernel_function("do_fault")
    def _do_fault(self, entry: WalkEnd, file: Inode) -> None:
        """A page of a file: `do_read_fault()`, `do_cow_fault()` and `do_shared_fault()`."""
        prot = vm_page_prot(self._area)
        if self._write and not self._area.shared:
            self._do_cow_fault(entry, file, prot | RW | DIRTY)
            return
        pfn = self._file_page(file)
        self._add_rmap(pfn)
        self._set_pte(entry, pfn, prot | RW | DIRTY if self._write else prot)

    def _do_cow_fault(self, entry: WalkEnd, file: Inode, flags: int) -> None:
        """Copy a page of a file for a private area that is written before it was read."""
        self._area.anon = True
        pfn = self._alloc_anon()
        try:
            source = self._file_page(file)
        except BaseException:
            self._allocator.put_page(pfn)
            raise
        self._copy_page(pfn, source)
        self._allocator.put_page(source)
        self._add_rmap(pfn)
        self._set_pte(entry, pfn, flags)

    def _file_page(self, file: Inode) -> int:
        """Return the page of the file, with a reference: `__do_fault()`."""
        index = self._area.linear_page_index(self._vaddr)
        if index << PAGE_SHIFT >= file.size:
            raise SigbusError(self._vaddr, f"the file ends at {file.size:#x} bytes")
        self.access.enter(_FILE_FAULT[file.filesystem is TMPFS])
        try:
            pfn = self._mm.page_cache.filemap_get_folio(file, index)
            self._allocator.get_page(pfn)
            return pfn
        finally:
            self.access.leave()

    @kernel_function("do_wp_page")
    def _do_wp_page(self, entry: WalkEnd) -> None:
        """A write to a page that is mapped read-only: make it writable if nobody else has it, else copy it."""
        if self._area.flags & VmFlags.SHARED:
            self._wp_page_reuse(entry)  # wp_page_shared()
            return
        # A single reference is that of this very entry; a page of a file has the cache's as well.
        if entry.pfn != self._services.zero_page and self._allocator.page(entry.pfn).refcount == 1:
            self._wp_page_reuse(entry)
            return
        self._wp_page_copy(entry)

    def _wp_page_reuse(self, entry: WalkEnd) -> None:
        # More is allowed than before: a TLB that has the old entry faults spuriously, so nothing needs a flush.
        self._set_pte(entry, entry.pfn, entry_flags(entry.value) | RW | DIRTY)

    @kernel_function("wp_page_copy")
    def _wp_page_copy(self, entry: WalkEnd) -> None:
        """Give the area a page of its own with the same content.

        No TLB has the old page any more when the new one can be written: otherwise another thread could go on reading
        what this one no longer writes to.
        """
        old = entry.pfn
        shared_zeroes = old == self._services.zero_page
        self._area.anon = True
        pfn = self._alloc_anon(Gfp.ZERO if shared_zeroes else _NO_FLAGS)
        if not shared_zeroes:
            self._copy_page(pfn, old)
        self.access.store_u64(entry.address, 0)
        self._services.flusher.flush_tlb_mm_range(self._mm.id, self._vaddr, self._vaddr + PAGE_SIZE)
        self._add_rmap(pfn)
        self._set_pte(entry, pfn, vm_page_prot(self._area) | RW | DIRTY)
        if not shared_zeroes:
            self._allocator.page(old).mapcount -= 1
            self._allocator.put_page(old)

    @kernel_function("copy_page")
    def _copy_page(self, target: int, source: int) -> None:
        """`copy_user_highpage()`: from direct map to direct map."""
        virt = self._services.layout.virt
        self.access.store(virt(target << PAGE_SHIFT), self.access.load(virt(source << PAGE_SHIFT), PAGE_SIZE))

    def _alloc_anon(self, extra: Gfp = _NO_FLAGS) -> int:
        pfn = self._allocator.alloc_pages(GFP_HIGHUSER_MOVABLE | extra, kind=PageKind.ANON)
        page = self._allocator.page(pfn)
        page.owner, page.index = self._mm, self._area.linear_page_index(self._vaddr)
        return pfn

    def _add_rmap(self, pfn: int) -> None:
        self._allocator.page(pfn).mapcount += 1

    def _set_pte(self, entry: WalkEnd, pfn: int, flags: int) -> None:
        self.access.store_u64(entry.address, make_entry(pfn, flags))
