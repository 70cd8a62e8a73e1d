"""What a micro-operation asks of the hardware, and why the restricted address space is left."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asikit.protocol.classes import Space


class EffectKind(StrEnum):
    """The hardware effects that transitions ask for."""

    WRITE_CR3 = "write_cr3"
    """Load the page tables of `Effect.space`; without `Effect.noflush` the PCID's TLB entries go (SDM 3A 4.10.4.1)."""
    IBPB = "ibpb"
    """Indirect branch predictor barrier, IA32_PRED_CMD bit 0."""
    RSB_FILL = "rsb_fill"
    """Overwrite the return stack buffer (`fill_return_buffer`)."""
    BHB_CLEAR = "bhb_clear"
    """Overwrite the branch history buffer."""
    L1D_FLUSH = "l1d_flush"
    """Flush the L1 data cache, IA32_FLUSH_CMD bit 0."""
    VERW = "verw"
    """Overwrite fill buffers, store buffer and load ports (`mds_clear_cpu_buffers`)."""
    DUMMY_DIVIDE = "dummy_divide"
    """Overwrite the divider's last quotient (`amd_clear_divider`)."""
    STUN = "stun"
    """Interrupt the sibling hyperthread, to make it leave untrusted code; it may not go back before UNSTUN."""
    UNSTUN = "unstun"
    """Let the sibling hyperthread run untrusted code again: a store that it polls."""
    TLB_FLUSH = "tlb_flush"
    """Flush the TLB entries of `Effect.space`'s PCID, beyond what the kernel flushes without ASI."""
    PAGE_FAULT = "page_fault"
    """A page fault that happens only because of ASI."""
    PAGE_WALK = "page_walk"
    """Walk the page tables that CR3 now points at: accessible now means retry, else it is a real fault."""
    BARRIER = "barrier"
    """Full memory barrier: stores before it are seen by other CPUs before loads after it are done."""
    REFRESH_HOST_CR3 = "refresh_host_cr3"
    """Copy CR3 to the VMCS' HOST_CR3, so that the VM exit comes back into the same address space."""


class ExitReason(StrEnum):
    """Why `asi_exit` was called; the names of the kernel's `asi_stats`, and SWITCH_MM, which those do not have."""

    PAGE_FAULT = "page_fault"
    USER_RET = "user_ret"
    CONTEXT_SWITCH = "context_switch"
    """In `context_switch()`: the scheduler goes to another task."""
    SWITCH_MM = "switch_mm"
    """In `switch_mm_irqs_off()`: other page tables are loaded. First in `exec()`, at the end of a process, and where
    context switches do not exit themselves."""
    TLB_FLUSH = "tlb_flush"
    MISC = "misc"


@dataclass(frozen=True, slots=True)
class Effect:
    """One thing asked of the hardware.

    `space`, for WRITE_CR3 and TLB_FLUSH, is relative to the loaded mm. `user_half` is PTI's user copy of the page
    tables. `noflush` is bit 63 of the value written to CR3.
    """

    kind: EffectKind
    space: Space | None = None
    noflush: bool = False
    user_half: bool = False

    def __str__(self) -> str:
        """Short text: `write_cr3(restricted kvm, noflush)`."""
        if self.space is None:
            return str(self.kind)
        words = [self.space.label, *(["user half"] if self.user_half else []), *(["noflush"] if self.noflush else [])]
        return f"{self.kind}({', '.join(words)})"
