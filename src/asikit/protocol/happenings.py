"""What can happen to a CPU, as far as ASI is concerned, and what comes of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asikit.protocol.effects import Effect, ExitReason
    from asikit.protocol.state import State


class Happening(StrEnum):
    """The events between which kernel code runs; each is answered by the transition of the same name."""

    SYSCALL_ENTRY = "syscall_entry"
    """A system call from user mode: ends the critical section."""
    EXCEPTION_ENTRY = "exception_entry"
    """An exception from user mode: interrupts the critical section."""
    INTERRUPT_ENTRY = "interrupt_entry"
    """An interrupt from user mode: interrupts the critical section."""
    NMI_ENTRY = "nmi_entry"
    """An NMI from user mode: interrupts the critical section."""
    VM_EXIT = "vm_exit"
    """From a guest into the host's kernel: ends the critical section."""
    NESTED_EXCEPTION = "nested_exception"
    """An exception in kernel mode, other than a page fault."""
    NESTED_PAGE_FAULT = "nested_page_fault"
    """A page fault in kernel mode that would happen without ASI too; its handler runs until NESTED_RETURN."""
    NESTED_INTERRUPT = "nested_interrupt"
    """An interrupt in kernel mode."""
    NESTED_NMI = "nested_nmi"
    """An NMI in kernel mode."""
    NESTED_RETURN = "nested_return"
    """Return from the innermost entry that was from kernel mode."""
    RETURN_USER = "return_user"
    """Return to user mode: enters if relaxed; else it is the outermost `asi_intr_exit`, which re-enters."""
    VM_ENTRY = "vm_entry"
    """From the host's kernel into a guest."""
    UNMAPPED_TOUCH = "unmapped_touch"
    """An access to something that the restricted address space lacks: the page fault, its exit and the retry.
    Nothing happens when unrestricted."""
    CONTEXT_SWITCH = "context_switch"
    """The scheduler switches tasks; follow it with `Protocol.save_task` and `Protocol.load_task`."""
    MM_SWITCH = "mm_switch"
    """Other page tables are about to be loaded (`switch_mm_irqs_off`, the mm really changes). Not for lazy TLB."""
    TLB_FLUSH_USER = "tlb_flush_user"
    """This CPU flushes all user addresses of the loaded mm, for itself or asked by another."""
    TLB_FLUSH_KERNEL = "tlb_flush_kernel"
    """This CPU flushes all kernel addresses or everything."""
    TLB_FLUSH_USER_RANGE = "tlb_flush_user_range"
    """This CPU flushes some pages at user addresses of the loaded mm, one by one (INVLPG)."""
    TLB_FLUSH_KERNEL_RANGE = "tlb_flush_kernel_range"
    """This CPU flushes some pages at kernel addresses, one by one (INVLPG)."""
    DOUBLE_FAULT = "double_fault"
    """#DF: exits explicitly, since nothing may fault in it; its handler runs until NESTED_RETURN."""
    EXPLICIT_EXIT = "explicit_exit"
    """Code that cannot live with a changing CR3: `__native_read_cr3`, `native_write_cr3`, suspend, kexec."""

    @property
    def from_user(self) -> bool:
        """Whether it is an entry from user mode into the kernel."""
        return self in {
            Happening.SYSCALL_ENTRY,
            Happening.EXCEPTION_ENTRY,
            Happening.INTERRUPT_ENTRY,
            Happening.NMI_ENTRY,
        }

    @property
    def from_untrusted(self) -> bool:
        """Whether it is an entry from untrusted code, a process' or a guest's, into the kernel."""
        return self.from_user or self is Happening.VM_EXIT

    @property
    def nested(self) -> bool:
        """Whether it is an entry from kernel mode: its handler runs until NESTED_RETURN."""
        return self in {
            Happening.NESTED_EXCEPTION,
            Happening.NESTED_PAGE_FAULT,
            Happening.NESTED_INTERRUPT,
            Happening.NESTED_NMI,
            Happening.DOUBLE_FAULT,
        }


TLB_FLUSHES = (
    Happening.TLB_FLUSH_USER,
    Happening.TLB_FLUSH_KERNEL,
    Happening.TLB_FLUSH_USER_RANGE,
    Happening.TLB_FLUSH_KERNEL_RANGE,
)
"""The flushes of the kernel's own, beyond those of CR3 writes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a happening leads to.

    :ivar state: The state after it.
    :ivar effects: Everything asked of the hardware, in order.
    :ivar exit_reason: Why the restricted address space was left, None if it was not.
    """

    state: State
    effects: tuple[Effect, ...] = ()
    exit_reason: ExitReason | None = None
