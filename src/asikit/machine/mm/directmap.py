"""The direct map of all memory, in the unrestricted and in the restricted address space.

The restricted one, `asi_nonsensitive_pgd`, maps the nonsensitive memory at the same addresses. Its tables are complete
down to the entries that map a pageblock, so that a change of sensitivity writes entries and never allocates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.mm.context import BootContext, BootFlusher, Context, TlbFlusher
from asikit.machine.mm.cpa import ChangePageAttr, SetMemory
from asikit.machine.mm.errors import AtomicFlipError, FlipAllocatesError, FlipRangeError, NotDirectMappedError
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE
from asikit.machine.mm.pageblock import PAGEBLOCK_ORDER, Pageblocks
from asikit.machine.mm.pgtable import (
    PAGE_KERNEL,
    PRESENT,
    PSE,
    PTE_PFN_MASK,
    PageTables,
    level_bytes,
    level_frames,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.layout import Layout

_PMD_LEVEL = 2
_PUD_LEVEL = 3


class DirectMap(SetMemory):
    """Both direct maps of `frames` page frames.

    :param access: How the tables are edited. May be replaced after boot, as `context` and `flusher` (`attach`).
    :param allocate: Returns a zeroed page frame for a table: from a boot-time allocator, later (`attach`) from the
        page allocator.
    :param peek: Reads a number of physical memory, for checks. Not kernel code's access: looking changes nothing.
    :param asi: False: there is only the unrestricted one.
    :param gigabyte_pages: Map with 1 GiB pages where memory allows, in the unrestricted one.
    :param pageblock_order: Below 9, the restricted map consists of 4 KiB pages.
    """

    def __init__(
        self,
        access: KernelMemory,
        layout: Layout,
        frames: int,
        allocate: Callable[[], int],
        peek: Callable[[int], int],
        *,
        asi: bool = True,
        gigabyte_pages: bool = False,
        pageblock_order: int = PAGEBLOCK_ORDER,
        context: Context | None = None,
        flusher: TlbFlusher | None = None,
    ) -> None:
        if not 1 <= pageblock_order <= PAGEBLOCK_ORDER:
            raise ValueError(
                f"a pageblock fits a PMD entry: its order is 1 to {PAGEBLOCK_ORDER}, not {pageblock_order}"
            )
        self.layout = layout
        self.frames = frames
        self.tables = PageTables(access, layout, allocate)
        self.pageblocks = Pageblocks(frames, pageblock_order, asi=asi)
        self.pgd = self.tables.new_root()
        """The unrestricted root's page frame: `init_mm.pgd`."""
        self.nonsensitive_pgd = self.tables.new_root() if asi else None
        """The restricted root's page frame: `asi_nonsensitive_pgd`. None with ASI off."""
        self.removed: set[int] = set()
        """Page frames that `remove_restricted` took out, absent from the restricted map whatever they hold."""
        self._peek = peek
        self._gigabyte_pages = gigabyte_pages
        self.cpa = ChangePageAttr(
            self.tables,
            self.pgd,
            self.nonsensitive_pgd,
            frames,
            self._restricted_mapped,
            context=context or BootContext(),
            flusher=flusher or BootFlusher(),
        )

    def build(self) -> None:
        """Map all memory: `init_mem_mapping()`. All of it is sensitive, so the restricted entries are not present."""
        self._build(self.pgd, _PUD_LEVEL if self._gigabyte_pages else _PMD_LEVEL, PAGE_KERNEL)
        if self.nonsensitive_pgd is not None:
            level = _PMD_LEVEL if self.pageblocks.order == PAGEBLOCK_ORDER else 1
            self._build(self.nonsensitive_pgd, level, PAGE_KERNEL & ~PRESENT)

    def _build(self, root: int, max_level: int, flags: int) -> None:
        pfn = 0
        while pfn < self.frames:
            level = max_level
            while pfn & level_frames(level) - 1 or pfn + level_frames(level) > self.frames:
                level -= 1
            self.tables.map_page(root, self.layout.virt(pfn << PAGE_SHIFT), pfn, flags, level)
            pfn += level_frames(level)

    def attach(
        self,
        *,
        access: KernelMemory | None = None,
        context: Context | None = None,
        flusher: TlbFlusher | None = None,
        allocate: Callable[[], int] | None = None,
        free: Callable[[int], None] | None = None,
    ) -> None:
        """Replace what early boot had by what the running kernel has; None leaves something as it is."""
        self.tables.access = access or self.tables.access
        self.tables.allocate = allocate or self.tables.allocate
        self.tables.free = free or self.tables.free
        self.cpa.context = context or self.cpa.context
        self.cpa.lock.context = self.cpa.context
        self.cpa.flusher = flusher or self.cpa.flusher

    def check_may_flip(self) -> None:
        """Raise AtomicFlipError if a shootdown could not be waited for here (I7)."""
        context = self.cpa.context
        if not context.irqs_enabled:
            raise AtomicFlipError(f"cpu {context.cpu_number}: change of sensitivity with interrupts off")
        if not context.may_block:
            raise AtomicFlipError(f"cpu {context.cpu_number}: change of sensitivity where blocking is forbidden")

    def set_direct_map_sensitive(self, pfn: int, nr_pages: int, *, sensitive: bool) -> None:
        """Take whole pageblocks out of the restricted direct map, or put them in; the caller sets their bits after.

        On the way out every TLB is flushed when this returns. On the way in the caller has zeroed the pages before.
        Nothing is allocated. Raises AtomicFlipError and FlipRangeError before anything changes.
        """
        self.check_may_flip()
        frames = 1 << self.pageblocks.order
        if nr_pages <= 0 or pfn & frames - 1 or nr_pages & frames - 1 or pfn + nr_pages > self.frames:
            raise FlipRangeError(f"frames {pfn:#x} and {nr_pages} on: sensitivity changes by whole pageblocks")
        start = self.layout.virt(pfn << PAGE_SHIFT)
        end = start + (nr_pages << PAGE_SHIFT)
        with self.cpa.lock:
            self._write_restricted(start, end, sensitive=sensitive)
        if sensitive:
            self._shoot_down(start, end)

    def _write_restricted(self, start: int, end: int, *, sensitive: bool) -> None:
        root = self.nonsensitive_pgd
        if root is None:
            raise FlipRangeError("no restricted address space: ASI is off")
        tables, base = self.tables, self.layout.direct_map.start
        for entry in tables.range(root, start, end):
            if entry.vaddr < start or entry.vaddr + level_bytes(entry.level) > end:
                raise FlipAllocatesError(f"address {entry.vaddr:#x}: a restricted mapping larger than a pageblock")
            mapped = not sensitive and (not self.removed or (entry.vaddr - base) >> PAGE_SHIFT not in self.removed)
            value = self.cpa.restricted_value(entry, tables.lookup(self.pgd, entry.vaddr), mapped=mapped)
            if value != entry.value:
                tables.access.store_u64(entry.address, value)

    def _shoot_down(self, start: int, end: int) -> None:
        """Flush addresses that left the restricted address space from every TLB, and wait for it."""
        self.cpa.flusher.flush_tlb_kernel_range(start, end)

    def remove_restricted(self, pfn: int) -> None:
        """Take one page out of the restricted direct map and keep it out, whatever its sensitivity.

        Costs exits and changes no result (I10). May allocate, so it is no change of sensitivity.
        """
        if not 0 <= pfn < self.frames:
            raise NotDirectMappedError(pfn << PAGE_SHIFT)
        self.removed.add(pfn)
        if self.nonsensitive_pgd is None:
            return
        start = self.layout.virt(pfn << PAGE_SHIFT)
        with self.cpa.context.uncounted():
            self.cpa.split_around(self.nonsensitive_pgd, start, start + PAGE_SIZE)
            with self.cpa.lock:
                self.cpa.mirror(start, start + PAGE_SIZE)
            self.cpa.flusher.flush_tlb_kernel_range(start, start + PAGE_SIZE)

    def restore(self, pfn: int, nr_pages: int) -> None:
        """Make restricted entries what the pageblock bits say: undoes a change of sensitivity that failed half-way."""
        start = self.layout.virt(pfn << PAGE_SHIFT)
        end = start + (nr_pages << PAGE_SHIFT)
        with self.cpa.lock:
            self.cpa.mirror(start, end)
        self._shoot_down(start, end)

    def direct_map_sensitive(self, pfn: int) -> bool:
        """Whether a page frame is absent from the restricted direct map, by a walk of its tables."""
        if self.nonsensitive_pgd is None:
            return False
        return not self.walk_present(self.nonsensitive_pgd, pfn)

    def walk_present(self, root: int, pfn: int) -> bool:
        """Whether an address space maps a page frame's direct-map address. A model's look, no kernel access."""
        return self.walk(root, pfn)[0]

    def walk(self, root: int, pfn: int) -> tuple[bool, int]:
        """Return whether a frame's direct-map address is mapped, and for how many frames from here on that holds.

        The walk reads physical memory directly: it is the model's look, and neither faults nor fills a TLB.
        """
        vaddr = self.layout.virt(pfn << PAGE_SHIFT)
        table = root << PAGE_SHIFT
        for level in range(self.layout.levels, 0, -1):
            value = self._peek(table + (vaddr >> (PAGE_SHIFT + 9 * (level - 1)) & 511) * 8)
            if level == 1 or value & PSE or not value & PRESENT:
                return bool(value & PRESENT), level_frames(level) - (pfn & level_frames(level) - 1)
            table = value & PTE_PFN_MASK
        raise AssertionError  # pragma: no cover - the loop ends at level 1

    def _restricted_mapped(self, pfn: int) -> bool:
        return pfn not in self.removed and not self.pageblocks.sensitive(pfn)
