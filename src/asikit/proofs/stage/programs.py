"""Untrusted code: a process' and its guest's. It enters the kernel when told, and else computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.protocol import Happening

if TYPE_CHECKING:
    from asikit.machine.kernel import Kernel
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.proofs.stage.eavesdropper import Eavesdropper
    from asikit.proofs.stage.reader import ScriptReader
    from asikit.proofs.story import StoryStep

__all__ = ["GuestProgram", "UserProgram"]

H = Happening
_GETPID = 39
_VMMCALL = 0x81


class UserProgram:
    """What user mode does."""

    def __init__(self, kernel: Kernel, reader: ScriptReader, eavesdropper: Eavesdropper) -> None:
        self._kernel = kernel
        self._reader = reader
        self._eavesdropper = eavesdropper

    def run(self) -> None:
        """Enter the kernel when told, else compute, for ever."""
        kernel = self._kernel
        self._eavesdropper.look()
        while True:
            step = _for_untrusted_code(self._reader.next_of(kernel.cpu))
            if step is not None and step.verb == "begins" and step.name == H.SYSCALL_ENTRY:
                self._reader.take()
                kernel.entry.syscall(_GETPID, "getpid", lambda: 0)
                self._eavesdropper.look()
                continue
            if step is not None:
                self._interrupted(step)
            kernel.point("user instruction")

    def _interrupted(self, step: StoryStep) -> None:
        """Have the CPU interrupted, if that is the step; whatever else it is cannot be done here."""
        kernel = self._kernel
        if step.verb == "begins" and step.name in {H.INTERRUPT_ENTRY, H.EXCEPTION_ENTRY, H.NMI_ENTRY}:
            self._reader.take()
            kernel.interrupts.post(kernel.cpu, kernel.config.device_vector)
        else:
            self._reader.miss()


class GuestProgram:
    """What a guest does, and its VMM around it."""

    def __init__(self, kernel: Kernel, reader: ScriptReader, eavesdropper: Eavesdropper) -> None:
        self._kernel = kernel
        self._reader = reader
        self._eavesdropper = eavesdropper

    def visit(self, cpu: CpuContext) -> None:
        """Go to the guest, which leaves when told or interrupted."""
        kernel = self._kernel
        if not kernel.entry.vm_entry():
            kernel.sched.cond_resched()
            return
        self._eavesdropper.look()
        while not self._leaves(cpu) and not kernel.interrupts.pending():
            kernel.point("guest instruction")
        kernel.entry.vm_exit(_VMMCALL)
        kernel.interrupts.poll()

    def _leaves(self, cpu: CpuContext) -> bool:
        """Tell whether the next step is that it leaves, and take it off; another of its own cannot be done here."""
        step = _for_untrusted_code(self._reader.next_of(cpu))
        if step is None:
            return False
        if step.verb == "begins" and step.name == H.VM_EXIT:
            self._reader.take()
            return True
        self._reader.miss()
        return False


def _for_untrusted_code(step: StoryStep | None) -> StoryStep | None:
    """Return a step, but not that memory turns sensitive: that comes at any point, whatever runs."""
    return None if step is None or step.verb == "turns sensitive" else step
