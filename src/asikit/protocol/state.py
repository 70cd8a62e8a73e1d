"""The state that transitions work on: what is per CPU, per task, per hardware thread and per core.

States are named tuples of small integers, because checkers hash them by the million.
"""

from __future__ import annotations

from typing import NamedTuple

from asikit.protocol.classes import NO_DOMAIN, Space
from asikit.protocol.taints import NO_TAINT, Taint


class CpuState(NamedTuple):
    """Per-CPU state: stays with the hardware thread when tasks come and go.

    :ivar curr_asi: The domain (a `Space`) whose restricted address space this CPU is in, or about to be in; 0 is none.
    :ivar taints: What may linger in the microarchitecture (a `Taint`), `asi_taints`.
    :ivar cr3: The address space (a `Space`) that CR3 selects.
    :ivar user_cr3: CR3 selects the user half of it (PTI).
    :ivar tlb_stale: Bit n set when the TLB may hold outdated entries of `Space` n of the loaded mm: the generation last
        seen by this CPU is not the current one. Whoever increments a generation sets it, on every CPU.
    :ivar tlb_read: Bit n set while the generation of `Space` n that this CPU has read, and is flushing for, is still
        the current one. Whoever increments a generation clears it, on every CPU.
    :ivar preemptible: Preemption is on. Set by the kernel around its calls; entry code runs with 0.
    """

    curr_asi: int = int(NO_DOMAIN)
    taints: int = int(NO_TAINT)
    cr3: int = int(Space.UNRESTRICTED)
    user_cr3: int = 0
    tlb_stale: int = 0
    tlb_read: int = 0
    preemptible: int = 0


class TaskState(NamedTuple):
    """Per-task state, `thread.asi_state`: goes with the task.

    :ivar target: The domain (a `Space`) to be restored before the task's untrusted code goes on; 0 when relaxed.
    :ivar intr_nest_depth: Handlers open inside the critical section.
    """

    target: int = int(NO_DOMAIN)
    intr_nest_depth: int = 0


class Mailbox(NamedTuple):
    """A hardware thread's words that its sibling reads or writes.

    :ivar stunned: Written by the sibling: no untrusted code may run here.
    :ivar untrusted: Untrusted code runs here, or the last check before it is passed.
    :ivar stun_ipi: The sibling's interrupt is on its way.
    """

    stunned: int = 0
    untrusted: int = 0
    stun_ipi: int = 0


class CoreState(NamedTuple):
    """What the two hardware threads of a core share."""

    first: Mailbox = Mailbox()
    second: Mailbox = Mailbox()


class Frame(NamedTuple):
    """A place in a program: the next micro-operation of `program` is the one at `pc`."""

    program: str
    pc: int = 0


class ThreadState(NamedTuple):
    """One hardware thread between two micro-operations.

    `frames` are the transitions in progress, innermost last: an interrupt between two micro-operations puts its own on
    top. Without frames the thread runs ordinary code, untrusted or the kernel's.
    """

    cpu: CpuState
    task: TaskState
    frames: tuple[Frame, ...] = ()


class State(NamedTuple):
    """One CPU and its current task between two happenings; what `Protocol.happen` maps to the next.

    The core's second thread is the sibling; as only one thread is followed, it stands still in the kernel.
    """

    cpu: CpuState
    task: TaskState
    core: CoreState

    @property
    def is_restricted(self) -> bool:
        """`asi_is_restricted()`."""
        return self.cpu.curr_asi != NO_DOMAIN

    @property
    def is_tense(self) -> bool:
        """`asi_is_tense()`: between an enter and the relax after it."""
        return self.task.target != NO_DOMAIN

    @property
    def is_relaxed(self) -> bool:
        """`asi_is_relaxed()`."""
        return self.task.target == NO_DOMAIN

    @property
    def in_critical_section(self) -> bool:
        """`asi_in_critical_section()`: tense, and in no handler."""
        return self.is_tense and self.task.intr_nest_depth == 0

    @property
    def taints(self) -> Taint:
        """The CPU's taints."""
        return Taint(self.cpu.taints)

    @property
    def space(self) -> Space:
        """The address space that CR3 selects."""
        return Space(self.cpu.cr3)

    def __str__(self) -> str:
        """Text for people: `tense at depth 1 for restricted kvm, curr_asi none, in unrestricted, KERNEL_DATA`."""
        task = f"tense at depth {self.task.intr_nest_depth} for {Space(self.task.target).label}"
        inside = Space(self.cpu.curr_asi).label if self.is_restricted else "none"
        taints = "|".join(taint.name or "" for taint in self.taints) or "no taint"
        return f"{'relaxed' if self.is_relaxed else task}, curr_asi {inside}, in {self.space.label}, {taints}"
