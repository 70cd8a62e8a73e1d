"""Kernel functions on the call stack, boot-time memory and its allocation, the spin lock."""

from __future__ import annotations

import pytest

from asikit.machine.mm import (
    BootContext,
    BootFlusher,
    BootMemory,
    KernelMemory,
    Layout,
    Memblock,
    NotDirectMappedError,
    OutOfMemoryError,
    SpinLock,
    Symbol,
    kernel_function,
)
from asikit.machine.x86 import PhysicalMemory
from tests.machine.mm.alloc.rig import TestContext, TracedMemory


class Worker:
    """Two kernel functions, one inside the other."""

    def __init__(self, access: TracedMemory) -> None:
        self.traced = access
        self.access: KernelMemory = access

    @kernel_function("__outer", module="kvm")
    def outer(self, *, fail: bool) -> list[str]:
        """Call the inner one."""
        return self.inner(fail=fail)

    @kernel_function()
    def inner(self, *, fail: bool) -> list[str]:
        """Return the call stack."""
        if fail:
            raise RuntimeError
        return list(self.traced.stack)


def test_kernel_functions_are_on_the_call_stack_while_they_run() -> None:
    """By the name given, else their own; left on exceptions too."""
    worker = Worker(TracedMemory(PhysicalMemory(4096), Layout()))
    assert worker.outer(fail=False) == ["__outer", "inner"]
    with pytest.raises(RuntimeError):
        worker.outer(fail=True)
    assert worker.traced.stack == []
    assert Worker.outer.symbol == Symbol("__outer", "kvm")  # type: ignore[attr-defined]


def test_boot_memory_is_the_direct_map_by_arithmetic() -> None:
    """And nothing else is reachable."""
    layout = Layout()
    memory = PhysicalMemory(8192)
    access = BootMemory(memory, layout)
    access.store(layout.virt(0x10), b"abc")
    access.store_u64(layout.virt(0x1000), 7)
    assert access.load(layout.virt(0xF), 5) == b"\0abc\0"
    assert access.load_u64(layout.virt(0x1000)) == memory.read_u64(0x1000) == 7
    access.enter(Symbol("start_kernel"))
    access.leave()
    with pytest.raises(NotDirectMappedError):
        access.load(0x10, 1)


def test_memblock_gives_the_lowest_frames_and_the_rest_later() -> None:
    """Reserved frames never; running out is an error."""
    memblock = Memblock(8)
    memblock.reserve(0, 2)
    memblock.reserve(5, 6)
    assert [memblock.alloc(), memblock.alloc()] == [2, 3]
    assert memblock.free_ranges() == [range(4, 5), range(6, 8)]
    assert [memblock.alloc() for _ in range(3)] == [4, 6, 7]
    assert memblock.free_ranges() == []
    with pytest.raises(OutOfMemoryError, match="too small to boot"):
        memblock.alloc()


def test_spin_lock_spins_until_the_other_cpu_is_done() -> None:
    """Each turn lets other CPUs run; taking it twice is a bug."""
    context = BootContext()
    lock = SpinLock(context)

    class Waiting(TestContext):
        turns = 0

        def cpu_relax(self) -> None:
            self.turns += 1
            if self.turns == 3:
                lock.owner = None

    waiting = Waiting(cpu_number=1)
    with lock:
        assert lock.owner == 0
        with pytest.raises(RuntimeError, match="holds already"), lock:
            pass
        lock.context = waiting
        with lock:
            assert lock.owner == 1
    assert waiting.turns == 3
    assert lock.owner is None


def test_boot_context_has_nobody_to_wait_for() -> None:
    """One CPU that may do anything, with empty TLBs."""
    context, flusher = BootContext(), BootFlusher()
    assert (context.cpu_number, context.irqs_enabled, context.may_block) == (0, True, True)
    context.cpu_relax()
    with context.uncounted():
        flusher.flush_tlb_all()
        flusher.flush_tlb_kernel_range(0, 4096)
        flusher.flush_tlb_mm_range(1, 0, 4096)
