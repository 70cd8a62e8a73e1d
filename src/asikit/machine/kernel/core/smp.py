"""Calls of other CPUs and TLB shootdowns (kernel/smp.c, arch/x86/mm/tlb.c).

A flush ends when no CPU can use the old translations any more. Which address spaces' translations go where is partly
the protocol's business: each CPU that flushes runs one of its TLB_FLUSHES; the rest is what a kernel without ASI does
for the unrestricted address space.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.kernel.core.errors import KernelOopsError
from asikit.machine.kernel.core.interrupts import CALL_FUNCTION_VECTOR
from asikit.machine.kernel.core.memory_context import INIT_MM
from asikit.machine.mm import PAGE_SIZE
from asikit.machine.x86 import Invpcid
from asikit.protocol import DomainId, Generations, Happening, Space
from asikit.protocol.tlb import SINGLE_PAGE_FLUSH_CEILING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from asikit.machine.kernel.core.memory_context import MemoryContext
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.protocol import Protocol as AsiProtocol

__all__ = ["Shootdown", "Smp"]


class _Kernel(
    doors.Processors,
    doors.Points,
    doors.Watched,
    doors.Interruptible,
    doors.AddressSpaces,
    doors.Transitions,
    doors.Scheduled,
    Protocol,
):
    """What is needed of the kernel here."""

    smp: Smp
    protocol: AsiProtocol


class Smp:
    """Functions that other CPUs are made to call."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        self._queues: list[deque[tuple[Callable[[CpuContext], None], list[int]]]] = [deque() for _ in kernel.cpus]

    def call(self, cpus: Iterable[CpuContext], function: Callable[[CpuContext], None], what: str) -> None:
        """Make CPUs call a function, this one among them if it is given, and wait until all have.

        Interrupts must be on: two CPUs that call one another would wait for ever.
        """
        kernel = self._kernel
        me = kernel.cpu
        targets = [cpu for cpu in cpus if cpu is not me]
        missing = [cpu.number for cpu in targets]
        if targets and not me.hw.interrupts_enabled and kernel.running:
            kernel.crash(KernelOopsError(f"cpu {me.number} waits for others to {what} with interrupts off"))
        for cpu in targets:
            self._queues[cpu.number].append((function, missing))
            kernel.interrupts.post(cpu, CALL_FUNCTION_VECTOR)
        kernel.tally.ipis += len(targets)
        if any(cpu is me for cpu in cpus):
            enabled, me.hw.interrupts_enabled = me.hw.interrupts_enabled, False
            function(me)
            me.hw.interrupts_enabled = enabled
        while missing:
            if kernel.interrupts.deliverable(me):
                kernel.interrupts.deliver(me)
            elif kernel.running:
                numbers = ", ".join(map(str, missing))
                kernel.wait_for(me, f"cpus {numbers} to {what}", lambda: not missing)
            else:
                self._interrupt_idle(targets)

    def _interrupt_idle(self, cpus: Iterable[CpuContext]) -> None:
        """Outside of a run, when a scenario is being set up, the others take the interrupt when they are told to."""
        kernel = self._kernel
        me = kernel.cpu
        for cpu in cpus:
            kernel.cpu = cpu
            kernel.interrupts.poll()
        kernel.cpu = me

    def run_calls(self, cpu: CpuContext) -> None:
        """Call what others want this CPU to call: the handler of CALL_FUNCTION_VECTOR."""
        queue = self._queues[cpu.number]
        while queue:
            function, missing = queue.popleft()
            function(cpu)
            missing.remove(cpu.number)


class Shootdown:
    """TLB flushes of all CPUs; what `asikit.machine.mm` knows as its TlbFlusher.

    :ivar generations: How often each domain, and all of them, were flushed.
    :ivar in_progress: Ranges whose flush has begun and not ended, as (mm or None for the kernel's, start, end).
    """

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        self.generations = Generations()
        self.in_progress: list[tuple[int | None, int, int]] = []

    def flush_tlb_mm_range(self, mm: int, start: int, end: int) -> None:
        """Flush user addresses of an mm wherever it is loaded."""
        kernel = self._kernel
        context = kernel.contexts.find(mm)
        if context is None:
            return  # never loaded: it is still being made, or gone
        context.tlb_gen += 1
        self._outdate_user(context)
        pages = range(start, end, PAGE_SIZE) if end - start <= SINGLE_PAGE_FLUSH_CEILING * PAGE_SIZE else None
        cpus = [cpu for cpu in kernel.cpus if cpu.loaded_mm is context]
        self._run(cpus, (mm, start, end), lambda cpu: self._flush_user(cpu, context, pages))
        for notify in tuple(context.notifiers):
            notify(start, end)

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Flush kernel addresses on every CPU, in every address space."""
        pages = range(start, end, PAGE_SIZE) if end - start <= SINGLE_PAGE_FLUSH_CEILING * PAGE_SIZE else None
        self._outdate_kernel()
        self._run(self._kernel.cpus, (None, start, end), lambda cpu: self._flush_kernel(cpu, pages))

    def flush_tlb_all(self) -> None:
        """Flush everything on every CPU."""
        self.flush_tlb_kernel_range(0, 1 << 64)

    def flush_one(self, vaddr: int) -> None:
        """Flush one kernel address on this CPU alone, in every address space: `flush_tlb_one_kernel()`.

        No event for the protocol: for mappings that no other CPU uses, made and gone between two points.
        """
        cpu = self._kernel.cpu
        cpu.hw.invlpg(vaddr)
        for entry in {entry.tag for entry in cpu.hw.tlb.entries() if entry.page == vaddr}:
            cpu.hw.invpcid(Invpcid.ADDRESS, entry, vaddr)

    def _run(
        self, cpus: list[CpuContext], what: tuple[int | None, int, int], flush: Callable[[CpuContext], None]
    ) -> None:
        kernel = self._kernel
        self.in_progress.append(what)
        if any(cpu is not kernel.cpu for cpu in cpus):
            kernel.tally.shootdowns += 1
        kernel.smp.call(cpus, flush, "flush their TLB")
        self.in_progress.remove(what)
        if kernel.invariants is not None:
            kernel.invariants.after_flush(*what)

    # What each CPU does.

    def _flush_user(self, cpu: CpuContext, context: MemoryContext, pages: range | None) -> None:
        """`flush_tlb_func()` for user addresses; a lazy CPU lets go of the mm instead."""
        kernel = self._kernel
        if cpu.loaded_mm is not context:
            return  # it has switched since it was asked, and flushes when it comes back
        if cpu.lazy and context.id != INIT_MM:
            kernel.sched.switch_mm(kernel.contexts.init)
            return
        with kernel.function("flush_tlb_func"):
            for observer in kernel.observers:
                observer.tlb_flush(cpu.number, kernel=False, pages=None if pages is None else len(pages))
            kernel.asi.run(Happening.TLB_FLUSH_USER if pages is None else Happening.TLB_FLUSH_USER_RANGE)
            self._flush_own(cpu, pages)
            cpu.asids[cpu.loaded_asid].tlb_gen = context.tlb_gen

    def _flush_kernel(self, cpu: CpuContext, pages: range | None) -> None:
        kernel = self._kernel
        with kernel.function("do_flush_tlb_all" if pages is None else "do_kernel_range_flush"):
            for observer in kernel.observers:
                observer.tlb_flush(cpu.number, kernel=True, pages=None if pages is None else len(pages))
            kernel.asi.run(Happening.TLB_FLUSH_KERNEL if pages is None else Happening.TLB_FLUSH_KERNEL_RANGE)
            self._flush_own(cpu, pages)
            for number, asid in enumerate(cpu.asids):
                asid.outdated = number != cpu.loaded_asid

    def _flush_own(self, cpu: CpuContext, pages: range | None) -> None:
        """Flush the unrestricted address space; and the restricted one loaded, where its generations do not do that."""
        asi = self._kernel.asi
        if not asi.has_pcids:
            if pages is None:
                cpu.hw.write_cr3(cpu.hw.cr3)
            for vaddr in pages or ():
                cpu.hw.invlpg(vaddr)
            return
        tags = {asi.pcid(cpu.loaded_asid, Space.UNRESTRICTED), *asi.user_pcids(cpu.loaded_asid)}
        if not asi.protocol.config.noflush:
            tags.add(cpu.hw.pcid)
        for tag in sorted(tags):
            if pages is None:
                cpu.hw.invpcid(Invpcid.SINGLE_CONTEXT, tag)
            else:
                for vaddr in pages:
                    cpu.hw.invpcid(Invpcid.ADDRESS, tag, vaddr)

    # Generations: whoever flushes counts one before anybody is interrupted. Each CPU's own state says so when it takes
    # the interrupt, or loads the mm again: until then the flush is not over, and nothing depends on it.

    def _outdate_user(self, context: MemoryContext) -> None:
        for asi_class in self._kernel.protocol.config.classes:
            if asi_class.maps_user:
                self.generations = self.generations.flush(DomainId(context.id, asi_class))

    def _outdate_kernel(self) -> None:
        self.generations = self.generations.flush_everywhere()
