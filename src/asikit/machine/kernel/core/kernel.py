"""The modelled kernel: its parts, and what they share.

Each part has a module of its own and knows the kernel, through which it finds the others. How code runs, and what may
come between two of its steps, is `asikit.machine.kernel.core.execution`.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asikit.machine.kernel.core.asi import AsiDriver
from asikit.machine.kernel.core.context import KernelContext, Mutex
from asikit.machine.kernel.core.entry import Crossings
from asikit.machine.kernel.core.execution import Execution
from asikit.machine.kernel.core.fault import PageFaults
from asikit.machine.kernel.core.interrupts import Interrupts
from asikit.machine.kernel.core.memory import CurrentMemory
from asikit.machine.kernel.core.observer import NOT_MAPPED
from asikit.machine.kernel.core.report import MachineReport, MachineTally, TlbCounts
from asikit.machine.kernel.core.sched import Scheduler
from asikit.machine.kernel.core.smp import Shootdown, Smp
from asikit.machine.kernel.core.task import Task, TaskExit, TaskStatus
from asikit.machine.kernel.core.text import KernelText
from asikit.machine.kernel.core.uaccess import UserAccess
from asikit.machine.mm import Symbol
from asikit.machine.x86 import Access, GeneralProtection, PageFault, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from asikit.machine.kernel.core.config import MachineConfig
    from asikit.machine.kernel.core.domains import DomainTables
    from asikit.machine.kernel.core.interleave import Interleaver
    from asikit.machine.kernel.core.invariants import InvariantChecker
    from asikit.machine.kernel.core.memory_context import MemoryContexts
    from asikit.machine.kernel.core.observer import Observer
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.speculation import Speculation
    from asikit.machine.kernel.syscalls.userland import Userland
    from asikit.machine.mm import (
        DirectMap,
        Ephmap,
        KernelStacks,
        Layout,
        MmServices,
        MmStruct,
        PageAllocator,
        PageCache,
        PageTables,
        PerCpu,
        SlabAllocator,
        Stack,
        Vmalloc,
    )
    from asikit.machine.x86 import PhysicalMemory
    from asikit.protocol import Protocol

__all__ = ["Kernel"]

_ALLOCATORS = frozenset(
    {"__alloc_pages", "get_page_from_freelist", "new_slab", "allocate_slab", "kmem_cache_alloc", "__kmalloc", "kmalloc"}
)
"""Functions that allocate for somebody else: the innermost one outside of these is who allocated."""


class Kernel:
    """One machine's kernel. `boot` makes it and fills in what is declared here without a value.

    What other parts use of it:

    :ivar config: The machine's description; `protocol` its protocol; `layout` its virtual address space.
    :ivar physical: Physical memory, for looking at it; kernel code uses `access`.
    :ivar access: Memory as the running CPU's kernel code sees it.
    :ivar cpus: All CPUs; `cpu` is the running one and `current` its task.
    :ivar execution: Runs the machine's code. Its methods `point`, `at_point`, `micro_op_point`, `can_run`, `wait_for`,
        `stall`, `check_alive`, `crash`, `run` and `close` are the kernel's too: every part calls them.
    :ivar interleaver: Who decides which CPU goes on, and what comes in between.
    :ivar tables: Editor of page tables; `allocator`, `direct_map`, `slab`, `vmalloc`, `stacks`, `percpu`, `page_cache`,
        `ephmap` and `services` are memory management's.
    :ivar contexts: Address spaces and their life; `domains` their restricted page tables.
    :ivar asi: Runs the protocol's transitions; `entry`, `faults`, `interrupts`, `sched`, `smp`, `flusher`, `uaccess`,
        `context` and `text` are the other parts.
    :ivar userland: What programs see: system calls, files.
    :ivar tasks: Tasks that have not ended, by pid, without idle ones.
    :ivar observers: Who is told what happens.
    :ivar invariants: Checks in debug mode, else None.
    :ivar speculation: Who attacks the machine, else None.
    :ivar tally: Counts.
    :ivar exit_work: Called on the way back to user mode with the current task; returns whether it did anything, in
        which case it is called again. May raise TaskExit.
    :ivar out_of_memory: Called with the current task when its page fault finds no memory: `pagefault_out_of_memory()`.
    :ivar at_report: Called when a report is made, to add to its results with `report_result`.
    :ivar running: Inside of `run`; otherwise a scenario is being set up, on CPU 0 and without interleaving.
    :ivar stopped: A run has ended at its limit, in the middle of tasks.
    """

    access: CurrentMemory
    allocator: PageAllocator
    contexts: MemoryContexts
    direct_map: DirectMap
    domains: DomainTables
    ephmap: Ephmap
    page_cache: PageCache
    percpu: PerCpu
    services: MmServices
    slab: SlabAllocator
    stacks: KernelStacks
    tables: PageTables
    userland: Userland
    vmalloc: Vmalloc

    def __init__(  # noqa: PLR0917 - what a machine is made of
        self,
        config: MachineConfig,
        protocol: Protocol,
        layout: Layout,
        physical: PhysicalMemory,
        cpus: Sequence[CpuContext],
        interleaver: Interleaver,
    ) -> None:
        self.config = config
        self.protocol = protocol
        self.layout = layout
        self.physical = physical
        self.cpus = list(cpus)
        self.cpu = self.cpus[0]
        self.interleaver = interleaver
        self.observers: list[Observer] = []
        self.invariants: InvariantChecker | None = None
        self.speculation: Speculation | None = None
        self.tally = MachineTally()
        self.tasks: dict[int, Task] = {}
        self.running = False
        self.stopped = False
        self.exit_work: Callable[[Task], bool] | None = None
        self.out_of_memory: Callable[[Task], None] = _kill
        self.at_report: list[Callable[[], None]] = []
        self.text = KernelText(layout)
        self.execution = execution = Execution(self)
        # Bound, not wrapped: some are called at every step, and another call would show.
        self.point, self.at_point, self.micro_op_point = execution.point, execution.at_point, execution.micro_op_point
        self.can_run, self.wait_for, self.stall = execution.can_run, execution.wait_for, execution.stall
        self.check_alive, self.crash = execution.check_alive, execution.crash
        self.run, self.close = execution.run, execution.close
        self.access = CurrentMemory(self)
        self.context = KernelContext(self)
        self.asi = AsiDriver(self, protocol)
        self.interrupts = Interrupts(self)
        self.faults = PageFaults(self)
        self.entry = Crossings(self)
        self.uaccess = UserAccess(self)
        self.sched = Scheduler(self, config.timer_period)
        self.smp = Smp(self)
        self.flusher = Shootdown(self)
        self._results: defaultdict[str, list[bytes]] = defaultdict(list)
        self._next_pid = 1
        self._dead_stacks: list[Stack] = []
        for cpu in self.cpus:
            cpu.next_tick = config.timer_period

    @property
    def current(self) -> Task:
        """The running CPU's task."""
        return self.cpu.task

    # Interrupts on and off.

    @contextmanager
    def irqs_off(self) -> Iterator[None]:
        """Run with interrupts off: `local_irq_save()` to `local_irq_restore()`."""
        enabled, self.cpu.hw.interrupts_enabled = self.cpu.hw.interrupts_enabled, False
        try:
            yield
        finally:
            if enabled and not self.execution.given_up:
                self.irq_enable()

    def irq_enable(self) -> None:
        """Turn interrupts on and take those that wait: `local_irq_enable()`."""
        cpu = self.cpu
        cpu.hw.interrupts_enabled = True
        if self.running and cpu.hw.apic.pending is not None:
            self.interrupts.deliver(cpu)

    # Tasks.

    def new_task(
        self,
        run: Callable[[], object],
        *,
        comm: str,
        mm: MmStruct | None,
        tgid: int | None = None,
        cpu: int | None = None,
        pinned: bool = False,
        cookie: int | None = None,
    ) -> Task:
        """Make a task that does not run yet: `copy_process()`. Raises OutOfMemoryError.

        :param run: What it does, in user mode if it has an mm. It ends with TaskExit, raised in kernel mode.
        :param mm: Its address space, which counts one user for it.
        :param cpu: Where it is to run first; the current CPU if None.
        :param pinned: It may run only there.
        :param cookie: Its core-scheduling cookie; tasks of an mm have the same by default.
        """
        while self._dead_stacks:
            self.stacks.free(self._dead_stacks.pop())
        stack = self.stacks.alloc()
        pid, self._next_pid = self._next_pid, self._next_pid + 1
        where = self.cpu.number if cpu is None else cpu
        task = Task(pid, tgid or pid, comm, mm, run, cpu=where, active_mm=mm)
        task.cookie = cookie if cookie is not None else mm.id if mm is not None else 0
        task.allowed = frozenset({where}) if pinned else None
        task.kernel_stack = stack
        task.stack = (stack.base, stack.top)
        task.greenlet = self.execution.new_greenlet(lambda: self._task_main(task))
        self.tasks[pid] = task
        return task

    def start(self, task: Task) -> None:
        """Let a new task run: `wake_up_new_task()`."""
        self.sched.wake(task)

    def _task_main(self, task: Task) -> None:
        """What is at the bottom of a task's stack."""
        code = 0
        try:
            # The first switch to it comes from the middle of the scheduler, with interrupts off.
            if task.mm is not None:
                self.entry.return_from_fork()
            else:
                self.irq_enable()
            task.run()
        except TaskExit as end:
            code = end.code
        self._end(task, code)

    def _end(self, task: Task, code: int) -> None:
        """End the current task, from kernel mode; the greenlet falls back to the hub afterwards."""
        self.contexts.exit_mm(task)
        task.exit_code = code
        task.status = TaskStatus.DEAD
        task.calls.clear()
        del self.tasks[task.pid]
        if task.kernel_stack is not None:
            self._dead_stacks.append(task.kernel_stack)
        self.sched.finish(task)

    # What happens, for observers and reports.

    @contextmanager
    def function(self, name: str, module: str | None = None) -> Iterator[None]:
        """Run as a kernel function: its text is fetched, and it is on the call stack."""
        self.access.enter(Symbol(name, module))
        try:
            yield
        finally:
            self.access.leave()

    def running_function(self, *, handler: bool = False) -> str:
        """Return the kernel function that the running CPU executes, with its callers; not the running `handler`."""
        calls = self.current.calls[:-1] if handler else self.current.calls
        return " <- ".join(symbol.name for symbol in reversed(calls)) or "no function"

    def allocated_by(self) -> str:
        """Return the function that allocates, for sensitivity policies."""
        return next((call.name for call in reversed(self.current.calls) if call.name not in _ALLOCATORS), "")

    def touch(self, cpu: CpuContext, access: Access, vaddr: int, size: int) -> None:
        """Tell observers of an access, if it is the first of its kind to its page since the last crossing."""
        if cpu.asi_only or cpu.uncounted or not self.observers:
            return
        for page in range(vaddr >> 12, (vaddr + max(size, 1) - 1 >> 12) + 1):
            key = page << 2 | access
            if key in cpu.touched:
                continue
            cpu.touched.add(key)
            address = max(vaddr, page << 12)
            paddr = self.translate(cpu, address, access)
            for observer in self.observers:
                observer.touch(cpu.number, access, address, paddr)

    def translate(self, cpu: CpuContext, vaddr: int, access: Access = Access.READ) -> int:
        """Return the physical address behind one of the loaded mm's unrestricted space, `NOT_MAPPED` if none is."""
        mode = cpu.hw.mode._replace(ac=True, user=False)
        try:
            return walk(self.physical, cpu.loaded_mm.pgd << 12, vaddr, access, mode, mark=False).paddr
        except (PageFault, GeneralProtection):
            return NOT_MAPPED

    def mutex(self, name: str) -> Mutex:
        """Make a sleeping lock."""
        return Mutex(self, name)

    def report_result(self, key: str, value: bytes | int | str) -> None:
        """Note something that a program or a guest saw; notes of one key keep their order."""
        data = value if isinstance(value, bytes) else str(value).encode()
        self._results[key].append(data)

    def results(self) -> bytes:
        """Return everything noted, in a form that depends on nothing else."""
        parts: list[bytes] = []
        for key in sorted(self._results):
            for value in self._results[key]:
                parts += [key.encode(), b"\0", str(len(value)).encode(), b"\0", value, b"\n"]
        return b"".join(parts)

    def report(self) -> MachineReport:
        """Return what has happened so far."""
        noted = {key: list(values) for key, values in self._results.items()}
        for add in self.at_report:
            add()
        results = self.results()
        self._results = defaultdict(list, noted)
        tlbs = [cpu.hw.tlb for cpu in self.cpus]
        counts = TlbCounts(
            hits=sum(tlb.hits for tlb in tlbs),
            misses=sum(tlb.misses for tlb in tlbs),
            flushes=sum(tlb.flushes for tlb in tlbs),
            shootdowns=self.tally.shootdowns,
            ipis=self.tally.ipis,
        )
        return MachineReport.of(
            self.tally,
            self.protocol.config,
            tlb=counts,
            hw_cr3_writes=sum(cpu.hw.cr3_writes for cpu in self.cpus),
            clock=tuple(cpu.time for cpu in self.cpus),
            results=results,
        )


def _kill(_task: Task) -> None:
    raise TaskExit(137)
