"""Memory runs out at the n-th allocation, for every n: the caller sees it, nothing leaks, nothing is half done."""

from __future__ import annotations

import contextlib
from itertools import count
from typing import TYPE_CHECKING

import pytest

from asikit.machine.mm.ephmap import Ephmap
from asikit.machine.mm.errors import OutOfMemoryError
from asikit.machine.mm.fork import dup_mm
from asikit.machine.mm.gfp import GFP_KERNEL, Gfp
from asikit.machine.mm.inode import filesystem
from asikit.machine.mm.mmstruct import MapFlags, MmStruct, Prot
from asikit.machine.mm.percpu import PerCpu
from asikit.machine.mm.stacks import KernelStacks
from asikit.machine.mm.vmalloc import Vmalloc
from asikit.trace import PageKind
from tests.machine.mm.user.rig import PAGE, Rig

if TYPE_CHECKING:
    from collections.abc import Callable

RW = Prot.READ | Prot.WRITE
ANONYMOUS = MapFlags.PRIVATE | MapFlags.ANONYMOUS
FAR = 1 << 41
CONTENT = bytes(range(251)) * 80


class World:
    """A process with memory of every kind, some of it written, and two files."""

    def __init__(self) -> None:
        self.rig = Rig(2048, asi=True, pageblock_order=6, kernel_areas=True)
        self.free = self.rig.free_frames() + self.table_frames
        self.tmpfs = self.rig.cache.new_inode("/run/file")
        self.rig.cache.populate(self.tmpfs, CONTENT)
        self.disk = self.rig.cache.new_inode("/file", filesystem("ext4"), CONTENT)
        self.mm = self.rig.new_mm()
        self.buffer = self.mm.mmap(8 * PAGE, RW, ANONYMOUS)
        self.private = self.mm.mmap(4 * PAGE, RW, MapFlags.PRIVATE, self.disk)
        self.far = self.mm.mmap(2 * PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=FAR)
        self.rig.store(self.mm, self.buffer, b"before")
        self.rig.store(self.mm, self.private + PAGE, b"mine")
        self.rig.store(self.mm, self.far, b"far")
        self.seen = self.look()

    @property
    def table_frames(self) -> int:
        """Frames of the kernel's own tables, which stay."""
        return len(self.rig.vmalloc.tables.frames)

    def look(self) -> tuple[bytes, ...]:
        """Return what the process sees."""
        rig, mm = self.rig, self.mm
        return (
            rig.load(mm, self.buffer, 6),
            rig.load(mm, self.private + PAGE, PAGE),
            rig.load(mm, self.far, 3),
            rig.cache.content(self.disk),
        )

    def end(self) -> None:
        """End the process; everything is free then, but for the kernel's tables."""
        self.rig.allocator.check()
        assert not self.rig.access.stack
        self.mm.put()
        self.tmpfs.put()
        self.disk.put()
        assert self.rig.free_frames() + self.table_frames == self.free
        self.rig.allocator.check()


def fork(world: World) -> None:
    """Copy the process; the copy sees the same."""
    child = dup_mm(world.mm, world.rig.new_id())
    try:
        assert world.rig.load(child, world.buffer, 6) == b"before"
        world.rig.store(child, world.far, b"child")
    finally:
        child.put()


def touch(world: World) -> None:
    """Map memory where there are no page tables yet, and write it."""
    address = world.mm.mmap(3 * PAGE, RW, ANONYMOUS | MapFlags.FIXED, address=FAR + (1 << 40))
    world.rig.store(world.mm, address + PAGE - 1, b"ab")


def touch_shared(world: World) -> None:
    """Map shared anonymous memory, and a file's, and write to both."""
    for file in (None, world.disk):
        flags = MapFlags.SHARED | (MapFlags(0) if file else MapFlags.ANONYMOUS)
        address = world.mm.mmap(3 * PAGE, RW, flags, file)
        world.rig.store(world.mm, address + 5, CONTENT[5:9] if file else b"shared")


def copy_on_write(world: World) -> None:
    """Write what was read before, zeroes and a file's page, and a page of the file that was never read."""
    world.rig.load(world.mm, world.buffer + PAGE, 1)
    world.rig.store(world.mm, world.buffer + PAGE, b"x")
    world.rig.load(world.mm, world.private, 1)
    world.rig.store(world.mm, world.private, b"x")
    world.rig.store(world.mm, world.private + 3 * PAGE, b"x")


def read(world: World) -> None:
    """Read from the disk into fresh memory, all of it or up to where memory ran out."""
    copied = world.rig.cache.read_iter(world.disk, 0, world.buffer + PAGE, 4 * PAGE, world.rig.copy_to_user(world.mm))
    if copied < 4 * PAGE:
        raise OutOfMemoryError("a short read")


def write(world: World) -> None:
    """Write beyond a tmpfs file's end, all of it or up to where memory ran out."""
    inode = world.tmpfs
    copied = world.rig.cache.write_iter(
        inode, len(CONTENT) + PAGE, world.buffer, 3 * PAGE, world.rig.copy_from_user(world.mm)
    )
    if copied < 3 * PAGE:
        assert not copied or inode.size == len(CONTENT) + PAGE + copied
        raise OutOfMemoryError("a short write")


def vmalloc(world: World) -> None:
    """Allocate over the border of two page-table pages."""
    address = world.rig.vmalloc.vmalloc((512 + 5) * PAGE, GFP_KERNEL | Gfp.ZERO)
    world.rig.access.store(address + 511 * PAGE, bytes(2 * PAGE))
    world.rig.vmalloc.vfree(address)


def stack(world: World) -> None:
    """A task's kernel stack, three times as two are kept."""
    stacks = []
    try:
        for _ in range(3):
            stacks.append(world.rig.stacks.alloc())  # noqa: PERF401 - those made are freed
    finally:
        for made in stacks:
            world.rig.stacks.free(made)


def slab(world: World) -> None:
    """Objects of several slabs, and whole pages."""
    cache = world.rig.slab.cache("task_struct", 3500)
    objects = []
    try:
        for _ in range(20):
            objects.append(cache.alloc(zero=True))  # noqa: PERF401 - those made are freed
        objects.append(world.rig.slab.kmalloc(20_000))
    finally:
        for made in objects:
            world.rig.slab.kfree(made)


def new_mm(world: World) -> None:
    """An address space of its own."""
    world.rig.new_mm().put()


OPERATIONS = [fork, touch, touch_shared, copy_on_write, read, write, vmalloc, stack, slab, new_mm]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_every_allocation(operation: Callable[[World], None]) -> None:
    """Until the operation needs no more allocations than it may make; each time in a fresh world."""
    wide = operation is vmalloc
    for allowed in count(step=37 if wide else 1):
        world = World()
        with world.rig.fail_at(allowed) as failing:
            try:
                operation(world)
            except OutOfMemoryError:
                assert failing.reached
            else:
                assert operation is slab or not failing.reached  # a slab may be smaller than first asked for
        assert world.look() == world.seen
        finished = not failing.reached
        world.end()
        if finished:
            break
    assert allowed > 0


def test_after_failure_it_works() -> None:
    """What failed can be done again in the same world as soon as there is memory."""
    world = World()
    for operation in OPERATIONS:
        with world.rig.fail_at(0), contextlib.suppress(OutOfMemoryError):
            operation(world)
        if operation is not copy_on_write:
            operation(world)
    world.end()


def test_memory_really_runs_out() -> None:
    """No made-up failure: a process writes until nothing is left, ends, and everything is free."""
    rig = Rig(512, asi=True, pageblock_order=4)
    free = rig.free_frames()
    mm = rig.new_mm()
    address = mm.mmap(600 * PAGE, RW, ANONYMOUS)
    with pytest.raises(OutOfMemoryError, match="page allocation failure: order 0"):
        rig.store(mm, address, bytes(600 * PAGE))
    with pytest.raises(OutOfMemoryError):
        dup_mm(mm, rig.new_id())
    assert rig.load(mm, address, PAGE) == bytes(PAGE)
    mm.put()
    assert rig.free_frames() == free
    rig.allocator.check()


@pytest.mark.parametrize(
    "boot",
    [
        lambda rig: Vmalloc(rig.services),
        lambda rig: PerCpu(rig.services, 2),
        lambda rig: KernelStacks(rig.services, Vmalloc(rig.services)).alloc(),
        lambda rig: Ephmap(rig.services, 2, read_kinds=[PageKind.SHMEM], flush_one=rig.flush_one),
        lambda rig: MmStruct(rig.services, rig.cache, 1),
    ],
)
def test_boot_without_memory(boot: Callable[[Rig], object]) -> None:
    """What is made at boot says so as well."""
    rig = Rig(2048)
    with rig.fail_at(0), pytest.raises(OutOfMemoryError):
        boot(rig)


def test_reclaim() -> None:
    """Vmalloc areas that wait for a flush and empty slabs are given back before a request fails."""
    rig = Rig(1024, kernel_areas=True)
    kept = rig.vmalloc.vmalloc(60 * PAGE)
    rig.vmalloc.vfree(kept)
    cache = rig.slab.cache("names_cache", PAGE)
    cache.free(cache.alloc())
    rig.stacks.free(rig.stacks.alloc())
    taken = []
    with pytest.raises(OutOfMemoryError):
        while True:
            taken.append(rig.allocator.alloc_pages(GFP_KERNEL))
    mapped = {pfn for area in rig.vmalloc.areas for pfn in area.pages}
    kinds = {rig.allocator.page(pfn).kind for pfn in range(1024) if pfn not in mapped}
    assert not kinds & {PageKind.VMALLOC, PageKind.SLAB, PageKind.STACK}
    for pfn in taken:
        rig.allocator.free_pages(pfn)
