"""Reaching one sensitive page without leaving the restricted address space: a mapping for one CPU and one access.

The branch of "[Discuss] First steps for ASI (ASI is fast again)" (12 Aug 2025), `ephmap_get()` and `ephmap_put()`;
later work calls it mermap. Each CPU has a few slots of virtual addresses in the fixmap, whose tables all address spaces
share and which exist from boot on, so that mapping a page is one store and no allocation: as kmap_local_page() does
(mm/highmem.c) on machines without a direct map of everything.

Limit: the entry is in tables that all CPUs use. Another CPU that runs in a restricted address space meanwhile could
reach the page through this CPU's slot, and keep that in its TLB after the mapping is gone; only this CPU's TLB is
flushed. No CPU's code does so on purpose, but one that misspeculates might.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from asikit.machine.mm.errors import MmError
from asikit.machine.mm.layout import PAGE_SIZE, AddressRange
from asikit.machine.mm.pgtable import PAGE_KERNEL, PAGE_KERNEL_RO, make_entry
from asikit.machine.mm.text import Symbol
from asikit.machine.mm.vmalloc import KernelTables

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from asikit.machine.mm.services import MmServices
    from asikit.trace import PageKind

__all__ = ["SLOTS", "Ephmap", "EphmapError"]

SLOTS: Final = 16
"""Pages that one CPU can have mapped at a time, KM_MAX_IDX."""

_GET, _PUT = Symbol("ephmap_get"), Symbol("ephmap_put")


class EphmapError(MmError):
    """More pages at once than a CPU has slots: ephemeral mappings must nest, and not deeply."""


class Ephmap:
    """The slots of all CPUs.

    The caller stays on its CPU while a page is mapped: preemption is off.

    :param cpus: How many CPUs there are.
    :param read_kinds: Kinds of page that are read this way.
    :param write_kinds: Kinds of page that are written this way.
    :param flush_one: Removes an address from the running CPU's TLB, in every PCID: an NMI may have left the restricted
        address space half-way, so the entry may be tagged with another one's (`flush_tlb_one_kernel()`).
    """

    def __init__(
        self,
        services: MmServices,
        cpus: int,
        *,
        read_kinds: Collection[PageKind] = (),
        write_kinds: Collection[PageKind] = (),
        flush_one: Callable[[int], None],
    ) -> None:
        """Make the tables of all slots; OutOfMemoryError."""
        self._services = services
        self._access = services.access
        self._read_kinds = frozenset(read_kinds)
        self._write_kinds = frozenset(write_kinds)
        self._flush_one = flush_one
        self._depth = [0] * cpus
        base = services.layout.fixmap.start
        window = AddressRange(base, cpus * SLOTS * PAGE_SIZE)
        self.tables = KernelTables(services, window)
        root = services.init_pgd
        addresses = range(window.start, window.end, PAGE_SIZE)
        self._slots = [(vaddr, self.tables.ensure(root, vaddr).address) for vaddr in addresses]

    def serves_read(self, pfn: int) -> bool:
        """Whether a page is to be read through here: it is sensitive, and of a kind that is."""
        return self._serves(pfn, self._read_kinds)

    def serves_write(self, pfn: int) -> bool:
        """Whether a page is to be written through here."""
        return self._serves(pfn, self._write_kinds)

    @contextmanager
    def mapped(self, pfn: int, *, writable: bool = False) -> Iterator[int]:
        """Map a page for the block's accesses on this CPU; gives the address. EphmapError if no slot is free."""
        cpu = self._services.context.cpu_number
        depth = self._depth[cpu]
        if depth == SLOTS:
            raise EphmapError(f"cpu {cpu} has {SLOTS} ephemeral mappings already; put one first")
        vaddr, pte = self._slots[cpu * SLOTS + depth]
        self._depth[cpu] = depth + 1
        try:
            self._set_pte(_GET, pte, make_entry(pfn, PAGE_KERNEL if writable else PAGE_KERNEL_RO))
            try:
                yield vaddr
            finally:
                self._set_pte(_PUT, pte, 0)
                self._flush_one(vaddr)
        finally:
            self._depth[cpu] = depth

    def address(self, cpu: int, slot: int = 0) -> int:
        """Return the virtual address of a CPU's slot."""
        return self._slots[cpu * SLOTS + slot][0]

    def _set_pte(self, symbol: Symbol, pte: int, value: int) -> None:
        with self._services.context.uncounted():
            self._access.enter(symbol)
            try:
                self._access.store_u64(pte, value)
            finally:
                self._access.leave()

    def _serves(self, pfn: int, kinds: frozenset[PageKind]) -> bool:
        allocator = self._services.allocator
        return allocator.asi and allocator.page(pfn).kind in kinds and allocator.pageblocks.sensitive(pfn)
