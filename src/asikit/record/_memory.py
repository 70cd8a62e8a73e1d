"""The guest's memory, read at the kernel's addresses through the kernel's own page tables."""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING

from asikit.record.errors import RecordError

if TYPE_CHECKING:
    import mmap

    from asikit.record._symbols import Symbols

__all__ = ["KERNEL_MAP", "GuestMemory", "paging_levels", "physical_base"]

KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""``__START_KERNEL_map`` (arch/x86/include/asm/page_64_types.h)."""

_BANNER = b"Linux version"
_FRAME = 0x000F_FFFF_FFFF_F000
_PRESENT, _LARGE = 1, 1 << 7
_PAGE_SHIFT, _LEVEL_BITS = 12, 9
_LARGEST_SHIFT = 30
"""A page-directory-pointer entry may map 1 GiB; no entry above it maps memory."""
_FOUR_LEVELS, _FIVE_LEVELS = 4, 5
_P4D_ENTRIES = 512


class GuestMemory:
    """The guest's memory."""

    def __init__(self, view: mmap.mmap, symbols: Symbols, iomem: str) -> None:
        """Find the kernel in it.

        :param iomem: The text of ``/proc/iomem``.
        :raises RecordError: The kernel is not where it says it is.
        """
        self._view = view
        self.phys_base = physical_base(symbols["_text"], iomem)
        self.levels = paging_levels(self, symbols)
        self._top = self._of_image(symbols["init_top_pgt"])
        if self.read(symbols["linux_banner"], len(_BANNER)) != _BANNER:
            raise RecordError("the guest's kernel is not where its symbols and /proc/iomem say; give another --kernel")

    def word(self, address: int) -> int:
        """Give the eight bytes at a kernel address as a number."""
        return self.words(address, 1)[0]

    def words(self, address: int, count: int) -> tuple[int, ...]:
        """Give several of them."""
        return struct.unpack(f"<{count}Q", self.read(address, 8 * count))

    def number(self, address: int) -> int:
        """Give the four bytes at a kernel address as a number."""
        return int.from_bytes(self.read(address, 4), "little")

    def read(self, address: int, count: int) -> bytes:
        """Give bytes at a kernel address; they may lie in several pages."""
        parts = []
        while count > 0:
            room = min(count, (1 << _PAGE_SHIFT) - (address & ((1 << _PAGE_SHIFT) - 1)))
            parts.append(self._at(self._physical(address), room))
            address, count = address + room, count - room
        return b"".join(parts)

    def image_number(self, address: int) -> int:
        """Give the four bytes at an address of the kernel image, which is mapped as one piece."""
        return int.from_bytes(self._at(self._of_image(address), 4), "little")

    def page_table(self, pgd: int) -> int | None:
        """Give the frame of a lowest-level page table that maps user memory, None if there is none.

        :param pgd: Kernel address of the highest level.
        """
        table, level = self._physical(pgd), self.levels - 1
        while level:
            entries = struct.unpack("<512Q", self._at(table, 4096))
            below = entries[: 256 if level == self.levels - 1 else 512]  # the upper half of the highest is the kernel's
            following = next((entry for entry in below if entry & _PRESENT and not entry & _LARGE), None)
            if following is None:
                return None
            table, level = following & _FRAME, level - 1
        return table >> _PAGE_SHIFT

    def _of_image(self, address: int) -> int:
        return address - KERNEL_MAP + self.phys_base

    def _at(self, physical: int, count: int) -> bytes:
        if not 0 <= physical <= len(self._view) - count:
            raise RecordError(f"the guest's kernel refers to physical address {physical:#x}, where it has no memory")
        return self._view[physical : physical + count]

    def _physical(self, address: int) -> int:
        """Walk the page tables (SDM volume 3, 4.5)."""
        table = self._top
        for level in range(self.levels - 1, -1, -1):
            shift = _PAGE_SHIFT + _LEVEL_BITS * level
            index = address >> shift & ((1 << _LEVEL_BITS) - 1)
            entry = int.from_bytes(self._at(table + 8 * index, 8), "little")
            if not entry & _PRESENT:
                break
            inside = (1 << shift) - 1
            if level == 0 or (shift <= _LARGEST_SHIFT and entry & _LARGE):
                return (entry & _FRAME & ~inside) + (address & inside)
            table = entry & _FRAME
        raise RecordError(f"the guest's kernel refers to address {address:#x}, which it does not map")


def physical_base(text: int, iomem: str) -> int:
    """Give what the kernel calls ``phys_base``: how far it was moved from where it was linked to.

    :param text: Address of ``_text``, which KASLR moves in the virtual address space, apart from ``phys_base``.
    :param iomem: Its physical address is where ``Kernel code`` begins in ``/proc/iomem`` (arch/x86/kernel/setup.c).
    :raises RecordError: The text does not tell.
    """
    found = re.search(r"^\s*([0-9a-f]+)-[0-9a-f]+ : Kernel code$", iomem, re.MULTILINE)
    if found is None or int(found[1], 16) == 0:
        raise RecordError("the guest's /proc/iomem does not say where the kernel lies; give another --kernel")
    return int(found[1], 16) - (text - KERNEL_MAP)


def paging_levels(memory: GuestMemory, symbols: Symbols) -> int:
    """Tell whether the page tables have five levels (``ptrs_per_p4d``, arch/x86/include/asm/pgtable_64_types.h).

    The variable is there in a kernel that can do either (CONFIG_X86_5LEVEL; since 6.17 every one can).
    """
    at = symbols.get("ptrs_per_p4d")
    return _FIVE_LEVELS if at is not None and memory.image_number(at) == _P4D_ENTRIES else _FOUR_LEVELS
