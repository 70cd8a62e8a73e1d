"""What the kernel keeps for each CPU (hardware thread), and for each core.

Most of it is what Linux has in per-CPU variables (`cpu_tlbstate`, the run queue's `curr`); the protocol's state is the
value that `asikit.protocol` works on, replaced by the driver (`AsiDriver`) at each micro-operation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from greenlet import greenlet

    from asikit.machine.kernel.core.memory_context import MemoryContext
    from asikit.machine.kernel.core.report import RoundTrip
    from asikit.machine.kernel.core.task import Task
    from asikit.machine.x86 import Cpu
    from asikit.protocol import CoreState, SeenGenerations, ThreadState

__all__ = ["Asid", "CpuContext", "KernelCore", "Wait"]


@dataclass(slots=True)
class Asid:
    """One of a CPU's dynamic ASIDs, `struct tlb_context`.

    :ivar mm: Whose translations the TLB holds under it; None for nobody's.
    :ivar tlb_gen: Up to which flush of that mm they are right.
    :ivar outdated: Kernel addresses were flushed since it was loaded last, `invalidate_other`.
    """

    mm: int | None = None
    tlb_gen: int = 0
    outdated: bool = False


class Wait(NamedTuple):
    """Why a CPU does not go on: what for, in words, and whether it could by now.

    `interruptible`: it takes interrupts whatever its flag says, as before untrusted code. `idle`: it has nothing to do.
    """

    what: str
    ready: Callable[[], bool]
    interruptible: bool = False
    idle: bool = False


@dataclass(eq=False)
class KernelCore:
    """A core: the words that its threads share.

    :ivar cpus: Its threads.
    :ivar state: The protocol's mailboxes.
    :ivar cookie: Core scheduling: whose turn it is, None for anybody's.
    """

    number: int
    state: CoreState
    cpus: list[CpuContext] = field(default_factory=list)
    cookie: int | None = None


@dataclass(eq=False)
class CpuContext:
    """One CPU as the kernel sees it.

    :ivar number: Its number, from 0.
    :ivar hw: The processor.
    :ivar core: Its core; `who` is its thread there, 0 or 1.
    :ivar thread: The protocol's state of it, its current task's part included.
    :ivar task: The current task, `idle` the one that runs when there is none other.
    :ivar picked: The task that it is switching to, None otherwise.
    :ivar runqueue: Tasks that wait for it, first come first served.
    :ivar need_resched: The scheduler is to be called on the way back to user mode.
    :ivar slice_start: Time at which the current task got the CPU.
    :ivar loaded_mm: Whose page tables are loaded, `cpu_tlbstate.loaded_mm`; `loaded_asid` under which ASID.
    :ivar lazy: The current task has no mm and borrows the loaded one's.
    :ivar asids: The dynamic ASIDs; `next_asid` is the one to be given away next.
    :ivar seen: Which generations of domains the TLB is right for.
    :ivar clock: Points passed: accesses, instructions, system calls; what the trace calls retired instructions.
    :ivar due: At this clock something has to be looked at: the fast paths compare with it.
    :ivar lost: Points that do not count as time, being ASI's own; `uncounted` is the depth of code that does such.
    :ivar next_tick: Time (`clock - lost`) of the next timer interrupt.
    :ivar slice_end: Clock at which the CPU hands over.
    :ivar suspended: The greenlet that goes on when the CPU goes on.
    :ivar waiting: Set while it cannot go on.
    :ivar in_guest: It runs a guest.
    :ivar hardirq: Depth of interrupt handlers and NMIs.
    :ivar asi_only: Depth of what only ASI does: observers are not told.
    :ivar touched: What was touched since the last crossing, as page number * 4 + kind of access.
    :ivar trip: The round trip in progress, None in untrusted code or if none was entered yet.
    :ivar returned: The return to untrusted code in progress was told to observers; `resuming_guest`: it is a VM entry.
    :ivar by_iret: The last return to user mode was by IRET, not by SYSRET.
    :ivar walks: Kernel-mode page faults in progress: address and access, then whether it is accessible by now.
    :ivar host_cr3: VMCS' HOST_CR3.
    :ivar uncounted_from: Clock at which the outermost uncounted code began.
    """

    number: int
    hw: Cpu
    core: KernelCore
    who: int
    thread: ThreadState
    runqueue: deque[Task]
    asids: list[Asid]
    seen: SeenGenerations
    loaded_mm: MemoryContext = field(init=False)
    task: Task = field(init=False)
    idle: Task = field(init=False)
    suspended: greenlet = field(init=False)
    picked: Task | None = None
    need_resched: bool = False
    slice_start: int = 0
    loaded_asid: int = 0
    next_asid: int = 1
    lazy: bool = True
    clock: int = 0
    due: int = 0
    lost: int = 0
    uncounted: int = 0
    uncounted_from: int = 0
    next_tick: int = 0
    slice_end: int = 0
    waiting: Wait | None = None
    in_guest: bool = False
    hardirq: int = 0
    asi_only: int = 0
    touched: set[int] = field(default_factory=set)
    trip: RoundTrip | None = None
    returned: bool = False
    resuming_guest: bool = False
    by_iret: bool = False
    walks: list[tuple[int, int] | bool] = field(default_factory=list)
    host_cr3: int = 0

    @property
    def time(self) -> int:
        """The logical time: points passed without those that only ASI makes."""
        return (self.uncounted_from if self.uncounted else self.clock) - self.lost

    @property
    def sibling(self) -> CpuContext | None:
        """The other thread of its core."""
        return self.core.cpus[1 - self.who] if len(self.core.cpus) > 1 else None

    @property
    def nested(self) -> bool:
        """Whether it runs a handler that interrupted kernel code, or any interrupt handler."""
        return self.hardirq > 0
