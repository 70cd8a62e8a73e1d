"""Change page attributes (CPA): permissions of direct-map pages, mirrored into the restricted address space.

What arch/x86/mm/pat/set_memory.c does for the direct map. A change comes in two steps, so that a failure changes
nothing: first large pages that reach over an end of the range are split, which may run out of memory; then entries
are written. Split pages are never put together again.

The mirror is where the published series has a bug: it copies the attributes as they are, so `set_memory_np` and then
`set_memory_p` make a sensitive page present. Here PRESENT in the restricted map is never copied: it is set if and
only if the page is nonsensitive and present in the unrestricted map.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.mm.context import SpinLock
from asikit.machine.mm.errors import NotDirectMappedError, OutOfMemoryError, SplitError
from asikit.machine.mm.layout import PAGE_SHIFT
from asikit.machine.mm.pgtable import NX, PRESENT, PSE, RW, PageTables, WalkEnd, entry_flags, level_bytes, make_entry

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.mm.context import Context, TlbFlusher


class ChangePageAttr:
    """Changes of attributes of a direct map, in up to two address spaces.

    :param tables: Edits the tables; its `allocate` is asked for a page at a split.
    :param pgd: Root of the unrestricted address space.
    :param nonsensitive_pgd: Root of the restricted one, None with ASI off.
    :param frames: The direct map has this many page frames.
    :param mapped: Whether a page frame is to be in the restricted address space (if it is in the other at all).
    """

    def __init__(
        self,
        tables: PageTables,
        pgd: int,
        nonsensitive_pgd: int | None,
        frames: int,
        mapped: Callable[[int], bool],
        *,
        context: Context,
        flusher: TlbFlusher,
    ) -> None:
        self.tables = tables
        self.pgd = pgd
        self.nonsensitive_pgd = nonsensitive_pgd
        self.frames = frames
        self.mapped = mapped
        self.context = context
        self.flusher = flusher
        self.lock = SpinLock(context)
        """`cpa_lock`: held while entries are written, never while memory is allocated or TLBs are flushed."""
        self._base = tables.layout.direct_map.start

    def change(self, vaddr: int, nr_pages: int, *, set_flags: int = 0, clear_flags: int = 0) -> None:
        """Change the flags of `nr_pages` pages from a direct-map address on: `change_page_attr_set_clr()`.

        Raises NotDirectMappedError (-EFAULT) or SplitError (-ENOMEM), and has changed nothing then. TLBs are flushed
        everywhere when it returns, unless nothing changed.
        """
        end = vaddr + (nr_pages << PAGE_SHIFT)
        if not self._base <= vaddr < end <= self._base + (self.frames << PAGE_SHIFT) or vaddr & (1 << PAGE_SHIFT) - 1:
            raise NotDirectMappedError(vaddr, f"{nr_pages} pages from here are not all in the direct map")
        self._split_at_ends(self.pgd, vaddr, end, set_flags, clear_flags)
        if self.nonsensitive_pgd is not None:
            with self.context.uncounted():
                self._split_at_ends(self.nonsensitive_pgd, vaddr, end)
        with self.lock:
            changed = self._write(vaddr, end, set_flags, clear_flags)
            if changed and self.nonsensitive_pgd is not None:
                with self.context.uncounted():
                    self.mirror(vaddr, end)
        if changed:
            self.flusher.flush_tlb_kernel_range(vaddr, end)

    def split_around(self, root: int, vaddr: int, end: int) -> None:
        """Split the large pages of one address space that reach over an end of the range; SplitError if that fails."""
        self._split_at_ends(root, vaddr, end)

    def mirror(self, vaddr: int, end: int) -> None:
        """Write the restricted entries of a range as the unrestricted ones and the pages' sensitivity say.

        `mirror_asi_direct_map()`, without its bug. Nothing is allocated and no TLB flushed.
        """
        root = self.nonsensitive_pgd
        if root is None:
            return
        tables = self.tables
        for entry in tables.range(root, vaddr, end):
            mapped = self.mapped((entry.vaddr - self._base) >> PAGE_SHIFT)
            value = self.restricted_value(entry, tables.lookup(self.pgd, entry.vaddr), mapped=mapped)
            if value != entry.value:
                tables.access.store_u64(entry.address, value)

    def restricted_value(self, entry: WalkEnd, unrestricted: WalkEnd, *, mapped: bool) -> int:
        """Return what a restricted entry is to be: as the unrestricted one, but absent unless `mapped`."""
        pfn = (entry.vaddr - self._base) >> PAGE_SHIFT
        flags = entry_flags(unrestricted.value) & ~PSE
        if entry.level > 1:
            flags |= PSE
        if not mapped:
            flags &= ~PRESENT
        return make_entry(pfn, flags)

    def _write(self, vaddr: int, end: int, set_flags: int, clear_flags: int) -> bool:
        changed = False
        for entry in self.tables.range(self.pgd, vaddr, end):
            old = entry_flags(entry.value)
            new = old & ~clear_flags | set_flags
            if new != old:
                self.tables.access.store_u64(entry.address, make_entry(entry.pfn, new))
                changed = True
        return changed

    def _split_at_ends(self, root: int, vaddr: int, end: int, set_flags: int = 0, clear_flags: int = -1) -> None:
        """Split what reaches over an end of the range; with flags given, only what they would change."""
        for edge in {vaddr, end - 1}:
            entry = self.tables.lookup(root, edge)
            while entry.level > 1 and entry.value & PSE:
                flags = entry_flags(entry.value)
                inside = vaddr <= entry.vaddr and entry.vaddr + level_bytes(entry.level) <= end
                if inside or flags & ~clear_flags | set_flags == flags:
                    break
                self._split(entry)
                entry = self.tables.lookup(root, edge)

    def _split(self, entry: WalkEnd) -> None:
        """Split one large page, unless another CPU does so while this one gets the memory."""
        tables = self.tables
        try:
            table = tables.allocate()
        except OutOfMemoryError as error:
            raise SplitError(f"address {entry.vaddr:#x}: no page to split a large mapping with") from error
        with self.lock:
            unchanged = tables.access.load_u64(entry.address) == entry.value
            if unchanged:
                tables.split(entry, table)
        if unchanged:
            self.flusher.flush_tlb_all()
        elif tables.free is not None:
            tables.free(table)


class SetMemory:
    """The `set_memory_*` calls on direct-map addresses; each takes the first page's address and a number of pages."""

    cpa: ChangePageAttr

    def set_memory_ro(self, vaddr: int, nr_pages: int = 1) -> None:
        """Make pages read-only. All of these raise what `ChangePageAttr.change` does."""
        self.cpa.change(vaddr, nr_pages, clear_flags=RW)

    def set_memory_rw(self, vaddr: int, nr_pages: int = 1) -> None:
        """Make pages writable."""
        self.cpa.change(vaddr, nr_pages, set_flags=RW)

    def set_memory_x(self, vaddr: int, nr_pages: int = 1) -> None:
        """Make pages executable."""
        self.cpa.change(vaddr, nr_pages, clear_flags=NX)

    def set_memory_nx(self, vaddr: int, nr_pages: int = 1) -> None:
        """Make pages not executable."""
        self.cpa.change(vaddr, nr_pages, set_flags=NX)

    def set_memory_np(self, vaddr: int, nr_pages: int = 1) -> None:
        """Make pages not present."""
        self.cpa.change(vaddr, nr_pages, clear_flags=PRESENT)

    def set_memory_p(self, vaddr: int, nr_pages: int = 1) -> None:
        """Make pages present again, in the restricted address space those that are nonsensitive."""
        self.cpa.change(vaddr, nr_pages, set_flags=PRESENT)
