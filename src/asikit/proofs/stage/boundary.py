"""The boundary of untrusted code: a CPU that waits before it goes there, and one that has just come from there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.kernel import Observer

if TYPE_CHECKING:
    from asikit.machine.kernel import Kernel
    from asikit.proofs.stage.reader import ScriptReader

__all__ = ["Boundary"]


class Boundary(Observer):
    """Is told of returns and VM exits as an observer, and of entries from user mode as who speculates: they come first.

    It speculates nothing itself; what the core does transiently is the eavesdropper's part.
    """

    def __init__(self, kernel: Kernel, reader: ScriptReader) -> None:
        self._kernel = kernel
        self._reader = reader

    # A CPU is about to wait for its sibling before untrusted code, or to go there.

    def return_user(self, cpu: int, *, by_iret: bool) -> None:  # the same for all returns
        """Disturb a CPU that is stunned here, if that is what comes next."""
        if self._reader.script.disturbed == cpu and self._kernel.cpus[cpu].thread.frames:
            self._reader.disturb()

    def vm_entry(self, cpu: int) -> None:
        """Disturb a CPU that is stunned before its guest, if that is what comes next."""
        self.return_user(cpu, by_iret=False)

    # Entry code has just begun: what comes before its first micro-operation, comes now.

    def vm_exit(self, cpu: int, code: int) -> None:  # the same for all VM exits
        """A guest was left."""
        self._reader.settle(self._kernel.cpus[cpu])

    def entered(self) -> None:
        """User mode was left."""
        self._reader.settle(self._kernel.cpu)

    def called(self, function: int) -> None:
        """Nothing."""

    def returning(self, function: int) -> None:
        """Nothing."""

    def faulted(self) -> None:
        """Nothing."""
