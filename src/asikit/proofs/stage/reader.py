"""Reading a script beside a machine: what it says is done is taken off, and who waits is disturbed when that is due."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.kernel.core.interrupts import RESCHEDULE_VECTOR

if TYPE_CHECKING:
    from asikit.machine.kernel import Kernel
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.proofs.stage.script import Script
    from asikit.proofs.story import StoryStep

__all__ = ["ScriptReader"]


class ScriptReader:
    """Goes through a script as a kernel's CPUs do what it says; a thread of the script is the CPU of that number.

    :ivar script: What is still to come.
    """

    def __init__(self, script: Script, kernel: Kernel) -> None:
        self.script = script
        self._kernel = kernel

    def next_of(self, cpu: CpuContext) -> StoryStep | None:
        """Return the next step if it is a CPU's, else None."""
        return self.script.next_of(cpu.number)

    # Steps that are done, or left out.

    def take(self) -> StoryStep:
        """Take the next step off: it is done now."""
        step = self.script.take()
        self._disturb_who_waits()
        return step

    def miss(self) -> None:
        """Leave the next step out: it cannot be done."""
        self.script.miss()
        self._disturb_who_waits()

    def ran(self, cpu: int, path: str) -> None:
        """Take off a micro-operation that a CPU has run."""
        if self.script.tick_off(cpu, path):
            self._disturb_who_waits()

    def disturb(self) -> None:
        """Do the next step, which is that a CPU waits no more: by an NMI, or because something else is to be done."""
        step = self.script.take()
        interrupts, cpu = self._kernel.interrupts, self._kernel.cpus[step.thread]
        if step.verb == "stops waiting":
            interrupts.post(cpu, RESCHEDULE_VECTOR)
        else:
            interrupts.post_nmi(cpu)

    def _disturb_who_waits(self) -> None:
        """Disturb a CPU that waits already, if that is what comes next."""
        thread = self.script.disturbed
        waiting = None if thread is None else self._kernel.cpus[thread].waiting
        if waiting is not None and not waiting.idle:
            self.disturb()

    # What other CPUs do meanwhile.

    def settle(self, cpu: CpuContext) -> None:
        """Pass a point: what comes in between before the next micro-operation, comes now."""
        self._kernel.at_point(cpu, "story")

    def wait_for_turn(self, cpu: CpuContext) -> None:
        """Let the other CPU do what it has to do before this one's next step."""
        script, kernel = self.script, self._kernel
        while (head := script.head) is not None and head.thread != cpu.number:
            left = len(script)
            self.settle(cpu)
            if len(script) == left and not kernel.can_run(kernel.cpus[head.thread]):
                return
        self.settle(cpu)
