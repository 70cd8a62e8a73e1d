"""What the page allocator tells the rest of the kernel: counts, observers' events, checks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors

if TYPE_CHECKING:
    from asikit.machine.mm import Gfp

__all__ = ["AllocationWatch"]


class _Kernel(doors.Processors, doors.Watched, doors.Described, Protocol):
    """What is needed of the kernel here."""


class AllocationWatch:
    """The kernel's AllocatorObserver."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel

    def on_alloc(self, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
        """Frames were handed out."""
        kernel = self._kernel
        kernel.tally.allocations["pages"] += 1 << order
        if kernel.invariants is not None:
            kernel.invariants.after_alloc(pfn, order)
        if kernel.observers:
            # What is touched in them from now on is a first touch.
            base = kernel.layout.direct_map.start >> 12
            for cpu in kernel.cpus:
                for page in range(base + pfn, base + pfn + (1 << order)):
                    cpu.touched -= {page << 2, page << 2 | 1, page << 2 | 2}
            for observer in kernel.observers:
                observer.page_alloc(kernel.cpu.number, pfn, order, gfp, migratetype)

    def on_free(self, pfn: int, order: int) -> None:
        """Frames came back."""
        kernel = self._kernel
        kernel.tally.allocations["frees"] += 1 << order
        if kernel.invariants is not None:
            kernel.invariants.after_free(pfn, order)
        for observer in kernel.observers:
            observer.page_free(kernel.cpu.number, pfn, order)

    def on_flip(self, pageblock: int, sensitive: bool) -> None:  # noqa: FBT001 - the interface of asikit.machine.mm
        """A pageblock changed sensitivity."""
        kernel = self._kernel
        kernel.tally.allocations["flips"] += 1
        if kernel.invariants is not None:
            kernel.invariants.after_flip(pageblock, sensitive=sensitive)
