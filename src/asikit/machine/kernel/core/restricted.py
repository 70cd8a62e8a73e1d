"""The kernel half of the restricted address spaces: `asi_nonsensitive_pgd` but for the direct map.

As published everything but the direct map is mapped, by sharing the tables below the top-level entries. A policy may
want less: no module text, only nonsensitive vmalloc memory, one page less (I10). Then tables are copied as far down as
it takes, and the copies differ where they must. What is mapped later under a copied table appears in the restricted
address spaces only if somebody mirrors it, as `RestrictedVmalloc` does; a missing mapping costs nothing but exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.mm import PAGE_SHIFT, PAGE_SIZE
from asikit.machine.mm.gfp import GFP_KERNEL, GFP_PGTABLE_KERNEL, Gfp
from asikit.machine.mm.pgtable import (
    ENTRIES,
    KERNEL_PGD_BOUNDARY,
    KERNPG_TABLE,
    NX,
    PAGE_KERNEL,
    PRESENT,
    PSE,
    PTE_PFN_MASK,
    RW,
    entry_flags,
    entry_pfn,
    is_leaf,
    level_bytes,
    level_frames,
    make_entry,
)
from asikit.machine.mm.vmalloc import Vmalloc
from asikit.machine.x86 import Access
from asikit.protocol import Mapped
from asikit.trace import PageKind, Region

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.machine.mm import MmServices

__all__ = ["RestrictedMap", "RestrictedVmalloc", "is_whole"]

_SIGN = 0xFFFF_0000_0000_0000


class _Kernel(doors.Described, doors.PhysicallySeen, doors.Memory, doors.Allocating, doors.AddressSpaces, Protocol):
    """What is needed of the kernel here."""


def is_whole(kernel: _Kernel, region: Region) -> bool:
    """Return whether restricted address spaces have all of a region."""
    return all(kernel.config.mapped(region, access) is Mapped.MAPPED for access in Access)


class RestrictedMap:
    """Fills the kernel half of `asi_nonsensitive_pgd`, once."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        self._absent = kernel.config.absent_pages()
        self._sign = _SIGN if kernel.layout.levels == 4 else 0xFE00_0000_0000_0000  # noqa: PLR2004 - 4 or 5

    def build(self) -> None:
        """Copy init_mm's top-level entries, and what is below those that may not be shared."""
        kernel = self._kernel
        source, target = kernel.direct_map.pgd, kernel.direct_map.nonsensitive_pgd
        assert target is not None  # ASI is on
        levels, layout = kernel.layout.levels, kernel.layout
        span = level_bytes(levels)
        # The direct map has tables of its own. Its region's 64 TiB (32 PiB) are whole top-level entries.
        first, last = layout.pgd_index(layout.direct_map.start), layout.pgd_index(layout.direct_map.end - 1)
        for index in range(KERNEL_PGD_BOUNDARY, ENTRIES):
            if first <= index <= last:
                continue
            value = kernel.physical.read_u64((source << PAGE_SHIFT) + index * 8)
            if value & PRESENT:
                restricted = self._restrict(value, levels, self._sign | index * span)
                kernel.access.store_u64(layout.virt((target << PAGE_SHIFT) + index * 8), restricted)
        self._remove_from_direct_map()

    def _restrict(self, value: int, level: int, vaddr: int) -> int:
        """Return what an entry is in the restricted address space."""
        if self._may_share(vaddr, level_bytes(level)):
            return value
        if is_leaf(value, level):
            inside = self._absent_inside(vaddr, level_bytes(level))
            return self._split(value, level, vaddr) if inside and level > 1 else self._leaf(value, vaddr)
        below, step = entry_pfn(value), level_bytes(level - 1)
        entries = []
        for index in range(ENTRIES):
            entry = self._kernel.physical.read_u64((below << PAGE_SHIFT) + index * 8)
            entries.append(self._restrict(entry, level - 1, vaddr + index * step) if entry & PRESENT else 0)
        return self._table(entries)

    def _split(self, value: int, level: int, vaddr: int) -> int:
        flags = entry_flags(value) & ~(PSE if level == 2 else 0)  # noqa: PLR2004 - a PTE has no PSE
        pfn, step = entry_pfn(value), level_bytes(level - 1)
        return self._table(
            [
                self._restrict(
                    make_entry(pfn + index * level_frames(level - 1), flags), level - 1, vaddr + index * step
                )
                for index in range(ENTRIES)
            ]
        )

    def _table(self, entries: list[int]) -> int:
        kernel = self._kernel
        pfn = kernel.allocator.alloc_pages(GFP_PGTABLE_KERNEL, kind=PageKind.PAGE_TABLE)
        content = b"".join(entry.to_bytes(8, "little") for entry in entries)
        kernel.access.store(kernel.layout.virt(pfn << PAGE_SHIFT), content)
        return make_entry(pfn, KERNPG_TABLE)

    def _leaf(self, value: int, vaddr: int) -> int:
        if self._absent_inside(vaddr, PAGE_SIZE):
            return 0
        kernel = self._kernel
        region = kernel.layout.region_of(vaddr)
        return restricted_leaf(kernel, region, value)

    def _may_share(self, vaddr: int, size: int) -> bool:
        layout = self._kernel.layout
        regions = [region for region, span in layout.regions if span.start < vaddr + size and vaddr < span.end]
        return all(is_whole(self._kernel, region) for region in regions) and not self._absent_inside(vaddr, size)

    def _absent_inside(self, vaddr: int, size: int) -> bool:
        return any(vaddr <= address < vaddr + size for address in self._absent)

    def _remove_from_direct_map(self) -> None:
        kernel = self._kernel
        span = kernel.layout.direct_map
        frames = {kernel.layout.phys(address) >> PAGE_SHIFT for address in self._absent if address in span}
        if not all(
            kernel.config.mapped(Region.DIRECT_MAP, access) is Mapped.BY_MEMORY
            or kernel.config.mapped(Region.DIRECT_MAP, access) is Mapped.MAPPED
            for access in Access
        ):
            frames = set(range(kernel.direct_map.frames))
        for pfn in sorted(frames):
            kernel.direct_map.remove_restricted(pfn)


def restricted_leaf(kernel: _Kernel, region: Region, value: int) -> int:
    """Return a page's entry in the restricted address space: less its rights to what the region's policy withholds."""
    sensitive = kernel.direct_map.pageblocks.sensitive((value & PTE_PFN_MASK) >> PAGE_SHIFT)

    def allowed(access: Access) -> bool:
        mapped = kernel.config.mapped(region, access)
        return mapped is Mapped.MAPPED or (mapped is Mapped.BY_MEMORY and not sensitive)

    if not allowed(Access.READ):
        return 0
    value = value if allowed(Access.WRITE) else value & ~RW
    return value if allowed(Access.FETCH) else value | NX


class RestrictedVmalloc(Vmalloc):
    """The vmalloc area where restricted address spaces have only some of it, in tables of their own."""

    def __init__(self, services: MmServices, kernel: _Kernel) -> None:
        self._kernel = kernel
        super().__init__(services)

    def vmalloc(
        self, size: int, gfp: Gfp = GFP_KERNEL, *, kind: PageKind = PageKind.VMALLOC, align: int = PAGE_SIZE
    ) -> int:
        """Do what `Vmalloc` does, and map in the restricted address spaces what they may have of it."""
        address = super().vmalloc(size, gfp, kind=kind, align=align)
        self._mirror(address)
        return address

    def vmap(self, pages: Sequence[int]) -> int:
        """Do what `Vmalloc` does, and map in the restricted address spaces what they may have of it."""
        address = super().vmap(pages)
        self._mirror(address)
        return address

    def vfree(self, address: int) -> None:
        """Unmap it in all address spaces; TLBs are flushed before its frames are free."""
        root = self._kernel.direct_map.nonsensitive_pgd
        area = next((area for area in self.areas if area.address == address), None)
        if root is not None and area is not None:
            with self._kernel.context.uncounted():
                for entry in self.tables.range(root, area.address, area.end):
                    self.access.store_u64(entry.address, 0)
        super().vfree(address)

    def _mirror(self, address: int) -> None:
        kernel = self._kernel
        root = kernel.direct_map.nonsensitive_pgd
        area = next(area for area in self.areas if area.address == address)
        if root is None:
            return
        with kernel.context.uncounted():
            for index, pfn in enumerate(area.pages):
                value = restricted_leaf(kernel, Region.VMALLOC, make_entry(pfn, PAGE_KERNEL))
                if value:
                    entry = kernel.tables.ensure(root, address + index * PAGE_SIZE)
                    kernel.access.store_u64(entry.address, value)
