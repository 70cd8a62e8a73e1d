"""What the kernel's parts ask of the kernel: each takes the doors that it needs, not the whole house.

A part says it in its constructor's annotation, by a class of its own that puts the doors together. Only `Kernel` has
all of them; a test can have as few as the part needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from asikit.machine.kernel.core.asi import AsiDriver
    from asikit.machine.kernel.core.config import MachineConfig
    from asikit.machine.kernel.core.context import KernelContext
    from asikit.machine.kernel.core.domains import DomainTables
    from asikit.machine.kernel.core.entry import Crossings
    from asikit.machine.kernel.core.fault import PageFaults
    from asikit.machine.kernel.core.interrupts import Interrupts
    from asikit.machine.kernel.core.invariants import InvariantChecker
    from asikit.machine.kernel.core.memory import CurrentMemory
    from asikit.machine.kernel.core.memory_context import MemoryContexts
    from asikit.machine.kernel.core.observer import Observer
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.report import MachineTally
    from asikit.machine.kernel.core.sched import Scheduler
    from asikit.machine.kernel.core.speculation import Speculation
    from asikit.machine.kernel.core.task import Task
    from asikit.machine.mm import DirectMap, Layout, PageAllocator, PageTables
    from asikit.machine.x86 import Access, PhysicalMemory


class Processors(Protocol):
    """The processors, and what runs on them. `cpus` are all of them, `cpu` the running one."""

    cpus: list[CpuContext]
    cpu: CpuContext
    running: bool

    @property
    def current(self) -> Task:
        """The running CPU's task."""
        ...


class Points(Protocol):
    """Where another CPU may go on, or an interrupt come; `asikit.machine.kernel.core.execution` has them."""

    @property
    def point(self) -> Callable[[str], None]:
        """Called where the running CPU may be interrupted, with the name of the place."""
        ...

    @property
    def at_point(self) -> Callable[[CpuContext, str], None]:
        """As `point`, for a given CPU."""
        ...

    @property
    def micro_op_point(self) -> Callable[[CpuContext, str], None]:
        """Called after each micro-operation of a CPU, with its path."""
        ...

    @property
    def wait_for(self) -> WaitFor:
        """Lets other CPUs go on until something is so."""
        ...

    @property
    def check_alive(self) -> Callable[[], None]:
        """Ends the greenlet that runs, if the machine was given up meanwhile."""
        ...

    @property
    def crash(self) -> Callable[[BaseException], NoReturn]:
        """Stops the machine with an error."""
        ...


class WaitFor(Protocol):
    """`Execution.wait_for`."""

    def __call__(
        self, cpu: CpuContext, what: str, ready: Callable[[], bool], *, interruptible: bool = ..., idle: bool = ...
    ) -> None:
        """Let other CPUs go on until it is so."""
        ...


class Watched(Protocol):
    """Who is told what happens, what counts it, and who checks it."""

    observers: list[Observer]
    invariants: InvariantChecker | None
    tally: MachineTally

    def function(self, name: str, module: str | None = None) -> AbstractContextManager[None]:
        """Run as a kernel function."""
        ...

    def running_function(self, *, handler: bool = False) -> str:
        """Return the kernel function that runs, with its callers."""
        ...

    def touch(self, cpu: CpuContext, access: Access, vaddr: int, size: int) -> None:
        """Tell observers of an access."""
        ...


class Attacked(Protocol):
    """Who attacks the machine, if anybody."""

    speculation: Speculation | None


class Interruptible(Protocol):
    """Interrupts: off, on, and what delivers them."""

    interrupts: Interrupts

    def irqs_off(self) -> AbstractContextManager[None]:
        """Run with interrupts off."""
        ...

    def irq_enable(self) -> None:
        """Turn interrupts on and take those that wait."""
        ...


class Described(Protocol):
    """The machine's description, and its virtual address space."""

    config: MachineConfig
    layout: Layout


class PhysicallySeen(Protocol):
    """Physical memory, for looking at it."""

    physical: PhysicalMemory


class Memory(Protocol):
    """Memory as the running CPU's kernel code sees it."""

    access: CurrentMemory


class Allocating(Protocol):
    """Page tables, page frames and the direct map."""

    allocator: PageAllocator
    direct_map: DirectMap
    tables: PageTables


class AddressSpaces(Protocol):
    """Address spaces, restricted and not, and what memory management knows of the running CPU."""

    contexts: MemoryContexts
    domains: DomainTables
    context: KernelContext


class Transitions(Protocol):
    """Entries, faults and the protocol's transitions."""

    asi: AsiDriver
    entry: Crossings
    faults: PageFaults


class Scheduled(Protocol):
    """The scheduler."""

    sched: Scheduler
