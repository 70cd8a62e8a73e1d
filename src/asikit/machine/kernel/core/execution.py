"""How the machine's code runs: its greenlets, the points at which something may come between two steps, and the run.

Every task is a greenlet, and so is each CPU's idle loop; exactly one runs at any instant, on `Kernel.cpu`. All code of
kernel and programs passes *points* (`Execution.point`, each access, each micro-operation). At a point interrupts and
NMIs are delivered, as nested calls on the running greenlet's stack, and the CPU may hand over to another's greenlet.
`Execution.run` is the hub: greenlets come back to it only when the run is over, a task has ended, or something is
wrong.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NoReturn

from greenlet import GreenletExit, getcurrent, greenlet

from asikit.machine.kernel.core.errors import DeadlockError, MachineError
from asikit.machine.kernel.core.interleave import FOREVER, Act
from asikit.machine.kernel.core.interrupts import LOCAL_TIMER_VECTOR
from asikit.machine.kernel.core.percpu import CpuContext, Wait
from asikit.machine.kernel.core.task import TaskStatus

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel.core.interleave import Action
    from asikit.machine.kernel.core.kernel import Kernel

__all__ = ["Execution"]


class Execution:
    """Runs a machine's code: lets one CPU's go on, sets the kernel's `cpu`, `running` and `stopped` accordingly.

    :ivar given_up: Greenlets are being, or have been, unwound: none goes on.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self.given_up = False
        self._hub: greenlet | None = None
        self._done = False
        self._limit: int | None = None

    # Points.

    def point(self, name: str) -> None:
        """Pass a point: time goes on, and something may come in between."""
        cpu = self._kernel.cpu
        cpu.clock += 1
        if cpu.clock >= cpu.due:
            self.at_point(cpu, name)

    def micro_op_point(self, cpu: CpuContext, path: str) -> None:
        """Pass a point between two micro-operations: no time goes by."""
        cpu.slice_end -= 1
        if cpu.clock >= cpu.slice_end or self._kernel.interleaver.every_point or cpu.hw.apic.nmi_pending:
            self.at_point(cpu, path)

    def at_point(self, cpu: CpuContext, name: str) -> None:
        """Do what is due at a point that the running CPU passes."""
        kernel = self._kernel
        self.check_alive()
        if not kernel.running:
            cpu.due = FOREVER
            return
        if self._limit is not None and sum(each.time for each in kernel.cpus) >= self._limit:
            self._to_hub()
        interleaver = kernel.interleaver
        if interleaver.every_point:
            for action in interleaver.at(name, cpu.number):
                self._act(cpu, action)
        if not cpu.uncounted and cpu.time >= cpu.next_tick:
            self._timer(cpu)
        kernel.interrupts.deliver(cpu)
        cpu = kernel.cpu  # a task preempted in user mode may go on elsewhere
        if cpu.clock >= cpu.slice_end:
            self.stall()
            cpu = kernel.cpu
            cpu.slice_end = cpu.clock + interleaver.slice(cpu.number)
            if kernel.interrupts.deliverable(cpu) and not cpu.in_guest:
                kernel.interrupts.deliver(cpu)
                cpu = kernel.cpu
        self._reckon(cpu)

    def _reckon(self, cpu: CpuContext) -> None:
        """Work out when a CPU has to be looked at next."""
        if self._kernel.interleaver.every_point:
            cpu.due = 0
            return
        due = cpu.slice_end
        if not cpu.uncounted:
            due = min(due, cpu.next_tick + cpu.lost)
        cpu.due = due

    def _timer(self, cpu: CpuContext) -> None:
        period = self._kernel.config.timer_period
        cpu.next_tick += period * (1 + (cpu.time - cpu.next_tick) // period)
        self._kernel.interrupts.post(cpu, LOCAL_TIMER_VECTOR)

    def _act(self, cpu: CpuContext, action: Action) -> None:
        kernel = self._kernel
        target = cpu if action.cpu is None else kernel.cpus[action.cpu]
        if action.act is Act.NMI:
            kernel.interrupts.post_nmi(target)
        elif action.act is Act.INTERRUPT:
            kernel.interrupts.post(target, kernel.config.device_vector)
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
        self._kernel.cpu = target
        target.suspended.switch()
        self.check_alive()

    def wait_for(
        self,
        cpu: CpuContext,
        what: str,
        ready: Callable[[], bool],
        *,
        interruptible: bool = False,
        idle: bool = False,
    ) -> None:
        """Let others run, because this CPU cannot go on until `ready`; it may come back earlier, so ask in a loop.

        Ends the run if nobody can run: it is over if there are no tasks left, else a deadlock.
        """
        kernel = self._kernel
        cpu.waiting = Wait(what, ready, interruptible=interruptible, idle=idle)
        others = [other.number for other in kernel.cpus if other is not cpu and self.can_run(other)]
        if others:
            self._switch_cpu(cpu, kernel.cpus[kernel.interleaver.choose(cpu.number, others)])
        elif not self.can_run(cpu):
            if kernel.tasks:
                self.crash(DeadlockError(self._who_waits()))
            self._to_hub()
        cpu.waiting = None

    def _who_waits(self) -> str:
        """Return who waits for what."""
        kernel = self._kernel
        parts = [
            f"{task} waits for {task.waits_for}" for task in kernel.tasks.values() if task.status is TaskStatus.BLOCKED
        ]
        parts += [
            f"cpu {cpu.number} ({cpu.task}) waits for {cpu.waiting.what}"
            for cpu in kernel.cpus
            if cpu.waiting is not None and not cpu.waiting.idle
        ]
        parts += [f"{task} waits for a CPU" for cpu in kernel.cpus for task in cpu.runqueue]
        return "nothing can run any more: " + "; ".join(parts)

    def stall(self) -> None:
        """Let another CPU go on while this one's instruction takes its time: no interrupt comes before it is done."""
        kernel = self._kernel
        cpu = kernel.cpu
        others = [other.number for other in kernel.cpus if other is not cpu and self.can_run(other)]
        if others:
            self._switch_cpu(cpu, kernel.cpus[kernel.interleaver.choose(cpu.number, others)])

    # The run.

    def new_greenlet(self, run: Callable[[], object]) -> greenlet:
        """Make a greenlet; when it ends, the hub's goes on, which is the scenario's own."""
        return greenlet(run, self._hub if self._hub is not None else getcurrent())

    def run(self, limit: int | None = None) -> None:
        """Run until all tasks have ended, or until `limit` units of logical time, of all CPUs together, have passed.

        Raises DeadlockError, InvariantError, KernelOopsError, and what scenarios' programs raise.
        """
        kernel = self._kernel
        if self.given_up:
            raise MachineError("this machine's run has ended in an error; make another machine")
        self._hub = getcurrent()
        self._limit = None if limit is None else sum(cpu.time for cpu in kernel.cpus) + limit
        kernel.running = True
        self._done = False
        self._start_idle()
        for cpu in kernel.cpus:
            cpu.due = 0
            if cpu.time >= cpu.next_tick:  # what set the scenario up ran without a timer
                cpu.next_tick = cpu.time + kernel.config.timer_period
        try:
            while not self._done:
                kernel.cpu.suspended.switch()
        except BaseException as error:
            for late in self._kill_all():  # what a program raises on its way out must not hide the error that there is
                error.add_note(f"while it was unwound: {late!r}")
            raise
        finally:
            kernel.running = False
        kernel.stopped = bool(kernel.tasks)
        if not kernel.stopped:
            self._stop_idle()

    def _start_idle(self) -> None:
        kernel = self._kernel
        for cpu in kernel.cpus:
            if cpu.idle.greenlet is None:
                cpu.idle.greenlet = self.new_greenlet(partial(kernel.sched.idle, cpu))
                if cpu.task is cpu.idle:
                    cpu.suspended = cpu.idle.greenlet

    def _stop_idle(self) -> None:
        """Let go of the idle loops' greenlets, which would keep the machine in memory for ever."""
        kernel = self._kernel
        for cpu in kernel.cpus:
            idle, cpu.idle.greenlet, cpu.waiting = cpu.idle.greenlet, None, None
            self.given_up = True
            if idle is not None:
                idle.throw(GreenletExit)
            self.given_up = False
            cpu.idle.calls.clear()
            kernel.cpu = cpu
            if cpu.thread.task.target:  # what is set up before the next run is no code of a critical section
                kernel.asi.leave_idle()
        kernel.cpu = kernel.cpus[0]
        kernel.cpu.hw.interrupts_enabled = True

    def _kill_all(self) -> list[Exception]:
        """Unwind every greenlet, so that nothing of the machine stays behind; returns what they raised meanwhile."""
        kernel = self._kernel
        raised: list[Exception] = []
        self.given_up = True
        for cpu in kernel.cpus:
            cpu.due = 0  # kernel code that is being unwound gets no further than its next access
        tasks = [*kernel.tasks.values(), *(cpu.idle for cpu in kernel.cpus)]
        greenlets = [task.greenlet for task in tasks] + [cpu.suspended for cpu in kernel.cpus]
        for each in greenlets:
            if each is not None and not each.dead and each is not getcurrent():
                try:
                    each.throw(GreenletExit)
                except Exception as late:  # noqa: BLE001 - whatever a program raises; the others go on unwinding
                    raised.append(late)
        return raised

    def close(self) -> None:
        """Unwind all tasks of a machine that is not to go on."""
        if not self.given_up:
            for late in self._kill_all():
                raise late

    def check_alive(self) -> None:
        """After another greenlet ran: raise GreenletExit if the machine was given up meanwhile."""
        if self.given_up:
            raise GreenletExit

    def _to_hub(self) -> None:
        """Leave the run, from the running greenlet; it goes on with the next run."""
        self._done = True
        self._kernel.cpu.suspended = getcurrent()
        assert self._hub is not None  # a greenlet of ours runs, so there is a hub
        self._hub.switch()
        self.check_alive()

    def crash(self, error: BaseException) -> NoReturn:
        """End the run with an error, past whatever the current program would catch."""
        hub = self._hub
        if hub is None or hub is getcurrent() or not self._kernel.running:
            raise error
        error.__traceback__ = None
        hub.throw(error)
        raise GreenletExit
