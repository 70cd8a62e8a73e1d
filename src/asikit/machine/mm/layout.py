"""The kernel's virtual address space: Linux's own numbers (Documentation/arch/x86/x86_64/mm.rst), without KASLR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.machine.mm.errors import NotDirectMappedError
from asikit.trace import Region

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
"""Bytes of a page and of a page frame."""


def page_parts(address: int, size: int) -> Iterator[tuple[int, int]]:
    """Split a range at page borders; gives addresses and sizes."""
    end = address + size
    while address < end:
        length = min(end, (address // PAGE_SIZE + 1) * PAGE_SIZE) - address
        yield address, length
        address += length


GIB = 1 << 30
TIB = 1 << 40
PIB = 1 << 50


@dataclass(frozen=True, slots=True)
class AddressRange:
    """Addresses from `start`, `bytes` of them."""

    start: int
    bytes: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.start + self.bytes

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.start + self.bytes


_PGD_SPAN = {4: 512 * GIB, 5: 256 * TIB}
"""Bytes below one entry of the top-level table."""

_MOVING = {
    4: {
        Region.LDT: AddressRange(0xFFFF_8800_0000_0000, TIB // 2),
        Region.DIRECT_MAP: AddressRange(0xFFFF_8880_0000_0000, 64 * TIB),
        Region.VMALLOC: AddressRange(0xFFFF_C900_0000_0000, 32 * TIB),
        Region.VMEMMAP: AddressRange(0xFFFF_EA00_0000_0000, TIB),
    },
    5: {
        Region.LDT: AddressRange(0xFF10_0000_0000_0000, PIB // 4),
        Region.DIRECT_MAP: AddressRange(0xFF11_0000_0000_0000, 32 * PIB),
        Region.VMALLOC: AddressRange(0xFFA0_0000_0000_0000, 12800 * TIB),
        Region.VMEMMAP: AddressRange(0xFFD4_0000_0000_0000, PIB // 2),
    },
}
"""What lies elsewhere with 5 levels."""

_FIXED = {
    Region.CPU_ENTRY_AREA: AddressRange(0xFFFF_FE00_0000_0000, TIB // 2),
    Region.ESPFIX: AddressRange(0xFFFF_FF00_0000_0000, TIB // 2),
    Region.KERNEL_IMAGE: AddressRange(0xFFFF_FFFF_8000_0000, GIB // 2),
    Region.MODULES: AddressRange(0xFFFF_FFFF_A000_0000, 1520 << 20),
    Region.FIXMAP: AddressRange(0xFFFF_FFFF_FF00_0000, 6 << 20),
}


class Layout:
    """Where things are, for 4 or 5 levels of page tables.

    Per-CPU areas get the last top-level entry of the vmalloc area: the kernel's page allocator for them
    (`pcpu_get_vm_areas()`) takes addresses from its end downwards. `vmalloc` here is what remains.
    """

    def __init__(self, levels: int = 4) -> None:
        if levels not in _MOVING:
            raise ValueError(f"page tables have 4 or 5 levels, not {levels}")
        self.levels = levels
        self.user_end = (1 << (12 + 9 * levels - 1)) - PAGE_SIZE
        """The first address that user code cannot have, `TASK_SIZE_MAX`."""
        self.pgd_shift = 12 + 9 * (levels - 1)
        """An address' index into the top-level table begins at this bit."""
        moving = _MOVING[levels]
        percpu_bytes = _PGD_SPAN[levels]
        vmalloc = moving[Region.VMALLOC]
        self.ldt = moving[Region.LDT]
        self.direct_map = moving[Region.DIRECT_MAP]
        self.vmalloc = AddressRange(vmalloc.start, vmalloc.bytes - percpu_bytes)
        self.percpu = AddressRange(self.vmalloc.end, percpu_bytes)
        self.vmemmap = moving[Region.VMEMMAP]
        self.cpu_entry_area = _FIXED[Region.CPU_ENTRY_AREA]
        self.espfix = _FIXED[Region.ESPFIX]
        self.kernel_image = _FIXED[Region.KERNEL_IMAGE]
        self.modules = _FIXED[Region.MODULES]
        self.fixmap = _FIXED[Region.FIXMAP]
        self.regions: tuple[tuple[Region, AddressRange], ...] = (
            (Region.DIRECT_MAP, self.direct_map),
            (Region.USER, AddressRange(0, 1 << (12 + 9 * levels - 1))),
            (Region.VMALLOC, self.vmalloc),
            (Region.PERCPU, self.percpu),
            (Region.KERNEL_IMAGE, self.kernel_image),
            (Region.MODULES, self.modules),
            (Region.FIXMAP, self.fixmap),
            (Region.CPU_ENTRY_AREA, self.cpu_entry_area),
            (Region.VMEMMAP, self.vmemmap),
            (Region.LDT, self.ldt),
            (Region.ESPFIX, self.espfix),
        )
        """Every region, those first that are asked about most."""
        self._base = self.direct_map.start
        self._size = self.direct_map.bytes

    def virt(self, paddr: int) -> int:
        """Return the direct-map address of a physical one, `__va()`."""
        return self._base + paddr

    def phys(self, vaddr: int) -> int:
        """Return the physical address behind a direct-map address, `__pa()`; NotDirectMappedError for others."""
        paddr = vaddr - self._base
        if 0 <= paddr < self._size:
            return paddr
        raise NotDirectMappedError(vaddr)

    def region_of(self, vaddr: int) -> Region:
        """Return the region that an address is in, OTHER for the holes between them."""
        for region, span in self.regions:
            if span.start <= vaddr < span.start + span.bytes:
                return region
        return Region.OTHER

    def pgd_index(self, vaddr: int) -> int:
        """Return an address' index into the top-level table, 0 to 511."""
        return (vaddr >> self.pgd_shift) & 511
