"""A page of the kernel's that turns sensitive while a CPU's TLB has its translation: another core does that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.mm import PAGE_SIZE
from asikit.proofs.stage.eavesdropper import LINE
from asikit.threat import leave_stale_translations

if TYPE_CHECKING:
    from asikit.machine.kernel import Machine
    from asikit.machine.kernel.core.percpu import CpuContext

__all__ = ["TurningPage"]

_FRAMES = 2
"""The smallest pageblock."""


class TurningPage:
    """Two pages, as sensitivity is by the pageblock.

    :ivar waits: That CPU is there, and waits until it is asked.
    :ivar other: The CPU on which they turn sensitive; it shares no core with the story's.
    """

    def __init__(self, machine: Machine, address: int, content: bytes, *, shootdown: bool, other: int) -> None:
        """Say where it is.

        :param content: What is stored there once it is sensitive.
        :param shootdown: Whether the kernel flushes its translations from the TLBs meanwhile, as it must.
        """
        self._machine = machine
        self._address = address
        self._content = content
        self._shootdown = shootdown
        self._asked = False
        self.waits = False
        self.other = other

    def turn(self, cpu: CpuContext) -> None:
        """Let a CPU's TLB have the translation, and ask the other CPU to go on."""
        cpu.hw.load(self._address, LINE)
        self._asked = True

    def run(self) -> None:
        """What the other CPU does: it waits until it is asked, and turns the page sensitive."""
        kernel = self._machine.kernel
        self.waits = True
        while not self._asked:
            kernel.wait_for(kernel.cpu, "a page to turn sensitive", lambda: self._asked, idle=True)
        if not self._shootdown:
            leave_stale_translations(self._machine)
        pfn = kernel.layout.phys(self._address) // PAGE_SIZE
        kernel.direct_map.set_direct_map_sensitive(pfn, _FRAMES, sensitive=True)
        kernel.access.store(self._address, self._content)
        while True:
            kernel.wait_for(kernel.cpu, "nothing", lambda: False, idle=True)
