"""What single faults and system calls do, and what they refuse."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.machine.mm.errors import OutOfMemoryError
from asikit.machine.mm.fault import SegvError, SigbusError
from asikit.machine.mm.fork import dup_mm
from asikit.machine.mm.inode import filesystem
from asikit.machine.mm.mmstruct import (
    DEFAULT_MAP_WINDOW,
    MapFlags,
    MappingExistsError,
    MmapError,
    MmStruct,
    NotMappedError,
    Prot,
)
from asikit.machine.mm.vma import STACK_GUARD_GAP
from asikit.trace import PageKind
from tests.machine.mm.user.rig import NOT_EXECUTABLE, PAGE, Rig, walk

if TYPE_CHECKING:
    from collections.abc import Callable

RW = Prot.READ | Prot.WRITE
ANONYMOUS = MapFlags.PRIVATE | MapFlags.ANONYMOUS


@pytest.fixture
def rig() -> Rig:
    """A machine with ASI."""
    return Rig(2048, asi=True)


@pytest.fixture
def mm(rig: Rig) -> MmStruct:
    """An empty address space."""
    return rig.new_mm()


def frame(mm: MmStruct, vaddr: int) -> int:
    """Return the frame behind an address."""
    found = mm.translate(vaddr)
    assert found is not None
    return found[0]


class TestAnonymous:
    """Memory without a file."""

    def test_zeroes_first(self, rig: Rig, mm: MmStruct) -> None:
        """Reading allocates nothing but page tables; writing then gives a page of its own, sensitive and zeroed."""
        address = mm.mmap(PAGE, RW, ANONYMOUS)
        assert rig.load(mm, address, PAGE) == bytes(PAGE)
        assert mm.translate(address) == (rig.services.zero_page, False)
        rig.store(mm, address + 9, b"x")
        page = rig.allocator.page(frame(mm, address))
        assert (page.kind, page.refcount, page.mapcount) == (PageKind.ANON, 1, 1)
        assert rig.allocator.pageblocks.sensitive(page.pfn)
        assert rig.load(mm, address, 11) == bytes(9) + b"x\0"
        assert rig.memory.read(rig.services.zero_page << 12, PAGE) == bytes(PAGE)

    def test_page_tables_are_nonsensitive(self, rig: Rig, mm: MmStruct) -> None:
        """Changing a mapping needs no exit."""
        rig.store(mm, mm.mmap(PAGE, RW, ANONYMOUS), b"x")
        tables = [rig.allocator.page(pfn) for pfn in range(2048)]
        tables = [page for page in tables if page.kind is PageKind.PAGE_TABLE]
        assert len(tables) == 4
        assert all(page.owner is mm and not rig.allocator.pageblocks.sensitive(page.pfn) for page in tables)

    def test_recycled_memory_is_clean(self, rig: Rig, mm: MmStruct) -> None:
        """Nobody sees what another process wrote."""
        address = mm.mmap(50 * PAGE, RW, ANONYMOUS)
        rig.store(mm, address, b"secret" * 30_000)
        mm.put()
        other = rig.new_mm()
        address = other.mmap(400 * PAGE, RW, ANONYMOUS)
        for page in range(400):
            rig.store(other, address + page * PAGE, b"x")
            assert rig.load(other, address + page * PAGE + 1, PAGE - 1) == bytes(PAGE - 1)

    def test_who_clears(self, rig: Rig, mm: MmStruct) -> None:
        """The exit of a write fault comes from `clear_page_erms`, as in a published trace of exits."""
        address = mm.mmap(PAGE, RW, ANONYMOUS)
        rig.access.recording = True
        rig.store(mm, address, b"x")
        base = rig.layout.virt(frame(mm, address) << 12)
        stacks = {stack for what, vaddr, stack in rig.access.touched if base <= vaddr < base + PAGE and what == "write"}
        assert len(stacks) == 1
        assert stacks.pop() == (
            "handle_mm_fault",
            "__handle_mm_fault",
            "do_anonymous_page",
            "__alloc_pages",
            "clear_page_erms",
        )

    def test_spurious(self, rig: Rig, mm: MmStruct) -> None:
        """A fault that another thread has served already changes nothing."""
        address = mm.mmap(PAGE, RW, ANONYMOUS)
        rig.store(mm, address, b"x")
        before = mm.translate(address), rig.allocator.counters.allocations
        mm.handle_mm_fault(address, write=True)
        mm.handle_mm_fault(address)
        assert (mm.translate(address), rig.allocator.counters.allocations) == before


class TestCopyOnWrite:
    """fork, then writes."""

    def test_copy_then_reuse(self, rig: Rig, mm: MmStruct) -> None:
        """The first writer copies; the other one, now the only owner, keeps the frame."""
        address = mm.mmap(PAGE, RW, ANONYMOUS)
        rig.store(mm, address, b"old")
        original = frame(mm, address)
        child = dup_mm(mm, rig.new_id())
        assert frame(child, address) == original
        page = rig.allocator.page(original)
        assert (page.refcount, page.mapcount) == (2, 2)
        rig.store(child, address, b"new")
        assert frame(child, address) != original
        assert (page.refcount, page.mapcount) == (1, 1)
        rig.store(mm, address + 3, b"er")
        assert frame(mm, address) == original
        assert (rig.load(mm, address, 5), rig.load(child, address, 5)) == (b"older", b"new\0\0")

    def test_more_references_force_a_copy(self, rig: Rig, mm: MmStruct) -> None:
        """A page that somebody else holds is not written to in place, even if only one process maps it."""
        address = mm.mmap(PAGE, RW, ANONYMOUS)
        rig.store(mm, address, b"old")
        held = mm.get_user_page(address, write=True)
        dup_mm(mm, rig.new_id()).put()
        rig.store(mm, address, b"new")
        assert frame(mm, address) != held
        assert rig.memory.read(held << 12, 3) == b"old"
        mm.put_user_page(held)

    def test_who_copies(self, rig: Rig, mm: MmStruct) -> None:
        """`copy_page` reads the old frame and writes the new one."""
        address = mm.mmap(PAGE, RW, ANONYMOUS)
        rig.store(mm, address, b"old")
        child = dup_mm(mm, rig.new_id())
        rig.access.recording = True
        rig.store(child, address, b"new")
        virt = rig.layout.virt
        wanted = {("read", virt(frame(mm, address) << 12)), ("write", virt(frame(child, address) << 12))}
        stacks = {stack for what, vaddr, stack in rig.access.touched if (what, vaddr) in wanted}
        assert stacks == {("handle_mm_fault", "__handle_mm_fault", "do_wp_page", "wp_page_copy", "copy_page")}

    def test_flush_precedes_the_copy(self, rig: Rig, mm: MmStruct) -> None:
        """A TLB that read the old frame does not go on reading it once the new one can be written."""
        address = mm.mmap(PAGE, RW, ANONYMOUS)
        rig.store(mm, address, b"old")
        child = dup_mm(mm, rig.new_id())
        assert rig.load(child, address, 3) == b"old"
        child.handle_mm_fault(address, write=True)  # another thread's: this TLB is not told by a fault of its own
        rig.memory.write(frame(child, address) << 12, b"new")
        assert rig.load(child, address, 3) == b"new"

    def test_exit_of_either(self, rig: Rig) -> None:
        """Whoever ends first, the other keeps its memory; then everything is free."""
        free = rig.free_frames()
        for parent_first in (True, False):
            mm = rig.new_mm()
            address = mm.mmap(20 * PAGE, RW, ANONYMOUS)
            rig.store(mm, address, b"kept" * 20_000)
            child = dup_mm(mm, rig.new_id())
            first, second = (mm, child) if parent_first else (child, mm)
            first.put()
            assert rig.load(second, address, 80_000) == b"kept" * 20_000
            second.put()
            assert rig.free_frames() == free


class TestFiles:
    """Mapped files."""

    @pytest.mark.parametrize("kind", ["tmpfs", "ext4"])
    def test_shared_and_private(self, rig: Rig, mm: MmStruct, kind: str) -> None:
        """A shared mapping is the file; a private one follows it until it is written."""
        inode = rig.cache.new_inode("f", filesystem(kind))
        rig.cache.populate(inode, b"file" * 2000)
        shared = mm.mmap(2 * PAGE, RW, MapFlags.SHARED, inode)
        private = mm.mmap(2 * PAGE, RW, MapFlags.PRIVATE, inode)
        assert rig.load(mm, shared, 4) == rig.load(mm, private, 4) == b"file"
        rig.store(mm, shared, b"SAME")
        assert rig.load(mm, private, 4) == rig.cache.content(inode)[:4] == b"SAME"
        rig.store(mm, private + 1, b"x")
        rig.store(mm, shared, b"file")
        assert (rig.load(mm, private, 4), rig.load(mm, shared, 4)) == (b"SxME", b"file")
        assert frame(mm, shared) == inode.pages[0]
        assert rig.allocator.page(frame(mm, private)).kind is PageKind.ANON
        assert inode.count == 3
        mm.put()
        assert inode.count == 1

    def test_first_write_is_noticed(self, rig: Rig, mm: MmStruct) -> None:
        """A file on a disk is mapped read-only until it is written, tmpfs is not (`vma_wants_writenotify`)."""
        for kind, writable in (("tmpfs", True), ("ext4", False)):
            inode = rig.cache.new_inode("f", filesystem(kind))
            rig.cache.populate(inode, b"x")
            address = mm.mmap(PAGE, RW, MapFlags.SHARED, inode)
            rig.load(mm, address, 1)
            assert mm.translate(address) == (inode.pages[0], writable)

    def test_beyond_the_end(self, rig: Rig, mm: MmStruct) -> None:
        """SIGBUS on whole pages beyond the end, zeroes in the last page; the same after a truncation."""
        inode = rig.cache.new_inode("f", filesystem("ext4"), b"f" * (PAGE + 1))
        for flags in (MapFlags.SHARED, MapFlags.PRIVATE):
            inode = rig.cache.new_inode("f", filesystem("ext4"), b"f" * (PAGE + 1))
            address = mm.mmap(3 * PAGE, RW, flags, inode)
            assert rig.load(mm, address + PAGE, 3) == b"f\0\0"
            rig.store(mm, address, b"mine")
            message = f"{address + 2 * PAGE:#x}: the file ends at 0x1001 bytes"
            with pytest.raises(SigbusError, match=message):
                rig.load(mm, address + 2 * PAGE, 1)
            with pytest.raises(SigbusError, match=message):
                rig.store(mm, address + 2 * PAGE, b"x")
            rig.cache.truncate(inode, 0)
            with pytest.raises(SigbusError):
                rig.load(mm, address, 1)

    def test_anonymous_shared(self, rig: Rig, mm: MmStruct) -> None:
        """Parent and child see each other's writes, also to pages that nobody had touched at the fork."""
        address = mm.mmap(2 * PAGE, RW, MapFlags.SHARED | MapFlags.ANONYMOUS)
        child = dup_mm(mm, rig.new_id())
        rig.store(child, address + PAGE - 2, b"both")
        assert rig.load(mm, address + PAGE - 2, 4) == b"both"
        assert rig.allocator.page(frame(mm, address)).kind is PageKind.SHMEM


class TestPlacement:
    """Where things are mapped."""

    def test_top_down(self, mm: MmStruct) -> None:
        """Each mapping lies below the last, and into a hole that is large enough."""
        first, second, third = (mm.mmap(4 * PAGE, Prot.READ, ANONYMOUS) for _ in range(3))
        assert first + 4 * PAGE == mm.mmap_base
        assert (second, third) == (first - 4 * PAGE, first - 8 * PAGE)
        assert len(mm.vmas) == 1
        mm.munmap(second, 4 * PAGE)
        assert mm.mmap(5 * PAGE, Prot.READ, ANONYMOUS) == third - 5 * PAGE
        assert mm.mmap(PAGE, Prot.READ, ANONYMOUS) == first - PAGE

    def test_hints(self, mm: MmStruct) -> None:
        """A hint is followed if nothing is there."""
        assert mm.mmap(PAGE, Prot.READ, ANONYMOUS, address=0x7777_0001) == 0x7777_1000
        assert mm.mmap(PAGE, Prot.READ, ANONYMOUS, address=0x7777_1000) == mm.mmap_base - PAGE

    def test_full(self, mm: MmStruct) -> None:
        """No gap is large enough."""
        mm.mmap(mm.mmap_base - PAGE * 16, Prot.READ, ANONYMOUS)
        with pytest.raises(OutOfMemoryError, match="no address space for"):
            mm.mmap(DEFAULT_MAP_WINDOW + 1, Prot.READ, ANONYMOUS)
        with pytest.raises(OutOfMemoryError, match="no gap of 0x400000000000 bytes"):
            mm.mmap(1 << 46, Prot.READ, ANONYMOUS)

    def test_stack(self, rig: Rig, mm: MmStruct) -> None:
        """A stack grows to where it is touched, but not to its limit and not near what lies below."""
        top = 1 << 40
        flags = ANONYMOUS | MapFlags.FIXED | MapFlags.GROWSDOWN
        mm.mmap(PAGE, RW, flags, address=top - PAGE)
        rig.store(mm, top - 100 * PAGE, b"deep")
        assert mm.vmas.lookup(top - 100 * PAGE) is not None
        mm.vmas.check()
        with pytest.raises(SegvError):
            rig.store(mm, top - (8 << 20) - 1, b"x")
        below = top - 200 * PAGE - STACK_GUARD_GAP
        mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=below - PAGE)
        rig.store(mm, top - 200 * PAGE, b"x")
        with pytest.raises(SegvError, match="too near"):
            rig.store(mm, top - 201 * PAGE, b"x")
        assert rig.load(mm, top - 100 * PAGE, 4) == b"deep"

    def test_brk(self, rig: Rig, mm: MmStruct) -> None:
        """The heap grows until something is in its way."""
        assert mm.set_brk(0x100_0000) == 0
        mm.init_brk(0x100_0000)
        assert mm.set_brk(0) == 0x100_0000
        assert mm.set_brk(0x100_0000 + 3 * PAGE + 1) == 0x100_0000 + 3 * PAGE + 1
        rig.store(mm, 0x100_0000 + 3 * PAGE, b"x")
        mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=0x100_0000 + 8 * PAGE)
        assert mm.set_brk(0x100_0000 + 8 * PAGE) == 0x100_0000 + 3 * PAGE + 1
        assert mm.set_brk(0x100_0000 + 7 * PAGE) == 0x100_0000 + 7 * PAGE
        assert mm.set_brk(0x100_0000) == 0x100_0000
        with pytest.raises(SegvError):
            rig.load(mm, 0x100_0000, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda mm: mm.mmap(0, RW, ANONYMOUS), MmapError, "nothing to map"),
        (lambda mm: mm.mmap(PAGE, RW, MapFlags.ANONYMOUS), MmapError, "neither or both of SHARED and PRIVATE"),
        (lambda mm: mm.mmap(PAGE, RW, MapFlags.PRIVATE), MmapError, "neither or both of ANONYMOUS and a file"),
        (lambda mm: mm.mmap(PAGE, RW, ANONYMOUS, offset=1), MmapError, "offset 0x1 is not page-aligned"),
        (
            lambda mm: mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=5),
            MmapError,
            "not page-aligned, or too low",
        ),
        (lambda mm: mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=1 << 47), OutOfMemoryError, "not all user"),
        (
            lambda mm: mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED_NOREPLACE, address=0x10_0000),
            MappingExistsError,
            "something is mapped there",
        ),
        (lambda mm: mm.munmap(5, PAGE), MmapError, "no range of 0x1000 bytes to unmap"),
        (lambda mm: mm.munmap(PAGE, 0), MmapError, "no range"),
        (lambda mm: mm.munmap(1 << 46, 1 << 46), MmapError, "no range"),
        (lambda mm: mm.mprotect(5, PAGE, RW), MmapError, "not page-aligned"),
        (lambda mm: mm.mprotect(0x10_0000, 2 * PAGE, RW), NotMappedError, "0x101000: nothing is mapped there"),
        (lambda mm: mm.mprotect(1 << 47, PAGE, RW), NotMappedError, "no range"),
        (lambda mm: mm.handle_mm_fault(0x10_0000, write=True), SegvError, "access not allowed"),
        (lambda mm: mm.handle_mm_fault(0x10_0000, fetch=True), SegvError, "access not allowed"),
        (lambda mm: mm.handle_mm_fault(0x20_0000), SegvError, "0x200000: nothing is mapped there"),
        (lambda mm: mm.handle_mm_fault(-1), SegvError, "nothing is mapped there"),
        (lambda mm: mm.handle_mm_fault(1 << 47), SegvError, "nothing is mapped there"),
    ],
)
def test_refusals(
    rig: Rig, mm: MmStruct, call: Callable[[MmStruct], object], error: type[Exception], message: str
) -> None:
    """Wrong arguments are named, and change nothing."""
    mm.mmap(PAGE, Prot.READ, ANONYMOUS | MapFlags.FIXED, address=0x10_0000)
    maps, free = [str(area) for area in mm.vmas], rig.free_frames()
    with pytest.raises(error, match=message):
        call(mm)
    if error is not NotMappedError:
        assert ([str(area) for area in mm.vmas], rig.free_frames()) == (maps, free)


class TestProtection:
    """mprotect, and what areas remember when they join."""

    def test_execution(self, rig: Rig, mm: MmStruct) -> None:
        """Only executable areas have executable pages."""
        for prot, executable in ((RW, False), (RW | Prot.EXEC, True)):
            address = mm.mmap(PAGE, prot, ANONYMOUS)
            rig.store(mm, address, b"x")
            entry = walk(rig.memory, mm.pgd, address)
            assert bool(entry & NOT_EXECUTABLE) != executable

    def test_taken_rights_are_gone_at_once(self, rig: Rig, mm: MmStruct) -> None:
        """No TLB allows afterwards what was allowed before; the content is there when the rights come back."""
        address = mm.mmap(3 * PAGE, RW, ANONYMOUS)
        rig.store(mm, address, b"x" * 3 * PAGE)
        for prot in (Prot.READ, Prot.NONE):
            mm.mprotect(address + PAGE, PAGE, prot)
            with pytest.raises(SegvError):
                rig.store(mm, address + PAGE, b"y")
            assert len(mm.vmas) == 3
        with pytest.raises(SegvError):
            rig.load(mm, address + PAGE, 1)
        mm.mprotect(address, 3 * PAGE, RW)
        assert len(mm.vmas) == 1
        assert rig.load(mm, address, 3 * PAGE) == b"x" * 3 * PAGE

    @pytest.mark.parametrize("written", [0, 1])
    def test_joined_areas_are_copied(self, rig: Rig, mm: MmStruct, written: int) -> None:
        """A written area that joins an unwritten one is still copied by fork."""
        address = mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=1 << 40)
        rig.store(mm, address, b"x" * (1 - written))
        mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=address + 2 * PAGE)
        rig.store(mm, address + 2 * PAGE, b"x" * written)
        mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=address + PAGE)
        assert len(mm.vmas) == 1
        child = dup_mm(mm, rig.new_id())
        assert rig.load(child, address + 2 * PAGE * written, 1) == b"x"


class TestLife:
    """Users and references."""

    def test_lazy_cpu_keeps_the_root(self, rig: Rig) -> None:
        """After the last user, the top-level table lives as long as a CPU has it loaded, with empty user entries."""
        free = rig.free_frames()
        mm = rig.new_mm()
        rig.store(mm, mm.mmap(PAGE, RW, ANONYMOUS), b"x")
        mm.grab()
        mm.get()
        mm.put()
        assert len(mm.vmas) == 1
        mm.put()
        assert rig.free_frames() == free - 1
        assert rig.memory.read(mm.pgd << 12, PAGE // 2) == bytes(PAGE // 2)
        mm.drop()
        assert rig.free_frames() == free

    def test_once_only(self, rig: Rig) -> None:
        """What was put too often is an error, not a second free."""
        mm = rig.new_mm()
        inode = rig.cache.new_inode("f")
        mm.put()
        inode.put()
        for again in (mm.put, mm.get, mm.drop, inode.put, inode.get):
            with pytest.raises(RuntimeError, match=r"after|more often"):
                again()

    def test_table_pages_wait_for_the_flush(self, rig: Rig, mm: MmStruct) -> None:
        """A page table is freed after the flush that follows the clearing of its entry, and the entry is announced."""
        events: list[tuple[str, int]] = []
        mm.on_pgd_change.append(lambda index, entry: events.append(("entry" if entry else "cleared", index)))
        address = 5 << 39
        mm.mmap(PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=address)
        rig.store(mm, address, b"x")
        flush, free = rig.tlb.flush_tlb_mm_range, rig.allocator.free_pages

        def flushing(mm: int, start: int, end: int) -> None:
            events.append(("flush", mm))
            flush(mm, start, end)

        def freeing(pfn: int, order: int = 0) -> None:
            events.append(("free", order))
            free(pfn, order)

        rig.tlb.flush_tlb_mm_range = flushing  # type: ignore[method-assign]
        rig.allocator.free_pages = freeing  # type: ignore[method-assign]
        mm.munmap(address, PAGE)
        assert events == [("entry", 5), ("cleared", 5), ("flush", mm.id), *[("free", 0)] * 4]

    def test_two_frames_of_root(self, rig: Rig) -> None:
        """Page-table isolation has a second root beside the first."""
        free = rig.free_frames()
        mm = MmStruct(rig.services, rig.cache, 9, pgd_order=1)
        child = dup_mm(mm, 10)
        assert mm.pgd % 2 == child.pgd % 2 == 0
        assert rig.free_frames() == free - 4
        mm.put()
        child.put()
        assert rig.free_frames() == free
