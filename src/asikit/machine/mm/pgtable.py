"""Editing page tables: their pages are in modelled memory, and are reached by direct-map addresses as in the kernel.

A table is known by the page frame that holds it; an entry is the plain 64-bit number. Levels count from 1 (PTE) over 2
(PMD) and 3 (PUD) to the root's, 4 or 5. Only the processor's walk (x86/) checks permissions; this is bookkeeping.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from asikit.machine.mm.errors import PageTableError
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.layout import Layout

# Plain numbers and not `asikit.machine.x86.Pte`, whose operations cost twenty times as much; a test compares them.
PRESENT = 1 << 0
RW = 1 << 1
USER = 1 << 2
PWT = 1 << 3
PCD = 1 << 4
ACCESSED = 1 << 5
DIRTY = 1 << 6
PSE = 1 << 7
GLOBAL = 1 << 8
NX = 1 << 63

PTE_PFN_MASK = 0x000F_FFFF_FFFF_F000
"""The bits of an entry that hold the frame's address (SDM volume 3, table 4-20), whatever MAXPHYADDR is."""
FLAGS_MASK = ~PTE_PFN_MASK & (1 << 64) - 1

KERNPG_TABLE = PRESENT | RW | ACCESSED | DIRTY
"""`_KERNPG_TABLE`: the flags of an entry that points to a table of the kernel's."""
PAGE_TABLE = KERNPG_TABLE | USER
"""`_PAGE_TABLE`: the same for user addresses."""
PAGE_KERNEL = KERNPG_TABLE | NX
"""Kernel data. Never GLOBAL: ASI's address spaces differ in what they map, so nothing may outlive a CR3 write."""
PAGE_KERNEL_RO = PAGE_KERNEL & ~RW
PAGE_KERNEL_ROX = PAGE_KERNEL_RO & ~NX

ENTRIES = 512
"""Entries of a table; the upper half of the root's are the kernel's."""
KERNEL_PGD_BOUNDARY = 256

MAX_LEAF_LEVEL = 3
_ENTRY_BYTES = 8
_ZEROES = bytes(PAGE_SIZE)
_CANONICAL = (1 << 64) - 1


def level_bytes(level: int) -> int:
    """Return the bytes that one entry at this level maps."""
    return 1 << (PAGE_SHIFT + 9 * (level - 1))


def level_frames(level: int) -> int:
    """Return the page frames that one entry at this level maps."""
    return 1 << 9 * (level - 1)


def make_entry(pfn: int, flags: int) -> int:
    """Return an entry for a page frame.

    An entry that is not present, but not zero either, has the frame's number inverted, so that a speculative walk that
    ignores PRESENT reads no memory that exists (L1TF; arch/x86/include/asm/pgtable-invert.h).
    """
    address = pfn << PAGE_SHIFT
    if flags and not flags & PRESENT:
        address = ~address
    return address & PTE_PFN_MASK | flags


def entry_pfn(entry: int) -> int:
    """Return the page frame that an entry names, present or not; the inverse of `make_entry`."""
    if entry and not entry & PRESENT:
        entry = ~entry
    return (entry & PTE_PFN_MASK) >> PAGE_SHIFT


def entry_flags(entry: int) -> int:
    """Return an entry without its frame."""
    return entry & FLAGS_MASK


def is_leaf(entry: int, level: int) -> bool:
    """Whether an entry maps memory, or would if it were present, instead of pointing to a table."""
    return level == 1 or bool(entry & PSE)


class WalkEnd(NamedTuple):
    """Where a walk ended: at a leaf, or at an entry that is not present.

    `address` is the entry's direct-map address. `vaddr` is the first address that the entry stands for.
    """

    value: int
    level: int
    address: int
    vaddr: int

    @property
    def present(self) -> bool:
        """Whether it maps memory."""
        return bool(self.value & PRESENT)

    @property
    def pfn(self) -> int:
        """The first page frame that it names."""
        return entry_pfn(self.value)


class PageTables:
    """Edits page tables through `access`.

    Two CPUs that edit the same tables need a lock around it (the kernel's `pgd_lock`, `mm->page_table_lock`): another
    CPU may run at each access.

    :param allocate: Returns a page frame for a table, zeroed; it may raise OutOfMemoryError.
    :param free: Takes a table's frame back.
    :param on_root_change: Called after an entry of a root was written, with root, index and the new entry.
    """

    def __init__(
        self,
        access: KernelMemory,
        layout: Layout,
        allocate: Callable[[], int],
        free: Callable[[int], None] | None = None,
        on_root_change: Callable[[int, int, int], None] | None = None,
    ) -> None:
        self.access = access
        self.layout = layout
        self.allocate = allocate
        self.free = free
        self.on_root_change = on_root_change
        self._levels = layout.levels
        self._base = layout.direct_map.start

    def new_root(self) -> int:
        """Return the page frame of an empty top-level table."""
        return self.allocate()

    def entry_address(self, table: int, vaddr: int, level: int) -> int:
        """Return the direct-map address of an address' entry in a table of this level."""
        return self._base + (table << PAGE_SHIFT) + (vaddr >> (PAGE_SHIFT + 9 * (level - 1)) & 511) * _ENTRY_BYTES

    def lookup(self, root: int, vaddr: int) -> WalkEnd:
        """Walk to an address' leaf, or to the first entry on the way that is not present: `lookup_address()`."""
        load = self.access.load_u64
        table = root
        level = self._levels
        while True:
            address = self.entry_address(table, vaddr, level)
            value = load(address)
            if level == 1 or value & PSE or not value & PRESENT:
                return WalkEnd(value, level, address, vaddr & -(1 << (PAGE_SHIFT + 9 * (level - 1))) & _CANONICAL)
            table = (value & PTE_PFN_MASK) >> PAGE_SHIFT
            level -= 1

    def set_entry(self, root: int, entry: WalkEnd, value: int) -> None:
        """Replace an entry that `lookup` found."""
        self.access.store_u64(entry.address, value)
        if entry.level == self._levels and self.on_root_change is not None:
            self.on_root_change(root, self.layout.pgd_index(entry.vaddr), value)

    def ensure(self, root: int, vaddr: int, level: int = 1) -> WalkEnd:
        """Return an address' entry at this level, making the tables above it: `pte_alloc()` and its like.

        Raises PageTableError if a larger page is mapped there. If an allocation fails, tables made so far stay.
        """
        load = self.access.load_u64
        table = root
        current = self._levels
        while current > level:
            address = self.entry_address(table, vaddr, current)
            value = load(address)
            if value & PSE and current <= MAX_LEAF_LEVEL:
                raise PageTableError(f"address {vaddr:#x}: a {level_bytes(current) >> 10} KiB page is mapped there")
            if not value & PRESENT:
                value = self._link(root, vaddr, current, address)
            table = (value & PTE_PFN_MASK) >> PAGE_SHIFT
            current -= 1
        address = self.entry_address(table, vaddr, level)
        return WalkEnd(load(address), level, address, vaddr & -level_bytes(level) & _CANONICAL)

    def _link(self, root: int, vaddr: int, level: int, address: int) -> int:
        """Put a new table under an empty entry, unless another CPU did so while this one got the memory."""
        table = self.allocate()
        value = self.access.load_u64(address)
        if value & PRESENT:
            if self.free is not None:
                self.free(table)
            return value
        flags = PAGE_TABLE if vaddr < self.layout.user_end else KERNPG_TABLE
        value = make_entry(table, flags)
        self.access.store_u64(address, value)
        if level == self._levels and self.on_root_change is not None:
            self.on_root_change(root, self.layout.pgd_index(vaddr), value)
        return value

    def map_page(self, root: int, vaddr: int, pfn: int, flags: int, level: int = 1) -> None:
        """Map an address to a page frame, making the tables on the way; `flags` are the leaf's, PSE is added.

        `level` 2 and 3 map 2 MiB and 1 GiB; address and frame must be aligned to that. The old entry is overwritten.
        Raises what the allocation of tables raises, and PageTableError for something that does not fit.
        """
        if vaddr & level_bytes(level) - 1 or pfn & level_frames(level) - 1:
            raise PageTableError(f"address {vaddr:#x}, frame {pfn:#x}: not aligned to a page of level {level}")
        entry = self.ensure(root, vaddr, level)
        if level > 1:
            if entry.value & PRESENT and not entry.value & PSE:
                raise PageTableError(f"address {vaddr:#x}: smaller pages are mapped there")
            flags |= PSE
        self.access.store_u64(entry.address, make_entry(pfn, flags))

    def unmap_page(self, root: int, vaddr: int) -> WalkEnd:
        """Clear the leaf that maps an address; return it as it was, with a value of 0 if there was none.

        TLBs are the caller's to flush, and emptied tables stay until `free_empty`.
        """
        entry = self.lookup(root, vaddr)
        if not entry.value:
            return entry
        self.access.store_u64(entry.address, 0)
        return entry

    def protect(self, root: int, vaddr: int, *, set_flags: int = 0, clear_flags: int = 0) -> WalkEnd:
        """Change the flags of the leaf that maps an address; return it as it was. PageTableError if there is none."""
        entry = self.lookup(root, vaddr)
        if not entry.value or not is_leaf(entry.value, entry.level):
            raise PageTableError(f"address {vaddr:#x}: nothing is mapped there")
        flags = entry_flags(entry.value) & ~clear_flags | set_flags
        self.access.store_u64(entry.address, make_entry(entry.pfn, flags))
        return entry

    def range(self, root: int, start: int, end: int) -> Iterator[WalkEnd]:
        """Yield every leaf entry that is not zero, from `start` up to but not including `end`.

        The tables may change meanwhile; what changes ahead is seen.
        """
        vaddr = start
        while vaddr < end:
            entry = self.lookup(root, vaddr)
            if entry.value and is_leaf(entry.value, entry.level):
                yield entry
            vaddr = entry.vaddr + level_bytes(entry.level) * (1 if entry.value else self._empty(entry.address))

    def _empty(self, address: int) -> int:
        """Return how many entries of a table are zero, from one at an address that is: one access instead of many."""
        rest = self.access.load(address, PAGE_SIZE - address % PAGE_SIZE)
        return (len(rest) - len(rest.lstrip(b"\0"))) // _ENTRY_BYTES or 1

    def split(self, entry: WalkEnd, table: int) -> None:
        """Replace a large page by `table`, with pages one level below and the same flags: `__split_large_page()`.

        Nothing changes for who accesses memory; TLBs are the caller's to flush.
        """
        if entry.level == 1 or not entry.value & PSE:
            raise PageTableError(f"address {entry.vaddr:#x}: no large page there")
        flags = entry_flags(entry.value)
        if entry.level == 2:  # noqa: PLR2004 - a PTE has no PSE bit; there it would be PAT
            flags &= ~PSE
        frames = level_frames(entry.level - 1)
        entries = (make_entry(entry.pfn + index * frames, flags) for index in range(ENTRIES))
        content = b"".join(value.to_bytes(8, "little") for value in entries)
        self.access.store(self.layout.virt(table << PAGE_SHIFT), content)
        upper = PAGE_TABLE if entry.vaddr < self.layout.user_end else KERNPG_TABLE
        self.access.store_u64(entry.address, make_entry(table, upper))

    def preallocate(self, root: int, start: int, end: int) -> None:
        """Make the tables that the root's entries for a range point to: `preallocate_sub_pgd_pages()`.

        Roots that copy these entries afterwards see whatever is mapped below them, for ever.
        """
        vaddr = start
        while vaddr < end:
            self.ensure(root, vaddr, self._levels - 1)
            vaddr = (vaddr & -level_bytes(self._levels) & _CANONICAL) + level_bytes(self._levels)

    def free_empty(self, root: int, start: int, end: int) -> int:
        """Free the tables below the root that hold nothing any more in a range of addresses: `free_pgtables()`.

        Returns how many. The caller flushes TLBs before it uses the range again.
        """
        return self._free_empty(root, root, self._levels, start, end)

    def _free_empty(self, root: int, table: int, level: int, start: int, end: int) -> int:
        freed = 0
        span = level_bytes(level)
        vaddr = start & -span & _CANONICAL
        while vaddr < end:
            address = self.entry_address(table, vaddr, level)
            value = self.access.load_u64(address)
            if value & PRESENT and not value & PSE:
                below = (value & PTE_PFN_MASK) >> PAGE_SHIFT
                if level > 2:  # noqa: PLR2004 - a PMD's tables hold pages only
                    freed += self._free_empty(root, below, level - 1, max(start, vaddr), min(end, vaddr + span))
                if self.access.load(self.layout.virt(below << PAGE_SHIFT), PAGE_SIZE) == _ZEROES:
                    self.set_entry(root, WalkEnd(value, level, address, vaddr), 0)
                    if self.free is not None:
                        self.free(below)
                    freed += 1
            vaddr += span * (1 if value else self._empty(address))
        return freed

    def copy_pgd_entries(self, source: int, target: int, first: int = KERNEL_PGD_BOUNDARY, last: int = ENTRIES) -> None:
        """Copy top-level entries from `first` up to but not including `last`: both roots share the tables below."""
        offset, size = first * _ENTRY_BYTES, (last - first) * _ENTRY_BYTES
        entries = self.access.load(self.layout.virt((source << PAGE_SHIFT) + offset), size)
        self.access.store(self.layout.virt((target << PAGE_SHIFT) + offset), entries)
