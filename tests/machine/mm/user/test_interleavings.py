"""Several CPUs in one address space: another one may run at every access of kernel code, and before every flush.

The rig's TLB forgets nothing by itself and complains when a frame that it maps changes hands, so a page freed before
its flush, a lost update of a table, or a count that two CPUs changed at once does not go unnoticed.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import greenlet
import pytest

from asikit.machine.mm.errors import OutOfMemoryError
from asikit.machine.mm.fault import UserFaultError
from asikit.machine.mm.fork import dup_mm
from asikit.machine.mm.inode import filesystem
from asikit.machine.mm.mmstruct import MapFlags, MmStruct, Prot
from tests.machine.mm.user.rig import PAGE, Rig

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.mm.text import Symbol

RW = Prot.READ | Prot.WRITE
ANONYMOUS = MapFlags.PRIVATE | MapFlags.ANONYMOUS
STEPS = 12


class Switching:
    """Runs tasks as greenlets, each on a CPU of its own, and gives the next turn by a seed."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig = rig
        self.random = random.Random(seed)
        self.tasks: list[greenlet.greenlet] = []
        self.stacks: dict[greenlet.greenlet, list[str]] = {}
        self.cpus: dict[greenlet.greenlet, int] = {}
        self.main = greenlet.getcurrent()

    def start(self, program: Callable[[], None]) -> None:
        """Add a task; it may be started by another one."""
        task = greenlet.greenlet(program, parent=self.main)
        self.stacks[task] = []
        self.cpus[task] = len(self.cpus)
        self.tasks.append(task)

    def run(self) -> None:
        """Run until all tasks have ended."""
        while self.tasks:
            task = self.random.choice(self.tasks)
            self.rig.cpu.cpu_number = self.cpus[task]
            self.rig.access.stack = self.stacks[task]
            task.switch()
            if task.dead:
                assert not self.stacks[task]
                self.tasks.remove(task)

    def point(self) -> None:
        """Another CPU may run here."""
        if greenlet.getcurrent() is not self.main and self.random.random() < 0.2:
            self.main.switch()


class SleepingLock:
    """Waits for its holder."""

    def __init__(self, switching: Switching, name: str) -> None:
        self.switching = switching
        self.name = name
        self.holder: object = None

    def __enter__(self) -> None:
        assert self.holder is not greenlet.getcurrent(), f"{self.name} is taken by its holder"
        for _ in range(100_000):
            if self.holder is None:
                break
            self.switching.main.switch()
        assert self.holder is None, f"nobody gives up {self.name}"
        self.holder = greenlet.getcurrent()

    def __exit__(self, *_: object) -> None:
        self.holder = None


def switching_rig(seed: int) -> tuple[Rig, Switching]:
    """Return a machine whose kernel code switches."""
    holder: list[Switching] = []
    rig = Rig(
        2048,
        asi=True,
        pageblock_order=5,
        kernel_areas=True,
        new_lock=lambda name: SleepingLock(holder[0], name),
        cpus=10,
    )
    switching = Switching(rig, seed)
    rig.cpu.others = switching.main.switch
    holder.append(switching)
    load, store, enter, flush = rig.access.load, rig.access.store, rig.access.enter, rig.tlb.flush_tlb_mm_range

    def switching_load(vaddr: int, size: int) -> bytes:
        switching.point()
        return load(vaddr, size)

    def switching_store(vaddr: int, data: bytes) -> None:
        switching.point()
        store(vaddr, data)

    def switching_enter(symbol: Symbol) -> None:
        switching.point()
        enter(symbol)

    def switching_flush(mm: int, start: int, end: int) -> None:
        switching.point()
        flush(mm, start, end)

    rig.access.load = switching_load  # type: ignore[method-assign]
    rig.access.store = switching_store  # type: ignore[method-assign]
    rig.access.enter = switching_enter  # type: ignore[method-assign]
    rig.tlb.flush_tlb_mm_range = switching_flush  # type: ignore[method-assign]
    return rig, switching


@pytest.mark.parametrize("seed", range(30))
def test_threads(seed: int) -> None:  # noqa: C901, PLR0915 - the programs of six tasks
    """Threads write their own bytes of common pages while others fork, map, unmap, and use files: no byte is lost."""
    rig, switching = switching_rig(seed)
    free = rig.free_frames() + len(rig.vmalloc.tables.frames)
    mm = rig.new_mm()
    common = mm.mmap(4 * PAGE, RW, ANONYMOUS)
    inode = rig.cache.new_inode("f", filesystem("ext4"), b"d" * 3 * PAGE)

    def writer(thread: int) -> Callable[[], None]:
        def program() -> None:
            for step in range(1, STEPS + 1):
                for page in range(4):
                    address = common + page * PAGE + thread
                    rig.store(mm, address, bytes([step]))
                    switching.point()
                    assert rig.load(mm, address, 1) == bytes([step])

        return program

    def child(copy: MmStruct) -> Callable[[], None]:
        def program() -> None:
            snapshot = [rig.load(copy, common + page * PAGE, 2) for page in range(4)]
            switching.point()
            assert [rig.load(copy, common + page * PAGE, 2) for page in range(4)] == snapshot
            for page in range(4):
                rig.store(copy, common + page * PAGE, b"\xff" * 9)
            copy.put()

        return program

    def forker() -> None:
        for _ in range(3):
            switching.start(child(dup_mm(mm, rig.new_id())))

    def mapper() -> None:
        for step in range(STEPS):
            address = mm.mmap(3 * PAGE, RW, ANONYMOUS, address=(1 << 40) - PAGE)
            rig.store(mm, address + step, b"mapped" * 700)
            assert rig.load(mm, address + step, 4200) == b"mapped" * 700
            mm.munmap(address, 3 * PAGE)
            with pytest.raises(UserFaultError):
                rig.load(mm, address, 1)

    def reader() -> None:
        buffer = mm.mmap(3 * PAGE, RW, ANONYMOUS)
        view = mm.mmap(3 * PAGE, RW, MapFlags.PRIVATE, inode)
        for _ in range(4):
            assert rig.cache.read_iter(inode, 0, buffer, 2 * PAGE, rig.copy_to_user(mm)) == 2 * PAGE
            assert rig.load(mm, buffer, 2 * PAGE) == b"d" * 2 * PAGE
            rig.store(mm, view, b"x")
            rig.cache.truncate(inode, 2 * PAGE)
            rig.cache.write_iter(inode, 2 * PAGE, view + 1, PAGE - 1, rig.copy_from_user(mm))

    def kernel() -> None:
        for _ in range(STEPS):
            stack, area = rig.stacks.alloc(), rig.vmalloc.vmalloc(9 * PAGE)
            rig.access.store(area, b"k" * 9 * PAGE)
            rig.access.store(stack.base, b"s" * 100)
            objects = [rig.slab.kmalloc(900) for _ in range(5)]
            assert rig.access.load(area, 9 * PAGE) == b"k" * 9 * PAGE
            rig.vmalloc.vfree(area)
            rig.stacks.free(stack)
            for address in objects:
                rig.slab.kfree(address)

    for program in (writer(0), writer(1), forker, mapper, reader, kernel, kernel):
        switching.start(program)
    switching.run()
    assert [rig.load(mm, common + page * PAGE, 3) for page in range(4)] == [bytes([STEPS, STEPS, 0])] * 4
    rig.allocator.check()
    mm.put()
    inode.put()
    assert rig.free_frames() + len(rig.vmalloc.tables.frames) == free


@pytest.mark.parametrize("seed", range(10))
def test_threads_without_memory(seed: int) -> None:
    """Threads go on while memory runs out at some point: somebody is told, nobody else is harmed."""
    rig, switching = switching_rig(seed)
    free = rig.free_frames()
    parents = [rig.new_mm() for _ in range(3)]

    def program(mm: MmStruct) -> Callable[[], None]:
        def run() -> None:
            address = mm.mmap(30 * PAGE, RW, ANONYMOUS)
            try:
                for page in range(30):
                    rig.store(mm, address + page * PAGE, b"p")
                    if page % 10 == 9:
                        child = dup_mm(mm, rig.new_id())
                        try:
                            rig.store(child, address, b"c" * 3 * PAGE)
                        finally:
                            child.put()
                    assert rig.load(mm, address + page * PAGE, 2) == b"p\0"
            except OutOfMemoryError:
                pass
            mm.put()

        return run

    for mm in parents:
        switching.start(program(mm))
    with rig.fail_at(20 + 12 * seed) as failing:
        switching.run()
    assert failing.reached
    assert rig.free_frames() == free
