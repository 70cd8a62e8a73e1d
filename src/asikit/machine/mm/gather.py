"""Taking pages out of use in the only safe order: entries, then TLBs, then the pages (mm/mmu_gather.c, mm/memory.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from asikit.machine.mm.layout import PAGE_SIZE

if TYPE_CHECKING:
    from types import TracebackType

    from asikit.machine.mm.mmstruct import MmStruct

__all__ = ["MmuGather"]


class MmuGather:
    """`struct mmu_gather`: collects what is no longer mapped, and frees it at its end, after a flush of all TLBs."""

    def __init__(self, mm: MmStruct) -> None:
        self._mm = mm
        self._pages: list[int] = []
        self._page_tables: list[int] = []
        self._start: int | None = None
        self._end = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Flush and free: `tlb_finish_mmu()`."""
        services = self._mm.services
        if self._start is not None or self._page_tables:
            # Tables that went may be cached for any address below them (SDM volume 3, 4.10.3): flush everything.
            whole = bool(self._page_tables) or self._start is None
            start, end = (0, services.layout.user_end) if whole else (self._start or 0, self._end)
            services.flusher.flush_tlb_mm_range(self._mm.id, start, end)
        for pfn in self._pages:
            services.allocator.put_page(pfn)
        for pfn in self._page_tables:
            services.allocator.free_pages(pfn)

    def zap_range(self, start: int, end: int) -> None:
        """Clear the entries of a range: `zap_pte_range()`; the pages lose a mapping now and a reference at the end."""
        tables, access = self._mm.tables, self._mm.access
        zero_page = self._mm.services.zero_page
        for entry in tables.range(self._mm.pgd, start, end):
            access.store_u64(entry.address, 0)
            if self._start is None:
                self._start = entry.vaddr
            self._end = entry.vaddr + PAGE_SIZE
            if entry.pfn != zero_page:
                self._mm.services.allocator.page(entry.pfn).mapcount -= 1
                self._pages.append(entry.pfn)

    def remove_table(self, pfn: int) -> None:
        """Free a page table at the end: `tlb_remove_table()`."""
        self._page_tables.append(pfn)
