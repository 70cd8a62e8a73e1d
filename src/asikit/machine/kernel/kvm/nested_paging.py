"""Nested page tables: from guest physical addresses to the host's memory (arch/x86/kvm/mmu/tdp_mmu.c, virt/kvm).

A guest's memory is a range of its VMM's user addresses. KVM maps a page when the guest touches it, by asking the host's
memory management which frame is there, and takes it away when that changes (`kvm_unmap_gfn_range`, an MMU notifier).
The tables have the format of ordinary ones (AMD manual volume 2, 15.25.5) and are the kernel's own memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asikit.machine.mm import GFP_KERNEL_ACCOUNT, PAGE_SIZE, Gfp, PageTables, kernel_function
from asikit.trace import PageKind

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.mm import KernelMemory, MmStruct

__all__ = ["Memslot", "NestedPageTables"]

_PRESENT: Final = 1
_RW: Final = 1 << 1
_USER: Final = 1 << 2


@dataclass(frozen=True, slots=True)
class Memslot:
    """`struct kvm_memory_slot`: guest memory from `base`, which is the VMM's memory from `user_address`; in bytes."""

    base: int
    size: int
    user_address: int

    def contains(self, gpa: int) -> bool:
        """Return whether a guest physical address lies in it."""
        return self.base <= gpa < self.base + self.size

    def hva(self, gpa: int) -> int:
        """Return the VMM's address of a guest physical address."""
        return gpa - self.base + self.user_address


class NestedPageTables:
    """The nested page tables of one virtual machine.

    :ivar root: Page frame of the top-level table, for the VMCB's nCR3.
    :ivar slots: Where guest memory is, by slot number.
    :ivar access: How its code reaches memory.
    """

    def __init__(self, kernel: Kernel, mm: MmStruct) -> None:
        self._kernel = kernel
        self._mm = mm
        self.access: KernelMemory = kernel.access
        self._tables = PageTables(kernel.access, kernel.layout, self._allocate, kernel.allocator.free_pages)
        self.slots: dict[int, Memslot] = {}
        self._mapped: set[int] = set()
        self._lock = kernel.mutex("mmu_lock of a virtual machine")
        self._invalidations = 0
        self._end = 0
        self.root = self._tables.new_root()

    def _allocate(self) -> int:
        return self._kernel.allocator.alloc_pages(GFP_KERNEL_ACCOUNT | Gfp.ZERO, kind=PageKind.PAGE_TABLE)

    def slot_of(self, gpa: int) -> Memslot | None:
        """Return the memory slot of an address, None where there is no memory."""
        return next((slot for slot in self.slots.values() if slot.contains(gpa)), None)

    @kernel_function("kvm_tdp_page_fault", module="kvm")
    def map(self, slot: Memslot, gpa: int, *, write: bool) -> None:
        """Map the page of an address, as writable as the VMM has it.

        Raises what the VMM's own access would: SegvError, SigbusError, OutOfMemoryError.
        """
        while True:
            seen = self._invalidations
            pfn, writable = self._faultin_pfn(slot.hva(gpa), write=write)
            try:
                with self._lock:
                    # Changed since it was looked up (mmu_invalidate_retry): look again.
                    if seen == self._invalidations:
                        self._set_spte(gpa & -PAGE_SIZE, pfn, writable=writable)
                        return
            finally:
                self._mm.put_user_page(pfn)

    @kernel_function("__kvm_faultin_pfn", module="kvm")
    def _faultin_pfn(self, hva: int, *, write: bool) -> tuple[int, bool]:
        pfn = self._mm.get_user_page(hva, write=write)
        found = self._mm.translate(hva)
        return pfn, found is not None and found[0] == pfn and found[1]

    @kernel_function("kvm_tdp_mmu_map", module="kvm")
    def _set_spte(self, gpa: int, pfn: int, *, writable: bool) -> None:
        self._mapped.add(gpa)
        self._tables.map_page(self.root, gpa, pfn, _PRESENT | _USER | (_RW if writable else 0))

    @kernel_function("kvm_mmu_notifier_invalidate_range_start", module="kvm")
    def invalidate(self, start: int, end: int) -> None:
        """Take away what is mapped of a range of the VMM's addresses: it has changed there."""
        self._invalidations += 1
        gone = [
            gpa
            for gpa in self._mapped
            for slot in self.slots.values()
            if slot.contains(gpa) and start <= slot.hva(gpa) < end
        ]
        if gone:
            with self._lock:
                for gpa in sorted(gone):
                    self._zap(gpa)

    def _zap(self, gpa: int) -> None:
        self._mapped.discard(gpa)
        self._tables.unmap_page(self.root, gpa)

    def set_slot(self, number: int, slot: Memslot | None) -> None:
        """Put memory into a slot, or take it away."""
        self._invalidations += 1
        old = self.slots.pop(number, None)
        with self._lock:
            for gpa in sorted(gpa for gpa in self._mapped if old is not None and old.contains(gpa)):
                self._zap(gpa)
        if slot is not None:
            self.slots[number] = slot
            self._end = max(self._end, slot.base + slot.size)

    @kernel_function("kvm_mmu_destroy", module="kvm")
    def destroy(self) -> None:
        """Free all tables."""
        for gpa in sorted(self._mapped):
            self._zap(gpa)
        self._tables.free_empty(self.root, 0, self._end)
        self._kernel.allocator.free_pages(self.root)
