"""What a micro-operation asks of the hardware, and why the restricted address space is left."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from asikit.protocol.cpu import CpuBug, CpuFeature
from asikit.protocol.errors import PrimitivesError

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


OTHER_EFFECTS = frozenset(
    {
        EffectKind.WRITE_CR3,
        EffectKind.STUN,
        EffectKind.UNSTUN,
        EffectKind.TLB_FLUSH,
        EffectKind.PAGE_FAULT,
        EffectKind.PAGE_WALK,
        EffectKind.BARRIER,
        EffectKind.REFRESH_HOST_CR3,
    }
)
"""The effects that are no primitive of a flush."""


class FlushSide(StrEnum):
    """Of which flush a primitive is a part."""

    CONTROL = "control"
    """Of the branch predictors: what attackers trained."""
    DATA = "data"
    """Of the data side channels: what victims left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Primitive:
    """A primitive of a flush: one instruction, or loop, that empties structures of the core.

    Without `feature`, `option` and `bugs` it is always a part of its flush; each that is given is a condition.

    :ivar kind: The effect.
    :ivar side: The flush that it is a part of.
    :ivar words: What a report calls many of them.
    :ivar channel: What it empties, as the proofs see it: one structure.
    :ivar empties: The structures of a CPU model that those are, by name, and what each is called in a sentence.
    :ivar feature: The CPU feature that it takes.
    :ivar option: The field of `ProtocolConfig` that turns it off.
    :ivar bugs: The vulnerabilities that call for it, any of them.
    """

    kind: EffectKind
    side: FlushSide
    words: str
    channel: str
    empties: tuple[tuple[str, str], ...]
    feature: CpuFeature | None = None
    option: str = ""
    bugs: frozenset[CpuBug] = frozenset()


def _checked(*rows: Primitive) -> tuple[Primitive, ...]:
    """Return the rows.

    :raises PrimitivesError: An effect is not in one of the rows and `OTHER_EFFECTS`, once.
    """
    kinds = [row.kind for row in rows]
    for kind in EffectKind:
        if kinds.count(kind) + (kind in OTHER_EFFECTS) != 1:
            raise PrimitivesError(
                f"protocol/effects.py: {kind} has {kinds.count(kind)} rows in PRIMITIVES and is "
                f"{'' if kind in OTHER_EFFECTS else 'not '}in OTHER_EFFECTS; it must be in one of them, once"
            )
    return rows


PRIMITIVES: tuple[Primitive, ...] = _checked(
    Primitive(
        kind=EffectKind.IBPB,
        side=FlushSide.CONTROL,
        words="branch predictor barriers (IBPB)",
        channel="branch target buffer",
        empties=(("btb", "branch target buffer"),),
        feature=CpuFeature.IBPB,
    ),
    Primitive(
        kind=EffectKind.BHB_CLEAR,
        side=FlushSide.CONTROL,
        words="branch history clears",
        channel="branch history buffer",
        empties=(("bhb", "branch history buffer"),),
        bugs=frozenset({CpuBug.BHI}),
    ),
    Primitive(
        kind=EffectKind.RSB_FILL,
        side=FlushSide.CONTROL,
        words="return stack refills",
        channel="return stack buffer",
        empties=(("rsb", "return stack buffer"),),
        option="rsb_fill",
    ),
    Primitive(
        kind=EffectKind.L1D_FLUSH,
        side=FlushSide.DATA,
        words="L1 data cache flushes",
        channel="L1D cache",
        empties=(("l1d", "L1D cache"),),
        # Lines that are evicted from the L1D go through the fill buffers (INTEL-SA-00329), so that takes both.
        bugs=frozenset({CpuBug.L1TF, CpuBug.VRS_L1DES}),
    ),
    Primitive(
        kind=EffectKind.VERW,
        side=FlushSide.DATA,
        words="buffer clears (VERW)",
        channel="fill and store buffers",
        empties=(("fill_buffer", "fill buffers"), ("store_buffer", "store buffer"), ("load_port", "load ports")),
        bugs=frozenset({CpuBug.MDS, CpuBug.TAA, CpuBug.MMIO_STALE_DATA, CpuBug.RFDS, CpuBug.TSA, CpuBug.VRS_L1DES}),
    ),
    Primitive(
        kind=EffectKind.DUMMY_DIVIDE,
        side=FlushSide.DATA,
        words="divider clears",
        channel="divider",
        empties=(("divider", "divider"),),
        bugs=frozenset({CpuBug.DIV0}),
    ),
)
"""All primitives, in the order in which a flush does them; whoever needs a list of primitives has it from here.

Of the data side channels the RFCs flush the L1D only and leave the rest as a TODO; a CPU described with L1TF alone
behaves as published."""


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
