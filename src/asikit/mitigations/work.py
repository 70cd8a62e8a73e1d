"""What a kernel does without ASI, as data: for each vulnerability and processor, what it does, when, and what it costs.

``data/mitigations/NAME.toml``; ``docs/cost.md`` has the format.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from asikit.documents import FILLED, Shelf
from asikit.machine.x86 import Bug, CpuModel, Feature, StructureName
from asikit.machine.x86.model import Clearing
from asikit.mitigations.errors import MitigationError

__all__ = [
    "Condition",
    "KernelMitigation",
    "Measure",
    "Occasion",
    "Source",
    "Work",
    "load_mitigation",
    "shipped_mitigations",
]


class Occasion(StrEnum):
    """When a kernel does something: what a trace counts, but for the last."""

    SYSCALL_ENTRY = "syscall_entry"
    EXCEPTION_ENTRY = "exception_entry"
    INTERRUPT_ENTRY = "interrupt_entry"
    NMI_ENTRY = "nmi_entry"
    USER_ENTRY = "user_entry"
    """The four together: an entry from user mode."""
    USER_RETURN = "user_return"
    VM_EXIT = "vm_exit"
    VM_ENTRY = "vm_entry"
    IDLE = "idle"
    """A CPU has nothing to do and is about to sleep (HLT, MWAIT): what its core shares out is the sibling's then."""
    TASK_SWITCH = "task_switch"
    MM_SWITCH = "mm_switch"
    PROCESS_SWITCH = "process_switch"
    """A context switch that changes the mm: no exec, no end of a process, no patching of the kernel's code."""
    KERNEL_INSTRUCTION = "kernel_instruction"
    AFTER_GUEST = "user_return_after_vm_exit"
    """The first return to user mode after a VM exit: of all returns only those that have a guest behind them."""


class Source(StrEnum):
    """Where a cost comes from: the lines of a result."""

    PREDICTOR_FLUSH = "predictor_flush"
    PREDICTOR_REFILL = "predictor_refill"
    RSB_FILL = "rsb_fill"
    BUFFER_FLUSH = "buffer_flush"
    L1D_FLUSH = "l1d_flush"
    L1D_REFILL = "l1d_refill"
    CR3_WRITES = "cr3_writes"
    TLB_REFILL = "tlb_refill"
    PAGE_FAULTS = "page_faults"
    TRANSITIONS = "transitions"
    STUN = "stun"
    SMT_OFF = "smt_off"
    EPHMAP = "ephmap"
    PAGEBLOCKS = "pageblocks"
    ENTRY_CODE = "entry_code"
    KERNEL_BRANCHES = "kernel_branches"


class Measure(StrEnum):
    """What becomes different on the processor or in the kernel."""

    PTI = "pti"
    """User mode has page tables of its own."""
    NO_INDIRECT_PREDICTION = "no_indirect_prediction"
    """The kernel's indirect branches are retpolines: not predicted by the branch target buffer."""
    NO_RETURN_PREDICTION = "no_return_prediction"
    """The kernel's returns are not predicted by the branch target buffer."""
    ISOLATE_MODES = "isolate_modes"
    """The kernel's branches are not predicted by what less privileged code taught (IBRS)."""
    ISOLATE_THREADS = "isolate_threads"
    """Branches are not predicted by what the sibling taught (STIBP)."""
    MASK_INDICES = "mask_indices"
    """Bounds checks that go wrong load nothing out of bounds."""
    FENCE_ENTRY = "fence_entry"
    """Nothing runs ahead of the entry code's branches."""
    FENCE_VM_EXIT = "fence_vm_exit"
    """No return is predicted by what a guest left in the return stack."""
    INVERT_ENTRIES = "invert_entries"
    """Entries that are not present name no memory that there is."""
    ORDER_LOADS = "order_loads"
    """Loads do not overtake stores (SSBD)."""
    SMT_OFF = "smt_off"
    TRAP_BEHIND_RETURNS = "trap_behind_returns"


class Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which processors: every key that is given must hold."""

    vendor: str = ""
    any_bug: tuple[Bug, ...] = ()
    no_bug: tuple[Bug, ...] = ()
    features: tuple[Feature, ...] = ()
    no_feature: tuple[Feature, ...] = ()

    def holds(self, cpu: CpuModel) -> bool:
        """Tell whether a processor is meant."""
        return (
            (not self.vendor or cpu.vendor == self.vendor)
            and cpu.has(self.any_bug, self.no_bug)
            and cpu.features.issuperset(self.features)
            and cpu.features.isdisjoint(self.no_feature)
        )


class Work(Condition, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing that a mitigation does.

    :ivar vulnerability: What it is against.
    :ivar unless: Processors that are excepted.
    :ivar at: When it is done; at no time what is always so.
    :ivar measures: What becomes different; the key is ``is``.
    :ivar flushes: Primitives that are done then.
    :ivar hides: Structures that the vulnerability cannot reach any more.
    :ivar costs: Names of costs: those of one list are multiplied, the lists added. Nothing if a trace cannot count it.
    :ivar counts_as: The line of the result that the costs are counted in.
    """

    vulnerability: Bug
    name: str
    source: str
    at: tuple[Occasion, ...] = ()
    unless: Condition | None = None
    measures: tuple[Measure, ...] = msgspec.field(default=(), name="is")
    flushes: tuple[Clearing, ...] = ()
    hides: tuple[StructureName, ...] = ()
    costs: tuple[tuple[str, ...], ...] = ()
    counts_as: Source | None = None

    def acts_on(self, cpu: CpuModel) -> bool:
        """Tell whether it is done on a processor."""
        return self.holds(cpu) and not (self.unless is not None and self.unless.holds(cpu))

    def contradiction(self) -> str:
        """Say what makes no sense, nothing if all does."""
        rules = (
            (not (self.costs and Occasion.IDLE in self.at), f"no trace counts {Occasion.IDLE}: leave costs out"),
            (bool(self.costs) == (self.counts_as is not None), "costs and counts_as go together"),
            (bool(self.measures or self.flushes or self.hides or self.costs), "give is, flushes, hides or costs"),
            (bool(self.at) or not (self.costs or self.flushes), "say at what occasions: at"),
            (
                not self.costs or Occasion.AFTER_GUEST not in self.at,
                f"a trace does not count {Occasion.AFTER_GUEST}: leave costs out",
            ),
        )
        return next((fault for holds, fault in rules if not holds), "")


class KernelMitigation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a kernel does against vulnerabilities.

    :ivar name: The name that :func:`load_mitigation` knows it by.
    :ivar file: Where it was read, for messages.
    """

    title: str
    work: tuple[Work, ...]
    name: Annotated[str, FILLED] = ""
    file: Annotated[str, FILLED] = ""

    def on(self, cpu: CpuModel) -> tuple[Work, ...]:
        """Return what is done on a processor."""
        return tuple(work for work in self.work if work.acts_on(cpu))


def _contradiction(mitigation: KernelMitigation) -> str:
    wrong = ((work, work.contradiction()) for work in mitigation.work)
    return next((f"{work.name}: {fault}" for work, fault in wrong if fault), "")


_SHELF = Shelf("mitigations", KernelMitigation, MitigationError, "mitigation", contradiction=_contradiction)


def shipped_mitigations() -> tuple[str, ...]:
    """Return the names of the mitigations that come with the package as data, sorted."""
    return _SHELF.names()


def load_mitigation(name_or_file: str) -> KernelMitigation:
    """Return what a kernel does.

    :param name_or_file: The name of a shipped one, or the path of a TOML file (it ends in ``.toml``).
    :raises MitigationError: There is no such file, it is not TOML, or it says what makes no sense.
    """
    return _SHELF.load(name_or_file)
