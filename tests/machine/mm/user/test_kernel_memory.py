"""Slabs, vmalloc, kernel stacks and per-CPU areas."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.machine.mm.errors import OutOfMemoryError
from asikit.machine.mm.gfp import GFP_KERNEL, GFP_KERNEL_ACCOUNT, GFP_USER, Gfp
from asikit.machine.mm.percpu import PerCpu, PerCpuError
from asikit.machine.mm.slab import KMALLOC_SIZES, BadObjectError
from asikit.machine.mm.stacks import NR_CACHED_STACKS, THREAD_SIZE
from asikit.machine.mm.vmalloc import LAZY_MAX_PAGES, VmallocError
from asikit.trace import PageKind
from tests.machine.mm.user.rig import PAGE, NotMappedError, Rig, walk


@pytest.fixture
def rig() -> Rig:
    """A machine with ASI and vmalloc."""
    return Rig(2048, asi=True, kernel_areas=True)


class TestSlab:
    """KmemCache and kmalloc."""

    @settings(max_examples=60, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 12_000), st.integers(0, 99)), max_size=60))
    def test_objects_do_not_overlap(self, history: list[tuple[bool, int, int]]) -> None:
        """Every object keeps what is written to it; all freed, only what caches keep is missing, and then nothing."""
        rig = Rig(1024)
        free = rig.free_frames()
        objects: list[tuple[int, bytes]] = []
        for allocate, size, which in history:
            if allocate or not objects:
                address = rig.slab.kmalloc(size, GFP_KERNEL_ACCOUNT if which % 3 else GFP_KERNEL)
                assert address % 8 == 0
                content = bytes([which + 1]) * size
                rig.access.store(address, content)
                objects.append((address, content))
            else:
                address, content = objects.pop(which % len(objects))
                assert rig.access.load(address, len(content)) == content
                rig.slab.kfree(address)
        for address, content in objects:
            assert rig.access.load(address, len(content)) == content
            rig.slab.kfree(address)
        assert all(not cache.in_use for cache in rig.slab)
        assert rig.free_frames() == free

    def test_names_and_pages(self, rig: Rig) -> None:
        """Pages say which cache they are of; kmalloc's caches are named as in /proc/slabinfo."""
        wanted = {
            (1, GFP_KERNEL): "kmalloc-8",
            (65, GFP_KERNEL): "kmalloc-96",
            (1000, GFP_KERNEL_ACCOUNT): "kmalloc-cg-1k",
            (8192, GFP_KERNEL | Gfp.RECLAIMABLE): "kmalloc-rcl-8k",
        }
        for (size, gfp), name in wanted.items():
            page = rig.allocator.page(rig.layout.phys(rig.slab.kmalloc(size, gfp)) >> 12)
            assert (page.kind, page.cache) == (PageKind.SLAB, name)
        page = rig.allocator.page(rig.layout.phys(rig.slab.kmalloc(KMALLOC_SIZES[-1] + 1)) >> 12)
        assert (page.kind, page.order) == (PageKind.KERNEL, 2)

    def test_sensitivity(self, rig: Rig) -> None:
        """A caller's flag is stripped, as it would decide for others' objects; a cache's is not, nor whole pages'."""

        def sensitive(address: int) -> bool:
            return rig.allocator.pageblocks.sensitive(rig.layout.phys(address) >> 12)

        assert not sensitive(rig.slab.kmalloc(100, GFP_USER))
        assert not sensitive(rig.slab.cache("filp", 232).alloc(GFP_USER))
        assert sensitive(rig.slab.cache("secrets", 64, Gfp.SENSITIVE).alloc())
        assert sensitive(rig.slab.kmalloc(10_000, GFP_USER))
        assert not sensitive(rig.slab.kmalloc(10_000))

    def test_zeroed(self, rig: Rig) -> None:
        """An object that is asked for zeroed is, whoever had it before."""
        cache = rig.slab.cache("task_struct", 1000)
        first = cache.alloc()
        rig.access.store(first, b"secret" * 100)
        cache.free(first)
        second = cache.alloc(zero=True)
        assert second == first
        assert rig.access.load(second, 1000) == bytes(1000)
        rig.access.store(second, b"secret" * 100)
        cache.free(second)
        assert rig.access.load(cache.alloc(GFP_KERNEL | Gfp.ZERO), 1000) == bytes(1000)

    def test_wrong_frees(self, rig: Rig) -> None:
        """Freed twice, freed to another cache, never allocated: named, and harmless."""
        cache, other = rig.slab.cache("one", 64), rig.slab.cache("other", 64)
        address = cache.alloc()
        with pytest.raises(BadObjectError, match=f"{address:#x}: not in use in cache other"):
            other.free(address)
        cache.free(address)
        with pytest.raises(BadObjectError, match="not in use in cache one"):
            cache.free(address)
        with pytest.raises(BadObjectError, match="neither"):
            rig.slab.kfree(rig.layout.virt(rig.allocator.alloc_pages(GFP_KERNEL) << 12))
        large = rig.slab.kmalloc(20_000)
        with pytest.raises(BadObjectError, match="neither"):
            rig.slab.kfree(large + PAGE)
        rig.slab.kfree(large)

    def test_one_cache_a_name(self, rig: Rig) -> None:
        """A name has one size and one set of flags."""
        cache = rig.slab.cache("one", 60)
        assert rig.slab.cache("one", 64) is cache
        for size, flags in ((72, Gfp(0)), (64, Gfp.SENSITIVE)):
            with pytest.raises(ValueError, match="cache one exists with objects of 64 bytes"):
                rig.slab.cache("one", size, flags)
        with pytest.raises(ValueError, match="objects of 40000 bytes"):
            rig.slab.cache("huge", 40_000)

    def test_empty_slabs(self, rig: Rig) -> None:
        """One empty slab is kept, the others' pages are free at once."""
        free = rig.free_frames()
        cache = rig.slab.cache("pages", PAGE)
        objects = [cache.alloc() for _ in range(64)]
        for address in objects:
            cache.free(address)
        assert rig.allocator.free_frames == free - 8
        assert cache.shrink() == 8
        assert rig.allocator.free_frames == free


class TestVmalloc:
    """Virtually contiguous memory."""

    def test_guard_pages(self, rig: Rig) -> None:
        """Memory is there to its last byte; before the first and after the last is nothing."""
        for pages in (1, 3, 2):
            address = rig.vmalloc.vmalloc(pages * PAGE - 5, GFP_KERNEL | Gfp.ZERO)
            assert address in rig.layout.vmalloc
            assert rig.access.load(address, pages * PAGE) == bytes(pages * PAGE)
            rig.access.store(address, b"v" * (pages * PAGE))
            for outside in (address - 1, address + pages * PAGE):
                with pytest.raises(NotMappedError):
                    rig.access.load(outside, 1)
        assert [len(area.pages) for area in rig.vmalloc.areas] == [1, 3, 2]

    def test_top_level_entries_never_change(self) -> None:
        """What an address space copied at its creation shows it every later area (I8), also the last addresses."""
        for levels in (4, 5):
            rig = Rig(2048, levels=levels, kernel_areas=True)
            root = rig.services.init_pgd << 12
            before = rig.memory.read(root, PAGE)
            mm = rig.new_mm()
            region = rig.layout.vmalloc
            addresses = [rig.vmalloc.vmalloc(PAGE) for _ in range(3)]
            rig.vmalloc.tables.ensure(rig.services.init_pgd, region.end - PAGE)
            assert rig.memory.read(root, PAGE) == before
            assert all(walk(rig.memory, mm.pgd, address, levels) for address in addresses)
            indices = {
                rig.layout.pgd_index(vaddr) for vaddr in range(region.start, region.end, 1 << rig.layout.pgd_shift)
            }
            assert all(before[8 * index] & 1 for index in indices)

    def test_lazy_flush(self, rig: Rig) -> None:
        """Freed addresses and frames are used again only after a flush; the rig's TLB would tell otherwise."""
        address = rig.vmalloc.vmalloc(PAGE)
        frame = rig.vmalloc.areas[0].pages[0]
        rig.access.store(address, b"x")
        rig.tlb.flushes.clear()
        rig.vmalloc.vfree(address)
        assert rig.vmalloc.vmalloc(PAGE) != address
        assert not rig.tlb.flushes
        assert rig.allocator.page(frame).refcount == 1
        rig.vmalloc.vm_unmap_aliases()
        assert rig.tlb.flushes == [(0, address, address + PAGE)]
        assert rig.allocator.page(frame).refcount == 0
        assert rig.vmalloc.vmalloc(PAGE) == address

    def test_many_are_flushed_together(self, rig: Rig) -> None:
        """One flush for many areas; none while the caller may not wait for it."""
        address = rig.vmalloc.vmalloc(PAGE)
        rig.tlb.flushes.clear()
        for _ in range(LAZY_MAX_PAGES // 4):
            rig.vmalloc.vfree(rig.vmalloc.vmalloc(4 * PAGE))
        rig.cpu.may_block = False
        rig.vmalloc.vfree(address)
        assert not rig.tlb.flushes
        rig.cpu.may_block = True
        rig.vmalloc.vfree(rig.vmalloc.vmalloc(PAGE))
        assert len(rig.tlb.flushes) == 1

    @settings(max_examples=40, deadline=None)
    @given(st.lists(st.tuples(st.booleans(), st.integers(1, 9), st.integers(0, 99)), max_size=50))
    def test_areas_do_not_overlap(self, history: list[tuple[bool, int, int]]) -> None:
        """Contents survive any history; at the end all frames but the tables' are free."""
        rig = Rig(1024, kernel_areas=True)
        free = rig.free_frames() + len(rig.vmalloc.tables.frames)
        areas: list[tuple[int, bytes]] = []
        for allocate, pages, which in history:
            if allocate or not areas:
                address = rig.vmalloc.vmalloc(pages * PAGE, align=PAGE << which % 3)
                areas.append((address, bytes([which]) * (pages * PAGE)))
                rig.access.store(*areas[-1])
            else:
                address, content = areas.pop(which % len(areas))
                assert rig.access.load(address, len(content)) == content
                rig.vmalloc.vfree(address)
                with pytest.raises(VmallocError, match=f"{address:#x}: no vmalloc area begins there"):
                    rig.vmalloc.vfree(address)
        for address, content in areas:
            assert rig.access.load(address, len(content)) == content
            rig.vmalloc.vfree(address)
        assert rig.free_frames() + len(rig.vmalloc.tables.frames) == free

    def test_vmap(self, rig: Rig) -> None:
        """Frames of the caller's, in its order; they stay the caller's."""
        frames = [rig.allocator.alloc_pages(GFP_USER) for _ in range(3)]
        address = rig.vmalloc.vmap(frames)
        rig.access.store(address + PAGE - 1, b"ab")
        assert rig.memory.read((frames[0] << 12) + PAGE - 1, 1) == b"a"
        assert rig.memory.read(frames[1] << 12, 1) == b"b"
        rig.vmalloc.vunmap(address)
        rig.vmalloc.vm_unmap_aliases()
        for frame in frames:
            assert rig.allocator.page(frame).refcount == 1
            rig.allocator.free_pages(frame)

    def test_sizes(self, rig: Rig) -> None:
        """Nothing, and more than there are addresses for."""
        with pytest.raises(ValueError, match="vmalloc of 0 bytes"):
            rig.vmalloc.vmalloc(0)
        with pytest.raises(OutOfMemoryError, match="no vmalloc addresses for"):
            rig.vmalloc.vmalloc(1 << 46)


class TestStacks:
    """Kernel stacks."""

    def test_stack(self, rig: Rig) -> None:
        """16 KiB, aligned, of its own kind of page, with nothing below."""
        stack = rig.stacks.alloc()
        assert stack.top - stack.base == THREAD_SIZE == 16384
        assert stack.base % THREAD_SIZE == 0
        rig.access.store(stack.base, b"s" * THREAD_SIZE)
        for overrun in (stack.base - 1, stack.base - PAGE):
            with pytest.raises(NotMappedError):
                rig.access.store(overrun, b"x")
        kinds = {rig.allocator.page(pfn).kind for pfn in rig.vmalloc.areas[0].pages}
        assert kinds == {PageKind.STACK}

    def test_kept_stacks_are_clean(self, rig: Rig) -> None:
        """A CPU keeps two stacks; the next task gets one without the last one's secrets."""
        stacks = [rig.stacks.alloc() for _ in range(NR_CACHED_STACKS + 1)]
        for stack in stacks:
            rig.access.store(stack.base, b"secret!!" * (THREAD_SIZE // 8))
        for stack in stacks:
            rig.stacks.free(stack)
        assert len(rig.vmalloc.areas) == NR_CACHED_STACKS
        rig.cpu.cpu_number = 1
        assert rig.stacks.alloc() not in stacks
        rig.cpu.cpu_number = 0
        again = rig.stacks.alloc()
        assert again in stacks
        assert rig.access.load(again.base, THREAD_SIZE) == bytes(THREAD_SIZE)


class TestPerCpu:
    """Per-CPU areas."""

    def test_own_copies(self, rig: Rig) -> None:
        """Each CPU has its own, zero at first, in the region for them."""
        percpu = PerCpu(rig.services, 3)
        percpu.define("tick", 1)
        percpu.define("stats", 100)
        percpu.define("last")
        addresses = [percpu.address(name, cpu) for name in ("tick", "stats", "last") for cpu in range(3)]
        assert len(set(addresses)) == 9
        for number, address in enumerate(addresses):
            assert address in rig.layout.percpu
            assert rig.access.load_u64(address) == 0
            rig.access.store_u64(address, number)
        assert [rig.access.load_u64(address) for address in addresses] == list(range(9))
        assert {rig.allocator.page(pfn).kind for pfn in percpu.frames} == {PageKind.PERCPU}

    def test_refusals(self, rig: Rig) -> None:
        """Twice the same name, unknown names and CPUs, and too much."""
        percpu = PerCpu(rig.services, 1, unit_size=PAGE)
        percpu.define("all", PAGE - 8)
        percpu.define("rest", 3)
        with pytest.raises(PerCpuError, match="all is defined already"):
            percpu.define("all")
        for name, cpu in (("none", 0), ("all", 1), ("all", -1)):
            with pytest.raises(PerCpuError, match=f"no per-CPU variable {name} of cpu {cpu}"):
                percpu.address(name, cpu)
        with pytest.raises(OutOfMemoryError, match="no 1 bytes left in areas of 4096"):
            percpu.define("more", 1)
