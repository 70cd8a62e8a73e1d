"""Areas of a process's address space: `struct vm_area_struct` and the tree that holds them (mm/mmap.c).

Pure bookkeeping: nothing here reads or writes memory or page tables. Addresses are bytes, always multiples of 4096.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, replace
from enum import IntFlag
from itertools import pairwise
from typing import TYPE_CHECKING, Final

from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.machine.mm.inode import Inode

__all__ = ["STACK_GUARD_GAP", "VmFlags", "Vma", "VmaList", "page_align"]

STACK_GUARD_GAP: Final = 256 * PAGE_SIZE
"""Bytes kept free below an area that grows downwards, `stack_guard_gap` (mm/mmap.c)."""


def page_align(length: int) -> int:
    """Round bytes up to whole pages, `PAGE_ALIGN`."""
    return (length + PAGE_SIZE - 1) & -PAGE_SIZE


class VmFlags(IntFlag):
    """`vm_flags` with Linux's values (include/linux/mm.h)."""

    NONE = 0
    READ = 0x1
    WRITE = 0x2
    EXEC = 0x4
    SHARED = 0x8
    GROWSDOWN = 0x100
    DONTCOPY = 0x0002_0000
    ACCESS = READ | WRITE | EXEC


@dataclass(slots=True, eq=False)
class Vma:
    """One area: addresses `start` up to `end`, all treated alike.

    :ivar file: What is mapped, None for private anonymous memory. Each area holds one reference to its inode.
    :ivar pgoff: Page of the file at `start`; of private anonymous memory `start >> PAGE_SHIFT`, so neighbours merge.
    :ivar anon: The area may have private anonymous pages (`vma->anon_vma` is set): fork has to copy its entries, where
        for other areas the child finds the pages again by faulting.
    """

    start: int
    end: int
    flags: VmFlags
    file: Inode | None = None
    pgoff: int = 0
    anon: bool = False

    def __str__(self) -> str:
        """Return the line of /proc/PID/maps, without device and inode numbers."""
        letters = "".join(
            letter if self.flags & flag else "-"
            for letter, flag in (("r", VmFlags.READ), ("w", VmFlags.WRITE), ("x", VmFlags.EXEC))
        )
        shared = "s" if self.flags & VmFlags.SHARED else "p"
        name = self.file.name if self.file is not None else ""
        return f"{self.start:x}-{self.end:x} {letters}{shared} {self.pgoff << PAGE_SHIFT:08x} {name}".rstrip()

    @property
    def shared(self) -> bool:
        """Whether writes go to the file and to everybody who maps it, VM_SHARED."""
        return bool(self.flags & VmFlags.SHARED)

    @property
    def is_cow(self) -> bool:
        """Whether a write makes a private copy, `is_cow_mapping()`; areas that mprotect may make writable count."""
        return not self.flags & VmFlags.SHARED

    def linear_page_index(self, vaddr: int) -> int:
        """Return the page of the file that an address shows (include/linux/pagemap.h)."""
        return ((vaddr - self.start) >> PAGE_SHIFT) + self.pgoff

    def can_merge_before(self, other: Vma) -> bool:
        """Whether one area can stand for this and the one after it, `can_vma_merge_before()`."""
        return (
            self.end == other.start
            and self.flags == other.flags
            and self.file is other.file
            and self.linear_page_index(self.end) == other.pgoff
        )


class VmaList:
    """The areas of one address space, sorted by address, none overlapping (the maple tree `mm->mm_mt`)."""

    def __init__(self) -> None:
        self._areas: list[Vma] = []
        self._starts: list[int] = []

    def __iter__(self) -> Iterator[Vma]:
        return iter(tuple(self._areas))

    def __len__(self) -> int:
        return len(self._areas)

    def find(self, vaddr: int) -> Vma | None:
        """Return the first area that ends above an address, which may begin above it too: `find_vma()`."""
        position = self._position(vaddr)
        return self._areas[position] if position < len(self._areas) else None

    def lookup(self, vaddr: int) -> Vma | None:
        """Return the area that contains an address: `vma_lookup()`."""
        area = self.find(vaddr)
        return area if area is not None and area.start <= vaddr else None

    def intersecting(self, start: int, end: int) -> list[Vma]:
        """Return the areas that have an address from `start` up to `end`, in order of address."""
        found = []
        for position in range(self._position(start), len(self._areas)):
            area = self._areas[position]
            if area.start >= end:
                break
            found.append(area)
        return found

    def neighbours(self, start: int, end: int) -> tuple[int, int | None]:
        """Return where the nearest area below `start` ends (0: there is none) and the nearest from `end` begins."""
        position = bisect_right(self._starts, start - 1)
        floor = self._areas[position - 1].end if position else 0
        after = self.find(end)
        return min(floor, start), after.start if after is not None else None

    def insert(self, area: Vma) -> Vma:
        """Add an area that overlaps none, joining it with its neighbours where that is possible: `vma_merge()`.

        Takes over the caller's reference to the file. Returns the area that now contains it.
        """
        if area.start >= area.end or self.intersecting(area.start, area.end):
            raise ValueError(f"area {area.start:#x}-{area.end:#x} is empty or overlaps another")
        position = bisect_right(self._starts, area.start)
        self._areas.insert(position, area)
        self._starts.insert(position, area.start)
        if position + 1 < len(self._areas):
            self._join(position)
        if position and self._join(position - 1):
            position -= 1
        return self._areas[position]

    def merge(self, start: int, end: int) -> None:
        """Join what can be joined among the areas of a range and their outer neighbours."""
        position = max(self._position(start) - 1, 0)
        while position + 1 < len(self._areas) and self._areas[position].start <= end:
            if not self._join(position):
                position += 1

    def split(self, vaddr: int) -> None:
        """Make an address a border, if it lies inside an area: `split_vma()`."""
        area = self.lookup(vaddr)
        if area is None or area.start == vaddr:
            return
        upper = replace(area, start=vaddr, pgoff=area.linear_page_index(vaddr))
        if upper.file is not None:
            upper.file.get()
        area.end = vaddr
        position = bisect_right(self._starts, vaddr)
        self._areas.insert(position, upper)
        self._starts.insert(position, vaddr)

    def remove(self, start: int, end: int) -> list[Vma]:
        """Take out what lies in a range, splitting areas at its borders; the caller puts the areas' files."""
        self.split(start)
        self.split(end)
        gone = self.intersecting(start, end)
        first = self._position(start)
        del self._areas[first : first + len(gone)]
        del self._starts[first : first + len(gone)]
        return gone

    def expand_downwards(self, area: Vma, start: int) -> None:
        """Let an area begin lower (mm/mmap.c); private anonymous memory keeps the numbers of its pages."""
        position = self._areas.index(area)
        area.pgoff -= (area.start - start) >> PAGE_SHIFT
        area.start = start
        self._starts[position] = start

    def unmapped_area_topdown(self, length: int, low: int, high: int) -> int | None:
        """Return the highest address of a gap from `low` up to `high`, None if there is no such gap (mm/mmap.c)."""
        ends = (end - length for start, end in reversed(self._gaps(low, high)) if end - start >= length)
        return next(ends, None)

    def unmapped_area(self, length: int, low: int, high: int) -> int | None:
        """Return the lowest address of a gap from `low` up to `high`, None if there is no such gap (mm/mmap.c)."""
        return next((start for start, end in self._gaps(low, high) if end - start >= length), None)

    def check(self) -> None:
        """Raise AssertionError if the areas are not sorted, overlap, or are not page-aligned: `validate_mm()`."""
        starts = [area.start for area in self._areas]
        if starts != self._starts:
            raise AssertionError(f"index {self._starts} is not that of the areas {starts}")
        for area in self._areas:
            if area.start >= area.end or (area.start | area.end) % PAGE_SIZE:
                raise AssertionError(f"area {area} is empty or not page-aligned")
        for lower, upper in pairwise(self._areas):
            if lower.end > upper.start:
                raise AssertionError(f"areas {lower} and {upper} overlap or are out of order")

    def _gaps(self, low: int, high: int) -> list[tuple[int, int]]:
        floors = [low, *(max(area.end, low) for area in self._areas)]
        ceilings = [*(min(_vm_start_gap(area), high) for area in self._areas), high]
        return list(zip(floors, ceilings, strict=True))

    def _position(self, vaddr: int) -> int:
        """Return the place in the list of the first area that ends above an address."""
        position = bisect_right(self._starts, vaddr)
        return position - 1 if position and self._areas[position - 1].end > vaddr else position

    def _join(self, position: int) -> bool:
        """Let one area stand for two neighbours, if they allow it."""
        lower, upper = self._areas[position : position + 2]
        if not lower.can_merge_before(upper):
            return False
        lower.end = upper.end
        lower.anon |= upper.anon
        del self._areas[position + 1]
        del self._starts[position + 1]
        if upper.file is not None:
            upper.file.put()
        return True


def _vm_start_gap(area: Vma) -> int:
    """Return the address below which others may lie (include/linux/mm.h)."""
    return max(area.start - STACK_GUARD_GAP, 0) if area.flags & VmFlags.GROWSDOWN else area.start
