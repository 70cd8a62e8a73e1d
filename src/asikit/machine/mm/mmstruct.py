"""A process's address space: `struct mm_struct` and what system calls do to it (mm/mmap.c, mm/mprotect.c).

Page faults are in fault.py, fork in fork.py. Every method takes `mmap_lock` itself unless it says otherwise. The
kernel's readers share that lock; here page faults of one address space happen one at a time.
"""

from __future__ import annotations

from enum import IntFlag
from typing import TYPE_CHECKING, ClassVar, Final

from asikit.machine.mm.errors import MmError, OutOfMemoryError
from asikit.machine.mm.fault import SegvError, VmFault
from asikit.machine.mm.gather import MmuGather
from asikit.machine.mm.gfp import GFP_PGTABLE_USER
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE
from asikit.machine.mm.pgtable import PRESENT, RW, PageTables
from asikit.machine.mm.text import kernel_function
from asikit.machine.mm.userpte import change_protection
from asikit.machine.mm.vma import STACK_GUARD_GAP, Vma, VmaList, VmFlags, page_align
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.inode import Inode
    from asikit.machine.mm.pagecache import PageCache
    from asikit.machine.mm.services import MmServices

    PgdObserver = Callable[[int, int], None]

__all__ = ["MapFlags", "MmStruct", "MmapError", "Prot"]

MMAP_MIN_ADDR: Final = 0x10000
"""Nothing is mapped below, `vm.mmap_min_addr`."""

DEFAULT_MAP_WINDOW: Final = (1 << 47) - PAGE_SIZE
"""Addresses that are given out without a hint, also with 5 levels (arch/x86/include/asm/page_64_types.h)."""

MMAP_GAP: Final = 128 << 20
"""Bytes kept for the stack above `mmap_base`, the least that `mmap_base()` keeps (arch/x86/mm/mmap.c)."""

STACK_LIMIT: Final = 8 << 20
"""Bytes to which a stack grows, RLIMIT_STACK's default."""


class Prot(IntFlag):
    """`PROT_*` of mmap(2)."""

    NONE = 0
    READ = 1
    WRITE = 2
    EXEC = 4


class MapFlags(IntFlag):
    """`MAP_*` of mmap(2)."""

    SHARED = 0x01
    PRIVATE = 0x02
    FIXED = 0x10
    ANONYMOUS = 0x20
    GROWSDOWN = 0x0100
    FIXED_NOREPLACE = 0x10_0000


class MmapError(MmError):
    """A request that its arguments make impossible; nothing was changed but what the method says.

    :ivar errno_name: What the system call returns, for example "EINVAL".
    :ivar address: The address asked for.
    """

    errno_name: ClassVar[str] = "EINVAL"

    def __init__(self, address: int, reason: str) -> None:
        super().__init__(f"address {address:#x}: {reason}")
        self.address = address


class MappingExistsError(MmapError):
    """MAP_FIXED_NOREPLACE where something is mapped."""

    errno_name = "EEXIST"


class NotMappedError(MmapError):
    """A range with a hole."""

    errno_name = "ENOMEM"


class MmStruct:
    """One address space. It is made with one user and one reference, the caller's.

    :ivar id: Its number, which TLB flushes name it by.
    :ivar pgd: Frame of the top-level table. Its upper half is init_mm's and never changes.
    :ivar vmas: Its areas.
    :ivar on_pgd_change: Called with index and new entry after each change of a user entry of the top-level table; after
        an entry was cleared (0), TLBs are flushed before the tables below it are freed.
    :ivar mm_users: Processes and others that use its memory; with the last the memory goes, `exit_mmap`.
    :ivar mm_count: References to the structure: all users together have one, a CPU in lazy TLB mode has one. With the
        last the top-level table goes.
    """

    def __init__(
        self,
        services: MmServices,
        page_cache: PageCache,
        number: int,
        *,
        on_pgd_change: Iterable[PgdObserver] = (),
        pgd_order: int = 0,
    ) -> None:
        """Make an empty address space: `mm_init()`.

        :param number: Its id.
        :param pgd_order: 1 if the top-level table is two frames, as page-table isolation has it.
        :raises OutOfMemoryError: Nothing was allocated.
        """
        self.services = services
        self.page_cache = page_cache
        self.access: KernelMemory = services.access
        self.id = number
        self.on_pgd_change: list[PgdObserver] = list(on_pgd_change)
        self.vmas = VmaList()
        self.mmap_lock = services.new_lock(f"mmap_lock of mm {number}")
        self.mmap_base = DEFAULT_MAP_WINDOW - MMAP_GAP
        self.start_brk = 0
        self.brk = 0
        self.mm_users = 1
        self.mm_count = 1
        self.pgd_order = pgd_order
        self._gather: MmuGather | None = None
        self.tables = PageTables(
            services.access, services.layout, self._pte_alloc_one, self._pte_free, self._pgd_changed
        )
        self.pgd = services.allocator.alloc_pages(GFP_PGTABLE_USER, pgd_order, kind=PageKind.PAGE_TABLE)
        services.allocator.page(self.pgd).owner = self
        self.tables.copy_pgd_entries(services.init_pgd, self.pgd)
        page_cache.users[self] = None

    # Life

    def get(self) -> None:
        """Count one more user, `mmget()`."""
        if self.mm_users <= 0:
            raise RuntimeError(f"mm {self.id} is used after its last user put it")
        self.mm_users += 1

    def put(self) -> None:
        """Count one user less; the last one's going frees all memory and page tables: `mmput()`."""
        self.mm_users -= 1
        if self.mm_users < 0:
            raise RuntimeError(f"mm {self.id} is put more often than it was got")
        if self.mm_users == 0:
            self.exit_mmap()
            self.drop()

    def grab(self) -> None:
        """Count one more reference to the structure, `mmgrab()`."""
        self.mm_count += 1

    def drop(self) -> None:
        """Count one reference less; with the last the top-level table is freed: `mmdrop()`."""
        self.mm_count -= 1
        if self.mm_count < 0:
            raise RuntimeError(f"mm {self.id} is dropped more often than it was grabbed")
        if self.mm_count == 0:
            self.services.allocator.free_pages(self.pgd, self.pgd_order)

    @kernel_function()
    def exit_mmap(self) -> None:
        """Unmap everything and free all page tables but the top-level one; `put` calls it."""
        with self.mmap_lock:
            self._unmap(0, self.services.layout.user_end)
            del self.page_cache.users[self]

    # System calls

    @kernel_function("do_mmap")
    def mmap(
        self,
        length: int,
        prot: Prot,
        flags: MapFlags,
        file: Inode | None = None,
        offset: int = 0,
        *,
        address: int = 0,
    ) -> int:
        """Map memory or a file and return the address; no page is allocated yet.

        :param length: Bytes, rounded up to pages.
        :param file: The file, unless ANONYMOUS; the mapping takes a reference of its own.
        :param offset: Bytes into the file, whole pages.
        :param address: Where, with FIXED and FIXED_NOREPLACE; otherwise a hint, 0 for none.
        :raises MmapError: An argument is wrong.
        :raises OutOfMemoryError: No gap is large enough.
        """
        self._check_mmap(length, flags, file, offset, address)
        length = page_align(length)
        with self.mmap_lock:
            address = self._get_unmapped_area(address, length, flags)
            area = self._new_area(address, length, prot, flags, file, offset)
            if flags & MapFlags.FIXED:
                self._unmap(address, address + length)
            self.vmas.insert(area)
        return address

    @kernel_function("__do_munmap")
    def munmap(self, address: int, length: int) -> None:
        """Unmap a range, which may have holes; pages are freed when no TLB can reach them any more.

        :raises MmapError: The range is not page-aligned, empty, or not all user addresses.
        """
        if address % PAGE_SIZE or not page_align(length) or not self._is_user(address, page_align(length)):
            raise MmapError(address, f"no range of {length:#x} bytes to unmap")
        with self.mmap_lock:
            self._unmap(address, address + page_align(length))

    @kernel_function("do_mprotect_pkey")
    def mprotect(self, address: int, length: int, prot: Prot) -> None:
        """Change what may be done with a range.

        :raises MmapError: The range is not page-aligned, or (NotMappedError) has a hole; what is before the hole is
            changed then, as in the kernel.
        """
        length = page_align(length)
        if address % PAGE_SIZE:
            raise MmapError(address, "not page-aligned")
        if length and not self._is_user(address, length):
            raise NotMappedError(address, f"no range of {length:#x} bytes to protect")
        end = address + length
        with self.mmap_lock:
            self.vmas.split(address)
            self.vmas.split(end)
            reached = address
            for area in self.vmas.intersecting(address, end):
                if area.start > reached:
                    break
                area.flags = area.flags & ~VmFlags.ACCESS | VmFlags(int(prot))
                reached = area.end
            if change_protection(self, address, reached):
                self.services.flusher.flush_tlb_mm_range(self.id, address, reached)
            self.vmas.merge(address, end)
        if reached < end:
            raise NotMappedError(reached, "nothing is mapped there")

    def init_brk(self, address: int) -> None:
        """Say where the heap begins, as exec does after it mapped a program."""
        self.start_brk = self.brk = address

    @kernel_function("__x64_sys_brk")
    def set_brk(self, brk: int) -> int:
        """Move the end of the heap and return it; it stays where it was if it cannot be moved, as brk(2) has it."""
        with self.mmap_lock:
            if brk < self.start_brk or not self.start_brk:
                return self.brk
            old_end, new_end = page_align(self.brk), page_align(brk)
            if new_end < old_end:
                self._unmap(new_end, old_end)
            elif new_end > old_end:
                below_next = self.vmas.find(old_end)
                if new_end > DEFAULT_MAP_WINDOW or (below_next is not None and new_end + PAGE_SIZE > _gap(below_next)):
                    return self.brk
                flags = VmFlags.READ | VmFlags.WRITE
                self.vmas.insert(Vma(old_end, new_end, flags, pgoff=old_end >> PAGE_SHIFT))
            self.brk = brk
            return brk

    # Faults and looking

    @kernel_function()
    def handle_mm_fault(self, vaddr: int, *, write: bool = False, fetch: bool = False) -> None:
        """Make an access to a user address possible; the caller then retries it.

        The kernel's do_user_addr_fault() looks for the area and calls handle_mm_fault() with it; this is both.

        :raises SegvError: The access is not allowed there: SIGSEGV.
        :raises SigbusError: There is no such page of the file: SIGBUS.
        :raises OutOfMemoryError: VM_FAULT_OOM; the access may be tried again.
        """
        with self.mmap_lock:
            area = self._area_at(vaddr)
            needed = VmFlags.WRITE if write else VmFlags.EXEC if fetch else VmFlags.ACCESS
            if not area.flags & needed:  # access_error(): what can be written or executed can be read
                raise SegvError(vaddr, "access not allowed")
            VmFault(self, area, vaddr, write=write).handle()

    def get_user_page(self, vaddr: int, *, write: bool = False) -> int:
        """Return the frame behind a user address with a reference for the caller, made present: `get_user_pages()`."""
        while True:
            with self.mmap_lock:
                found = self.translate(vaddr)
                if found is not None and (found[1] or not write):
                    if found[0] != self.services.zero_page:
                        self.services.allocator.get_page(found[0])
                    return found[0]
            self.handle_mm_fault(vaddr, write=write)

    def put_user_page(self, pfn: int) -> None:
        """Give back what `get_user_page` returned."""
        if pfn != self.services.zero_page:
            self.services.allocator.put_page(pfn)

    def translate(self, vaddr: int) -> tuple[int, bool] | None:
        """Return frame and writability of the page that a user address is mapped to now, None if it is not."""
        entry = self.tables.lookup(self.pgd, vaddr)
        return (entry.pfn, bool(entry.value & RW)) if entry.value & PRESENT else None

    # Inside

    def _check_mmap(self, length: int, flags: MapFlags, file: Inode | None, offset: int, address: int) -> None:
        if not length:
            raise MmapError(address, "nothing to map: length 0")
        if bool(flags & MapFlags.SHARED) == bool(flags & MapFlags.PRIVATE):
            raise MmapError(address, "neither or both of SHARED and PRIVATE")
        if bool(flags & MapFlags.ANONYMOUS) == (file is not None):
            raise MmapError(address, "neither or both of ANONYMOUS and a file")
        if offset % PAGE_SIZE:
            raise MmapError(address, f"offset {offset:#x} is not page-aligned")
        if page_align(length) > DEFAULT_MAP_WINDOW:
            raise OutOfMemoryError(f"no address space for {length:#x} bytes")

    def _new_area(  # noqa: PLR0917 - the parameters of mmap(2)
        self, address: int, length: int, prot: Prot, flags: MapFlags, file: Inode | None, offset: int
    ) -> Vma:
        vm_flags = VmFlags(int(prot)) & VmFlags.ACCESS
        if flags & MapFlags.GROWSDOWN:
            vm_flags |= VmFlags.GROWSDOWN
        if flags & MapFlags.SHARED:
            vm_flags |= VmFlags.SHARED
            if file is None:  # its only reference is the area's
                return Vma(address, address + length, vm_flags, self.page_cache.shmem_zero_setup(length))
        if file is None:
            return Vma(address, address + length, vm_flags, pgoff=address >> PAGE_SHIFT)
        file.get()
        return Vma(address, address + length, vm_flags, file, offset >> PAGE_SHIFT)

    def _get_unmapped_area(self, address: int, length: int, flags: MapFlags) -> int:
        """Choose where to map: `arch_get_unmapped_area_topdown()`."""
        if flags & (MapFlags.FIXED | MapFlags.FIXED_NOREPLACE):
            if address % PAGE_SIZE or address < MMAP_MIN_ADDR:
                raise MmapError(address, "not page-aligned, or too low")
            if not self._is_user(address, length):
                raise OutOfMemoryError(f"{length:#x} bytes at {address:#x} are not all user addresses")
            if flags & MapFlags.FIXED_NOREPLACE and self.vmas.intersecting(address, address + length):
                raise MappingExistsError(address, "something is mapped there")
            return address
        hint = page_align(address)
        if hint >= MMAP_MIN_ADDR and self._is_user(hint, length):
            after = self.vmas.find(hint)
            if after is None or hint + length <= _gap(after):
                return hint
        found = self.vmas.unmapped_area_topdown(length, MMAP_MIN_ADDR, self.mmap_base)
        if found is None:  # above the base, where stacks are
            found = self.vmas.unmapped_area(length, page_align(DEFAULT_MAP_WINDOW // 3), DEFAULT_MAP_WINDOW)
        if found is None:
            raise OutOfMemoryError(f"no gap of {length:#x} bytes")
        return found

    def _area_at(self, vaddr: int) -> Vma:
        """Return the area of a fault, growing a stack down to it: `find_vma()`, `expand_stack()`."""
        area = self.vmas.find(vaddr)
        if area is None or not 0 <= vaddr < self.services.layout.user_end:
            raise SegvError(vaddr, "nothing is mapped there")
        if area.start <= vaddr:
            return area
        start = vaddr & -PAGE_SIZE
        floor = self.vmas.neighbours(area.start, area.end)[0]
        if not area.flags & VmFlags.GROWSDOWN or area.end - start > STACK_LIMIT:
            raise SegvError(vaddr, "nothing is mapped there")
        if start < max(MMAP_MIN_ADDR, floor + STACK_GUARD_GAP if floor else 0):
            raise SegvError(vaddr, "the stack would come too near to what is mapped below it")
        self.vmas.expand_downwards(area, start)
        return area

    def unmap_mapping_range(self, file: Inode, first: int) -> None:
        """Unmap a file's pages from number `first` on, private copies among them (mm/memory.c)."""
        with self.mmap_lock, MmuGather(self) as gather:
            for area in self.vmas:
                if area.file is file:
                    start = max(area.start, area.start + ((first - area.pgoff) << PAGE_SHIFT))
                    gather.zap_range(start, area.end)

    def _unmap(self, start: int, end: int) -> None:
        """Take out areas, their pages and page tables: `unmap_region()`; the holder of mmap_lock calls it.

        Order: clear entries, flush TLBs, free pages and tables, put files.
        """
        gone = self.vmas.remove(start, end)
        if not gone:
            return
        with MmuGather(self) as gather:
            self._gather = gather
            try:
                for area in gone:
                    gather.zap_range(area.start, area.end)
                self.tables.free_empty(self.pgd, gone[0].start, gone[-1].end)
            finally:
                self._gather = None
        for area in gone:
            if area.file is not None:
                area.file.put()

    def _is_user(self, address: int, length: int) -> bool:
        return 0 <= address <= address + length <= self.services.layout.user_end

    def _pte_alloc_one(self) -> int:
        pfn = self.services.allocator.alloc_pages(GFP_PGTABLE_USER, kind=PageKind.PAGE_TABLE)
        self.services.allocator.page(pfn).owner = self
        return pfn

    def _pte_free(self, pfn: int) -> None:
        """Free a table: after the TLB flush, if it was in use."""
        if self._gather is not None:
            self._gather.remove_table(pfn)
        else:
            self.services.allocator.free_pages(pfn)

    def _pgd_changed(self, root: int, index: int, entry: int) -> None:
        if root == self.pgd:
            for observer in self.on_pgd_change:
                observer(index, entry)


def _gap(area: Vma) -> int:
    """Return the address below which other areas end."""
    return area.start - (STACK_GUARD_GAP if area.flags & VmFlags.GROWSDOWN else 0)
