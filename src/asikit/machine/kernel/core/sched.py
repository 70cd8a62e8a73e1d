"""The scheduler: run queues, context switches, idle tasks, and core scheduling of hyperthreads (kernel/sched).

Every CPU has a queue, first come first served, and a time slice of one timer period. An idle CPU takes waiting tasks of
others. Kernel code is never preempted: a task goes on until it blocks or returns to user mode.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from greenlet import getcurrent

from asikit.machine.kernel.core import doors
from asikit.machine.kernel.core.interrupts import RESCHEDULE_VECTOR
from asikit.machine.kernel.core.task import TaskStatus
from asikit.machine.x86 import Invpcid
from asikit.protocol import Happening, Space

if TYPE_CHECKING:
    from asikit.machine.kernel.core.memory_context import MemoryContext
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.task import Task

__all__ = ["Scheduler"]


class _Kernel(
    doors.Processors, doors.Points, doors.Watched, doors.Interruptible, doors.AddressSpaces, doors.Transitions, Protocol
):
    """What is needed of the kernel here."""


class Scheduler:
    """Decides which task each CPU runs."""

    def __init__(self, kernel: _Kernel, slice_: int) -> None:
        self._kernel = kernel
        self._slice = slice_

    # Sleeping and waking.

    def block(self, waits_for: str) -> None:
        """Let the current task sleep until somebody wakes it; check the condition in a loop around this."""
        kernel = self._kernel
        task = kernel.current
        task.status, task.waits_for = TaskStatus.BLOCKED, waits_for
        self.schedule()

    def wake(self, task: Task) -> bool:
        """Make a sleeping or new task runnable: `try_to_wake_up()`. Returns False if it was awake."""
        if task.status not in {TaskStatus.BLOCKED, TaskStatus.NEW}:
            return False
        task.status, task.waits_for = TaskStatus.RUNNABLE, ""
        if not task.on_cpu:  # else its CPU is about to leave it, and sees to it then
            self._enqueue(task)
        return True

    def _enqueue(self, task: Task) -> None:
        cpu = self._select(task)
        cpu.runqueue.append(task)
        self._kick(cpu)

    def _select(self, task: Task) -> CpuContext:
        """Return the CPU to run a task: where it ran, if that idles, else any that does, else where it ran."""
        cpus = self._kernel.cpus
        last = cpus[task.cpu]
        allowed = [cpu for cpu in cpus if task.may_run_on(cpu.number)]
        if last in allowed and self._idles(last):
            return last
        return next((cpu for cpu in allowed if self._idles(cpu)), last if last in allowed else allowed[0])

    @staticmethod
    def _idles(cpu: CpuContext) -> bool:
        return cpu.task is cpu.idle and not cpu.runqueue

    def _kick(self, cpu: CpuContext) -> None:
        """See to it that a CPU looks at its queue, if it idles."""
        if cpu.task is not cpu.idle:
            return
        if cpu is self._kernel.cpu:
            cpu.need_resched = True
        else:
            self._kernel.interrupts.post(cpu, RESCHEDULE_VECTOR)

    def resched(self, cpu: CpuContext) -> None:
        """Make a CPU call the scheduler soon: `resched_curr()`."""
        if cpu is self._kernel.cpu:
            cpu.need_resched = True
        else:
            self._kernel.interrupts.post(cpu, RESCHEDULE_VECTOR)

    def yield_(self) -> None:
        """Let others of this CPU's queue run first: `sched_yield()`."""
        if self.may_pick(self._kernel.cpu):
            self.schedule()

    def cond_resched(self) -> None:
        """Let others run if it is time."""
        if self._kernel.cpu.need_resched:
            self.schedule()

    def migrate(self, task: Task) -> None:
        """Move a task to a CPU where it may run, after that changed; the current one at once."""
        kernel = self._kernel
        if task.may_run_on(task.cpu):
            return
        if task is kernel.current:
            self.schedule()
            return
        for cpu in kernel.cpus:
            if task in cpu.runqueue:
                cpu.runqueue.remove(task)
                self._enqueue(task)
            elif cpu.task is task:
                self.resched(cpu)

    def tick(self, cpu: CpuContext) -> None:
        """The timer's interrupt: end the current task's slice, if somebody waits."""
        if cpu.time - cpu.slice_start >= self._slice and (cpu.runqueue or self._sibling_starves(cpu)):
            cpu.need_resched = True

    # Picking.

    def may_pick(self, cpu: CpuContext) -> bool:
        """Return whether a CPU has, or could take, a task to run now."""
        return self._pick(cpu, take=False) is not None

    def _pick(self, cpu: CpuContext, *, take: bool) -> Task | None:
        wanted = self._cookie(cpu)
        for source in (cpu, *(other for other in self._kernel.cpus if other is not cpu)):
            for task in source.runqueue:
                if task.may_run_on(cpu.number) and wanted in (None, task.cookie):
                    if take:
                        source.runqueue.remove(task)
                    return task
            if cpu.task is not cpu.idle and cpu.task.status is TaskStatus.RUNNABLE:
                break  # only an idle CPU takes others' tasks
        return None

    def _cookie(self, cpu: CpuContext) -> int | None:
        """Return whose tasks a CPU may run beside its sibling's: None for anybody's."""
        sibling = cpu.sibling
        if sibling is None:
            return None
        running = sibling.picked or sibling.task
        if running is not sibling.idle:
            return running.cookie
        turn = cpu.core.cookie
        if turn is not None and not any(task.cookie == turn for task in (*cpu.runqueue, *sibling.runqueue)):
            return None
        return turn

    def _sibling_starves(self, cpu: CpuContext) -> bool:
        """Whether the sibling idles only because its tasks may not run beside this CPU's."""
        sibling = cpu.sibling
        return sibling is not None and sibling.task is sibling.idle and bool(sibling.runqueue)

    def _hand_core_over(self, cpu: CpuContext, prev: Task) -> None:
        """Core scheduling: after a slice it is the turn of who waited, on whichever thread of the core."""
        sibling = cpu.sibling
        if sibling is None:
            return
        waiting = next((task for task in (*sibling.runqueue, *cpu.runqueue) if task.cookie != prev.cookie), None)
        cpu.core.cookie = waiting.cookie if waiting is not None else None
        if waiting is not None and sibling.task is not sibling.idle and sibling.task.cookie != waiting.cookie:
            self.resched(sibling)

    # Switching.

    def schedule(self) -> None:
        """Switch to the next task, if there is another: `__schedule()`. Interrupts come back as they were."""
        kernel = self._kernel
        cpu = kernel.cpu
        enabled, cpu.hw.interrupts_enabled = cpu.hw.interrupts_enabled, False
        cpu.need_resched = False
        prev = cpu.task
        with kernel.function("schedule"):
            if prev is not cpu.idle and prev.status is TaskStatus.RUNNABLE:
                self._hand_core_over(cpu, prev)
            next_ = self._pick(cpu, take=True) or (prev if self._may_go_on(cpu, prev) else cpu.idle)
            cpu.picked, cpu.slice_start = next_, cpu.time
            if next_ is not prev:
                self._switch(cpu, prev, next_)
            else:
                cpu.picked = None
        if enabled:
            kernel.irq_enable()

    def _may_go_on(self, cpu: CpuContext, task: Task) -> bool:
        return (
            task.status is TaskStatus.RUNNABLE
            and task.may_run_on(cpu.number)
            and self._cookie(cpu) in (None, task.cookie)
        )

    def _requeue(self, cpu: CpuContext, prev: Task) -> None:
        """Put a task that its CPU has just left, and that could go on, where it waits for its next turn."""
        if prev.may_run_on(cpu.number):
            cpu.runqueue.append(prev)
        else:
            self._enqueue(prev)

    def finish(self, task: Task) -> None:
        """Leave a dead task for good: what is on its stack never goes on. Returns to the bottom of its greenlet."""
        kernel = self._kernel
        cpu = kernel.cpu
        cpu.hw.interrupts_enabled = False
        cpu.need_resched = False
        next_ = self._pick(cpu, take=True) or cpu.idle
        cpu.picked, cpu.slice_start = next_, cpu.time
        self._switch(cpu, task, next_)

    def _switch(self, cpu: CpuContext, prev: Task, next_: Task) -> None:
        """`context_switch()`."""
        kernel = self._kernel
        kernel.asi.run(Happening.CONTEXT_SWITCH)
        for observer in kernel.observers:
            observer.task_switch(cpu.number, next_)
        if next_.mm is None:
            next_.active_mm, cpu.lazy = prev.active_mm, True  # enter_lazy_tlb()
        else:
            cpu.lazy = False
            self.switch_mm(kernel.contexts.of(next_.mm))
        if prev.mm is None:
            prev.active_mm = None
        self._switch_to(cpu, prev, next_)

    def _switch_to(self, cpu: CpuContext, prev: Task, next_: Task) -> None:
        kernel = self._kernel
        dead = prev.status is TaskStatus.DEAD
        prev.asi, prev.frames = cpu.thread.task, cpu.thread.frames
        prev.uncounted = kernel.context.suspend_uncounted(cpu)
        cpu.task, cpu.picked = next_, None
        prev.on_cpu, next_.on_cpu = False, True
        if not prev.idle and prev.status is TaskStatus.RUNNABLE:
            self._requeue(cpu, prev)
        cpu.thread = cpu.thread._replace(task=next_.asi, frames=next_.frames)
        kernel.context.resume_uncounted(cpu, next_.uncounted)
        cpu.hw.ac = False
        kernel.tally.switches["task"] += 1
        if next_.cpu != cpu.number:
            kernel.tally.switches["migration"] += 1
            next_.cpu = cpu.number
        assert next_.greenlet is not None  # made with the task
        if dead:
            cpu.suspended = next_.greenlet
            return
        prev.greenlet = getcurrent()
        next_.greenlet.switch()
        kernel.check_alive()

    def switch_mm(self, context: MemoryContext) -> None:
        """Load an mm's page tables on the running CPU, unless they are loaded: `switch_mm_irqs_off()`."""
        kernel = self._kernel
        cpu = kernel.cpu
        old = cpu.loaded_mm
        if old is context:
            return
        kernel.asi.run(Happening.MM_SWITCH)
        kernel.tally.switches["mm"] += 1
        old.cpumask.discard(cpu.number)
        context.cpumask.add(cpu.number)
        asid, flush = self._choose_new_asid(cpu, context)
        cpu.loaded_mm, cpu.loaded_asid = context, asid
        for observer in kernel.observers:
            observer.mm_switch(cpu.number, context.id)
        cpu.touched.clear()
        space = Space(cpu.thread.cpu.cr3)  # the unrestricted one, if the protocol has it that a switch exits
        cpu.hw.write_cr3(kernel.asi.cr3(cpu, space, noflush=not flush and space is Space.UNRESTRICTED))
        if flush:
            for pcid in kernel.asi.user_pcids(asid):  # `invalidate_user_asid()`
                cpu.hw.invpcid(Invpcid.SINGLE_CONTEXT, pcid)
        kernel.contexts.release(old)

    def _choose_new_asid(self, cpu: CpuContext, context: MemoryContext) -> tuple[int, bool]:
        """Return an ASID for an mm and whether its translations are outdated: `choose_new_asid()`."""
        for number, asid in enumerate(cpu.asids):
            if asid.mm == context.id:
                flush = asid.tlb_gen < context.tlb_gen or asid.outdated
                asid.tlb_gen, asid.outdated = context.tlb_gen, False
                return number, flush
        number = cpu.next_asid
        cpu.next_asid = (number + 1) % len(cpu.asids)
        asid = cpu.asids[number]
        asid.mm, asid.tlb_gen, asid.outdated = context.id, context.tlb_gen, False
        cpu.seen = cpu.seen.forget(number)
        return number, True

    # Idle.

    def idle(self, cpu: CpuContext) -> None:
        """What an idle task does: wait for work, with its sibling free to run. `do_idle()`."""
        kernel = self._kernel
        asi = kernel.asi
        while True:
            cpu.hw.interrupts_enabled = False
            if not cpu.thread.task.target:
                asi.enter_idle()
            for observer in kernel.observers:
                observer.idle(cpu.number)
            cpu.hw.halt()
            cpu.hw.interrupts_enabled = True
            while not (cpu.need_resched or self.may_pick(cpu)):
                if kernel.interrupts.deliverable(cpu):
                    kernel.interrupts.deliver(cpu)
                else:
                    kernel.wait_for(cpu, "work", lambda: cpu.need_resched or self.may_pick(cpu), idle=True)
            cpu.hw.interrupts_enabled = False
            cpu.hw.wake()
            if cpu.thread.task.target:
                asi.leave_idle()
            self.schedule()
