"""Memory that is contiguous only virtually: mm/vmalloc.c.

The tables right below the top-level one are all made at boot (`preallocate_vmalloc_pages()`, arch/x86/mm/init_64.c), so
that top-level entries never change and address spaces that copied them, the restricted ones too, see every mapping.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asikit.machine.mm.errors import MmError, OutOfMemoryError
from asikit.machine.mm.gfp import GFP_KERNEL, GFP_PGTABLE_KERNEL, Gfp
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE
from asikit.machine.mm.pgtable import PAGE_KERNEL, PageTables, level_bytes, make_entry
from asikit.machine.mm.text import kernel_function
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.layout import AddressRange
    from asikit.machine.mm.services import MmServices

__all__ = ["KernelTables", "VmStruct", "Vmalloc", "VmallocError"]

LAZY_MAX_PAGES: Final = 64
"""Unmapped pages that may wait for one flush, `lazy_max_pages()`. The kernel's 32 MiB a CPU are addresses only: it
frees the frames at once, and a TLB could still reach them. Here frames wait as well, so it is less."""


class VmallocError(MmError):
    """An address at which no area begins.

    :ivar address: The address.
    """

    def __init__(self, address: int) -> None:
        super().__init__(f"address {address:#x}: no vmalloc area begins there")
        self.address = address


class KernelTables(PageTables):
    """init_mm's page tables for one region whose top-level entries are filled once and for all.

    :ivar frames: Every table's frame; they are never freed.
    """

    def __init__(self, services: MmServices, region: AddressRange) -> None:
        """Make the tables right below the top-level one; OutOfMemoryError leaves those made so far in place."""
        self._allocator = services.allocator
        self.frames: list[int] = []
        super().__init__(services.access, services.layout, self._pte_alloc_one_kernel, self._drop)
        self.root = services.init_pgd
        span = level_bytes(services.layout.levels)
        for vaddr in range(region.start & -span, region.end, span):
            self.ensure(self.root, vaddr, services.layout.levels - 1)

    def _pte_alloc_one_kernel(self) -> int:
        pfn = self._allocator.alloc_pages(GFP_PGTABLE_KERNEL, kind=PageKind.PAGE_TABLE)
        self.frames.append(pfn)
        return pfn

    def _drop(self, pfn: int) -> None:
        self.frames.remove(pfn)
        self._allocator.free_pages(pfn)


@dataclass(frozen=True, slots=True, order=True)
class VmStruct:
    """An area, `struct vm_struct`: `pages` are mapped from `address` on, and one page after them never is."""

    address: int
    pages: tuple[int, ...]
    owns_pages: bool = True

    @property
    def end(self) -> int:
        """The first address after the mapped pages, where the guard page is."""
        return self.address + len(self.pages) * PAGE_SIZE


class Vmalloc:
    """The vmalloc area of the kernel's address space."""

    def __init__(self, services: MmServices) -> None:
        """Fill the region's top-level entries, before any address space copies them; OutOfMemoryError."""
        self.access: KernelMemory = services.access
        self.tables = KernelTables(services, services.layout.vmalloc)
        self._services = services
        self._region = services.layout.vmalloc
        self._taken: list[tuple[int, int]] = []
        self._areas: dict[int, VmStruct] = {}
        self._lazy: list[VmStruct] = []
        services.allocator.reclaimers.append(self._reclaim)

    @property
    def areas(self) -> tuple[VmStruct, ...]:
        """All areas in use, by address: /proc/vmallocinfo."""
        return tuple(self._areas[address] for address in sorted(self._areas))

    @kernel_function("__vmalloc_node_range")
    def vmalloc(
        self, size: int, gfp: Gfp = GFP_KERNEL, *, kind: PageKind = PageKind.VMALLOC, align: int = PAGE_SIZE
    ) -> int:
        """Return the address of `size` bytes, rounded up to pages and followed by a page that is never mapped.

        :param gfp: Of each page; with Gfp.ZERO the memory is zeroed, with Gfp.SENSITIVE the pages are sensitive in the
            direct map (the vmalloc area itself is in every address space).
        :param align: Of the address, bytes.
        :raises OutOfMemoryError: Nothing is left but page tables.
        """
        if size <= 0:
            raise ValueError(f"vmalloc of {size} bytes")
        allocator = self._services.allocator
        count = (size + PAGE_SIZE - 1) >> PAGE_SHIFT
        address = self._alloc_vmap_area(count, align)
        pages: list[int] = []
        try:
            for _ in range(count):
                pages.append(allocator.alloc_pages(gfp, kind=kind))  # noqa: PERF401 - those made so far are needed
        except BaseException:
            self._free(VmStruct(address, tuple(pages)))
            raise
        return self._map(VmStruct(address, tuple(pages)))

    @kernel_function()
    def vmap(self, pages: Sequence[int]) -> int:
        """Map frames of the caller's and return the address; OutOfMemoryError as for `vmalloc`."""
        return self._map(VmStruct(self._alloc_vmap_area(len(pages), PAGE_SIZE), tuple(pages), owns_pages=False))

    @kernel_function()
    def vfree(self, address: int) -> None:
        """Unmap an area; its frames are freed, and its addresses used again, after the next flush.

        :raises VmallocError: No area begins there.
        """
        area = self._areas.pop(address, None)
        if area is None:
            raise VmallocError(address)
        self._unmap(area)

    def vunmap(self, address: int) -> None:
        """Undo `vmap`. The frames may be freed after `vm_unmap_aliases` only, as TLBs may still have them."""
        self.vfree(address)

    def vm_unmap_aliases(self) -> None:
        """Flush what was unmapped from all TLBs, and free it: `__purge_vmap_area_lazy()`."""
        lazy, self._lazy = self._lazy, []
        if not lazy:
            return
        start, end = min(area.address for area in lazy), max(area.end for area in lazy)
        self._services.flusher.flush_tlb_kernel_range(start, end)
        for area in lazy:
            self._free(area)

    def _map(self, area: VmStruct) -> int:
        """Fill the entries of an area, or undo all: `vmap_pages_range()`."""
        try:
            for index, pfn in enumerate(area.pages):
                entry = self.tables.ensure(self.tables.root, area.address + index * PAGE_SIZE)
                self.access.store_u64(entry.address, make_entry(pfn, PAGE_KERNEL))
        except BaseException:
            self._unmap(area)
            raise
        self._areas[area.address] = area
        return area.address

    def _unmap(self, area: VmStruct) -> None:
        """Clear the entries, and flush now if enough has come together: `free_vmap_area_noflush()`."""
        for entry in self.tables.range(self.tables.root, area.address, area.end):
            self.access.store_u64(entry.address, 0)
        self._lazy.append(area)
        if sum(len(waiting.pages) for waiting in self._lazy) > LAZY_MAX_PAGES and self._may_flush():
            self.vm_unmap_aliases()

    def _free(self, area: VmStruct) -> None:
        if area.owns_pages:
            for pfn in area.pages:
                self._services.allocator.put_page(pfn)
        del self._taken[bisect_left(self._taken, (area.address,))]

    def _reclaim(self, _order: int) -> int:
        """Memory is short: give back what only waits for a flush."""
        waiting = sum(len(area.pages) for area in self._lazy if area.owns_pages)
        self.vm_unmap_aliases()
        return waiting

    def _may_flush(self) -> bool:
        context = self._services.context
        return context.irqs_enabled and context.may_block

    def _alloc_vmap_area(self, count: int, align: int) -> int:
        """Reserve the lowest gap for pages and a guard page (mm/vmalloc.c)."""
        address = self._region.start
        for start, end in self._taken:
            if address + (count + 1) * PAGE_SIZE <= start:
                break
            address = (end + align - 1) & -align
        end = address + (count + 1) * PAGE_SIZE
        if end > self._region.end:
            raise OutOfMemoryError(f"no vmalloc addresses for {count} pages")
        insort(self._taken, (address, end))
        return address
