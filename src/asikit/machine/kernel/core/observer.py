"""Who watches a machine: every method is told what happened, and changes nothing.

A trace writer, a timeline and many tests are observers. Numbers of CPUs count hardware threads from 0. What only ASI
does (its own page faults, stun interrupts) is not reported as an entry: a kernel without ASI would not have it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.machine.kernel.core.task import Task
    from asikit.machine.mm import Gfp
    from asikit.machine.x86 import Access
    from asikit.protocol import Effect, ExitReason, Space

__all__ = ["NOT_MAPPED", "Observer"]

NOT_MAPPED = -1
"""The physical address of what no page table entry maps."""


class Observer:
    """Base of observers; every method does nothing.

    `kind` of an entry is `syscall`, `exception`, `interrupt` or `nmi`; `number` is the system call's or the vector.
    """

    def attached(self, machine: object) -> None:
        """Tell the observer which machine it watches, before anything runs."""

    def entry(self, cpu: int, kind: str, number: int) -> None:
        """User mode was left."""

    def nested_entry(self, cpu: int, kind: str, number: int) -> None:
        """Kernel mode was interrupted."""

    def nested_return(self, cpu: int) -> None:
        """The innermost nested entry returns."""

    def return_user(self, cpu: int, *, by_iret: bool) -> None:
        """The CPU goes back to user mode, by IRET or by SYSRET."""

    def vm_entry(self, cpu: int) -> None:
        """The CPU goes into a guest."""

    def vm_exit(self, cpu: int, code: int) -> None:
        """A guest was left; `code` is the hardware's exit reason."""

    def syscall(self, cpu: int, number: int, name: str, arguments: Sequence[object], result: int) -> None:
        """A system call is done."""

    def touch(self, cpu: int, access: Access, vaddr: int, paddr: int) -> None:
        """Kernel code reads, writes or fetches, for the first time in that page since the CPU's last crossing.

        The next access to the page is a first one again after an entry from untrusted code, after an NMI's entry and
        its return, and after a switch of mm. `paddr` is `NOT_MAPPED` for what is not mapped at all.
        """

    def task_switch(self, cpu: int, task: Task) -> None:
        """The CPU switches to another task: `context_switch()`. The one that it leaves is still current."""

    def idle(self, cpu: int) -> None:
        """The CPU is about to sleep, as it has nothing to do."""

    def mm_switch(self, cpu: int, mm: int) -> None:
        """Other page tables are loaded; 0 is init_mm."""

    def page_alloc(self, cpu: int, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
        """Frames were allocated."""

    def page_free(self, cpu: int, pfn: int, order: int) -> None:
        """Frames were freed."""

    def tlb_flush(self, cpu: int, *, kernel: bool, pages: int | None) -> None:
        """This CPU flushes user addresses of the loaded mm, or kernel addresses (or everything).

        `pages` is how many, each by INVLPG; None if it is all of them.
        """

    def asi_enter(self, cpu: int, space: Space) -> None:
        """CR3 selects a restricted address space, which it did not before."""

    def asi_exit(self, cpu: int, reason: ExitReason) -> None:
        """The restricted address space was left."""

    def micro_op(self, cpu: int, path: str, effect: Effect | None) -> None:
        """A micro-operation of the protocol ran."""

    def asi_fault(self, cpu: int, access: Access, vaddr: int) -> None:
        """A page fault that happens only because of ASI."""
