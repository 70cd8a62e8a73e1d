"""The modelled kernel: what its parts share, and the points at which something may come between two steps.

Every task is a greenlet, and so is each CPU's idle loop; exactly one runs at any instant, on `Kernel.cpu`. All code of
kernel and programs passes *points* (`Kernel.point`, each access, each micro-operation). At a point interrupts and NMIs
are delivered, as nested calls on the running greenlet's stack, and the CPU may hand over to another one's greenlet.
`Kernel.run` is the hub: greenlets come back to it only when the run is over, a task has ended, or something is wrong.
"""

from collections import defaultdict
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from greenlet import GreenletExit, getcurrent, greenlet

from asikit.kernel.asi import AsiDriver
from asikit.kernel.context import KernelContext, Mutex
from asikit.kernel.entry import Entry
from asikit.kernel.errors import DeadlockError, MachineError
from asikit.kernel.fault import PageFaults
from asikit.kernel.interleave import FOREVER, Act
from asikit.kernel.interrupts import LOCAL_TIMER_VECTOR, Interrupts
from asikit.kernel.memory import CurrentMemory
from asikit.kernel.percpu import CpuContext, Wait
from asikit.kernel.report import Report, Tally, TlbCounts
from asikit.kernel.sched import Scheduler
from asikit.kernel.smp import Shootdown, Smp
from asikit.kernel.task import Task, TaskExit, TaskStatus
from asikit.kernel.text import KernelText
from asikit.kernel.uaccess import UserAccess
from asikit.mm import Symbol
from asikit.x86 import Access, GeneralProtection, PageFault, walk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from asikit.kernel.config import MachineConfig
    from asikit.kernel.domains import DomainTables
    from asikit.kernel.interleave import Action, Interleaver
    from asikit.kernel.invariants import InvariantChecker
    from asikit.kernel.memory_context import MemoryContexts
    from asikit.kernel.observer import Observer
    from asikit.kernel.speculation import Speculation
    from asikit.kernel.userland import Userland
    from asikit.mm import (
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
    from asikit.protocol import Protocol
    from asikit.x86 import PhysicalMemory

__all__ = ["Kernel"]

_ALLOCATORS = frozenset(
    {"__alloc_pages", "get_page_from_freelist", "new_slab", "allocate_slab", "kmem_cache_alloc", "__kmalloc", "kmalloc"}
)
"""Functions that allocate for somebody else: the innermost one outside of these is who allocated."""


class Kernel:
    """One machine's kernel. `asikit.kernel.boot` makes it and fills in what is declared here without a value.

    What other parts use of it:

    :ivar config: The machine's description; `protocol` its protocol; `layout` its virtual address space.
    :ivar physical: Physical memory, for looking at it; kernel code uses `access`.
    :ivar access: Memory as the running CPU's kernel code sees it.
    :ivar cpus: All CPUs; `cpu` is the running one and `current` its task.
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

    allocator: "PageAllocator"
    contexts: "MemoryContexts"
    direct_map: "DirectMap"
    domains: "DomainTables"
    ephmap: "Ephmap"
    page_cache: "PageCache"
    percpu: "PerCpu"
    services: "MmServices"
    slab: "SlabAllocator"
    stacks: "KernelStacks"
    tables: "PageTables"
    userland: "Userland"
    vmalloc: "Vmalloc"

    def __init__(  # noqa: PLR0913, PLR0917 - what a machine is made of
        self,
        config: "MachineConfig",
        protocol: "Protocol",
        layout: "Layout",
        physical: "PhysicalMemory",
        cpus: "Sequence[CpuContext]",
        interleaver: "Interleaver",
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
        self.tally = Tally()
        self.tasks: dict[int, Task] = {}
        self.running = False
        self.stopped = False
        self.exit_work: Callable[[Task], bool] | None = None
        self.out_of_memory: Callable[[Task], None] = _kill
        self.at_report: list[Callable[[], None]] = []
        self.text = KernelText(layout)
        self.access = CurrentMemory(self)
        self.context = KernelContext(self)
        self.asi = AsiDriver(self, protocol)
        self.interrupts = Interrupts(self)
        self.faults = PageFaults(self)
        self.entry = Entry(self)
        self.uaccess = UserAccess(self)
        self.sched = Scheduler(self, config.timer_period)
        self.smp = Smp(self)
        self.flusher = Shootdown(self)
        self._results: defaultdict[str, list[bytes]] = defaultdict(list)
        self._next_pid = 1
        self._hub: greenlet | None = None
        self._dead_stacks: list[Stack] = []
        self._dead = False
        self._limit: int | None = None
        for cpu in self.cpus:
            cpu.next_tick = config.timer_period

    @property
    def current(self) -> Task:
        """The running CPU's task."""
        return self.cpu.task

    # Points.

    def point(self, name: str) -> None:
        """Pass a point: time goes on, and something may come in between."""
        cpu = self.cpu
        cpu.clock += 1
        if cpu.clock >= cpu.due:
            self.at_point(cpu, name)

    tick = point

    def micro_op_point(self, cpu: CpuContext, path: str) -> None:
        """Pass a point between two micro-operations: no time goes by."""
        cpu.slice_end -= 1
        if cpu.clock >= cpu.slice_end or self.interleaver.every_point or cpu.hw.apic.nmi_pending:
            self.at_point(cpu, path)

    def at_point(self, cpu: CpuContext, name: str) -> None:
        """Do what is due at a point that the running CPU passes."""
        self.check_alive()
        if not self.running:
            cpu.due = FOREVER
            return
        if self._limit is not None and sum(each.time for each in self.cpus) >= self._limit:
            self._to_hub()
        interleaver = self.interleaver
        if interleaver.every_point:
            for action in interleaver.at(name, cpu.number):
                self._act(cpu, action)
        if not cpu.uncounted and cpu.time >= cpu.next_tick:
            self._timer(cpu)
        self.interrupts.deliver(cpu)
        cpu = self.cpu  # a task preempted in user mode may go on elsewhere
        if cpu.clock >= cpu.slice_end:
            self.stall()
            cpu = self.cpu
            cpu.slice_end = cpu.clock + interleaver.slice(cpu.number)
            if self.interrupts.deliverable(cpu) and not cpu.in_guest:
                self.interrupts.deliver(cpu)
                cpu = self.cpu
        self._reckon(cpu)

    def _reckon(self, cpu: CpuContext) -> None:
        """Work out when a CPU has to be looked at next."""
        if self.interleaver.every_point:
            cpu.due = 0
            return
        due = cpu.slice_end
        if not cpu.uncounted:
            due = min(due, cpu.next_tick + cpu.lost)
        cpu.due = due

    def _timer(self, cpu: CpuContext) -> None:
        period = self.config.timer_period
        cpu.next_tick += period * (1 + (cpu.time - cpu.next_tick) // period)
        self.interrupts.post(cpu, LOCAL_TIMER_VECTOR)

    def _act(self, cpu: CpuContext, action: "Action") -> None:
        target = cpu if action.cpu is None else self.cpus[action.cpu]
        if action.act is Act.NMI:
            self.interrupts.post_nmi(target)
        elif action.act is Act.INTERRUPT:
            self.interrupts.post(target, self.config.device_vector)
        elif target is not cpu and self.can_run(target):
            self._switch_cpu(cpu, target)

    # Handing over.

    def can_run(self, cpu: CpuContext) -> bool:
        """Return whether a CPU would get anywhere if it went on."""
        waiting = cpu.waiting
        return waiting is None or waiting.ready() or self._takes_interrupt(cpu)

    def _takes_interrupt(self, cpu: CpuContext) -> bool:
        apic = cpu.hw.apic
        if apic.nmi_pending:
            return True
        # Before untrusted code a CPU spins with interrupts on, though its flag says off.
        return apic.pending is not None and (cpu.hw.interrupts_enabled or self._resuming(cpu))

    @staticmethod
    def _resuming(cpu: CpuContext) -> bool:
        return cpu.waiting is not None and cpu.waiting.interruptible

    def _switch_cpu(self, cpu: CpuContext, target: CpuContext) -> None:
        """Let another CPU's greenlet go on; returns when somebody lets this one go on."""
        cpu.suspended = getcurrent()
        self.cpu = target
        target.suspended.switch()
        self.check_alive()

    def wait_for(
        self,
        cpu: CpuContext,
        what: str,
        ready: "Callable[[], bool]",
        *,
        interruptible: bool = False,
        idle: bool = False,
    ) -> None:
        """Let others run, because this CPU cannot go on until `ready`; it may come back earlier, so ask in a loop.

        Ends the run if nobody can run: it is over if there are no tasks left, else a deadlock.
        """
        cpu.waiting = Wait(what, ready, interruptible=interruptible, idle=idle)
        others = [other.number for other in self.cpus if other is not cpu and self.can_run(other)]
        if others:
            self._switch_cpu(cpu, self.cpus[self.interleaver.choose(cpu.number, others)])
        elif not self.can_run(cpu):
            if self.tasks:
                self.crash(DeadlockError(self._who_waits()))
            self._to_hub()
        cpu.waiting = None

    def _who_waits(self) -> str:
        """Return who waits for what."""
        parts = [
            f"{task} waits for {task.waits_for}" for task in self.tasks.values() if task.status is TaskStatus.BLOCKED
        ]
        parts += [
            f"cpu {cpu.number} ({cpu.task}) waits for {cpu.waiting.what}"
            for cpu in self.cpus
            if cpu.waiting is not None and not cpu.waiting.idle
        ]
        parts += [f"{task} waits for a CPU" for cpu in self.cpus for task in cpu.runqueue]
        return "nothing can run any more: " + "; ".join(parts)

    def stall(self) -> None:
        """Let another CPU go on while this one's instruction takes its time: no interrupt comes before it is done."""
        cpu = self.cpu
        others = [other.number for other in self.cpus if other is not cpu and self.can_run(other)]
        if others:
            self._switch_cpu(cpu, self.cpus[self.interleaver.choose(cpu.number, others)])

    # Interrupts on and off.

    @contextmanager
    def irqs_off(self) -> "Iterator[None]":
        """Run with interrupts off: `local_irq_save()` to `local_irq_restore()`."""
        enabled, self.cpu.hw.interrupts_enabled = self.cpu.hw.interrupts_enabled, False
        try:
            yield
        finally:
            if enabled and not self._dead:
                self.irq_enable()

    def irq_enable(self) -> None:
        """Turn interrupts on and take those that wait: `local_irq_enable()`."""
        cpu = self.cpu
        cpu.hw.interrupts_enabled = True
        if self.running and cpu.hw.apic.pending is not None:
            self.interrupts.deliver(cpu)

    # Tasks.

    def new_task(  # noqa: PLR0913 - what there is to say about a task
        self,
        run: "Callable[[], object]",
        *,
        comm: str,
        mm: "MmStruct | None",
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
        task.greenlet = greenlet(lambda: self._task_main(task), self._parent())
        self.tasks[pid] = task
        return task

    def start(self, task: Task) -> None:
        """Let a new task run: `wake_up_new_task()`."""
        self.sched.wake(task)

    def _parent(self) -> greenlet:
        """Return the greenlet that tasks' greenlets fall back to: the hub's, which is the scenario's own."""
        if self._hub is not None:
            return self._hub
        return getcurrent()

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

    # The run.

    def run(self, limit: int | None = None) -> None:
        """Run until all tasks have ended, or until `limit` units of logical time, of all CPUs together, have passed.

        Raises DeadlockError, InvariantError, KernelOopsError, and what scenarios' programs raise.
        """
        if self._dead:
            raise MachineError("this machine's run has ended in an error; make another machine")
        self._hub = getcurrent()
        self._limit = None if limit is None else sum(cpu.time for cpu in self.cpus) + limit
        self.running = True
        self._done = False
        self._start_idle()
        for cpu in self.cpus:
            cpu.due = 0
            if cpu.time >= cpu.next_tick:  # what set the scenario up ran without a timer
                cpu.next_tick = cpu.time + self.config.timer_period
        try:
            while not self._done:
                self.cpu.suspended.switch()
        except BaseException as error:
            for late in self._kill_all():  # what a program raises on its way out must not hide the error that there is
                error.add_note(f"while it was unwound: {late!r}")
            raise
        finally:
            self.running = False
        self.stopped = bool(self.tasks)
        if not self.stopped:
            self._stop_idle()

    def _start_idle(self) -> None:
        for cpu in self.cpus:
            if cpu.idle.greenlet is None:
                cpu.idle.greenlet = greenlet(lambda cpu=cpu: self.sched.idle(cpu), self._hub)
                if cpu.task is cpu.idle:
                    cpu.suspended = cpu.idle.greenlet

    def _stop_idle(self) -> None:
        """Let go of the idle loops' greenlets, which would keep the machine in memory for ever."""
        for cpu in self.cpus:
            idle, cpu.idle.greenlet, cpu.waiting = cpu.idle.greenlet, None, None
            self._dead = True
            if idle is not None:
                idle.throw(GreenletExit)
            self._dead = False
            cpu.idle.calls.clear()
            self.cpu = cpu
            if cpu.thread.task.target:  # what is set up before the next run is no code of a critical section
                self.asi.leave_idle()
        self.cpu = self.cpus[0]
        self.cpu.hw.interrupts_enabled = True

    def _kill_all(self) -> list[Exception]:
        """Unwind every greenlet, so that nothing of the machine stays behind; returns what they raised meanwhile."""
        raised: list[Exception] = []
        self._dead = True
        for cpu in self.cpus:
            cpu.due = 0  # kernel code that is being unwound gets no further than its next access
        tasks = [*self.tasks.values(), *(cpu.idle for cpu in self.cpus)]
        greenlets = [task.greenlet for task in tasks] + [cpu.suspended for cpu in self.cpus]
        for each in greenlets:
            if each is not None and not each.dead and each is not getcurrent():
                try:
                    each.throw(GreenletExit)
                except Exception as late:  # noqa: BLE001 - whatever a program raises; the others go on unwinding
                    raised.append(late)
        return raised

    def close(self) -> None:
        """Unwind all tasks of a machine that is not to go on."""
        if not self._dead:
            for late in self._kill_all():
                raise late

    def check_alive(self) -> None:
        """After another greenlet ran: raise GreenletExit if the machine was given up meanwhile."""
        if self._dead:
            raise GreenletExit

    def _to_hub(self) -> None:
        """Leave the run, from the running greenlet; it goes on with the next run."""
        self._done = True
        self.cpu.suspended = getcurrent()
        assert self._hub is not None  # noqa: S101 - a greenlet of ours runs, so there is a hub
        self._hub.switch()
        self.check_alive()

    def crash(self, error: BaseException) -> NoReturn:
        """End the run with an error, past whatever the current program would catch."""
        hub = self._hub
        if hub is None or hub is getcurrent() or not self.running:
            raise error
        error.__traceback__ = None
        hub.throw(error)
        raise GreenletExit

    # What happens, for observers and reports.

    @contextmanager
    def function(self, name: str, module: str | None = None) -> "Iterator[None]":
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
        """Return the physical address behind an address in the loaded mm's unrestricted space; -1 if there is none."""
        mode = cpu.hw.mode._replace(ac=True, user=False)
        try:
            return walk(self.physical, cpu.loaded_mm.pgd << 12, vaddr, access, mode, mark=False).paddr
        except (PageFault, GeneralProtection):
            return -1

    def mutex(self, name: str) -> Mutex:
        """Make a sleeping lock."""
        return Mutex(self, name)

    def report_result(self, key: str, value: "bytes | int | str") -> None:
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

    def report(self) -> Report:
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
        return Report.of(
            self.tally,
            self.protocol.config,
            tlb=counts,
            hw_cr3_writes=sum(cpu.hw.cr3_writes for cpu in self.cpus),
            clock=tuple(cpu.time for cpu in self.cpus),
            results=results,
        )


def _kill(_task: Task) -> None:
    raise TaskExit(137)
