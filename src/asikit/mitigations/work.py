"""What a kernel does without ASI, as data: for each vulnerability and processor, what it does, when, and what it costs.

``data/mitigations/NAME.toml``; ``docs/cost.md`` has the format.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec

from asikit.documents import FILLED, Shelf
from asikit.machine.x86 import Bug, CpuModel, Feature, StructureName
from asikit.machine.x86.model import Clearing
from asikit.mitigations.errors import MitigationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "Condition",
    "KernelMitigation",
    "Measure",
    "Occasion",
    "Source",
    "When",
    "Work",
    "load_mitigation",
    "shipped_mitigations",
]


class Occasion(StrEnum):
    """When a kernel does something: what a trace counts."""

    SYSCALL_ENTRY = "syscall_entry"
    EXCEPTION_ENTRY = "exception_entry"
    INTERRUPT_ENTRY = "interrupt_entry"
    NMI_ENTRY = "nmi_entry"
    USER_ENTRY = "user_entry"
    """The four together: an entry from user mode."""
    USER_RETURN = "user_return"
    VM_EXIT = "vm_exit"
    VM_ENTRY = "vm_entry"
    NESTED_INTERRUPT = "nested_interrupt"
    """An interrupt that comes upon the kernel, as one does whose VM exit the host is about."""
    IDLE = "idle"
    """A CPU has nothing to do and is about to sleep (HLT, MWAIT): what its core shares out is the sibling's then."""
    TASK_SWITCH = "task_switch"
    MM_SWITCH = "mm_switch"
    PROCESS_SWITCH = "process_switch"
    """A context switch that changes the mm: no exec, no end of a process, no patching of the kernel's code."""
    KERNEL_INSTRUCTION = "kernel_instruction"

    @property
    def parts(self) -> frozenset[Occasion]:
        """The occasions that it consists of: itself, but for an entry from user mode, which is one of four."""
        return _USER_ENTRIES if self is Occasion.USER_ENTRY else frozenset({self})


_USER_ENTRIES = frozenset(
    {Occasion.SYSCALL_ENTRY, Occasion.EXCEPTION_ENTRY, Occasion.INTERRUPT_ENTRY, Occasion.NMI_ENTRY}
)


class When(NamedTuple):
    """When a kernel does something: at each such occasion, or only where something else came before.

    :ivar first_after: If any are given: only at the first such occasion since one of these, on the same CPU. This is a
        per-CPU mark that these set, and that the occasion tests and clears.
    """

    occasion: Occasion
    first_after: tuple[Occasion, ...] = ()

    @property
    def text(self) -> str:
        """In words: ``user_return, first after vm_exit``."""
        before = " or ".join(self.first_after)
        return f"{self.occasion.value}, first after {before}" if before else self.occasion.value


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
    :ivar first_after: Of these occasions only the first since one of those, on the same CPU (:class:`When`).
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
    first_after: tuple[Occasion, ...] = ()
    unless: Condition | None = None
    measures: tuple[Measure, ...] = msgspec.field(default=(), name="is")
    flushes: tuple[Clearing, ...] = ()
    hides: tuple[StructureName, ...] = ()
    costs: tuple[tuple[str, ...], ...] = ()
    counts_as: Source | None = None

    def acts_on(self, cpu: CpuModel) -> bool:
        """Tell whether it is done on a processor."""
        return self.holds(cpu) and not (self.unless is not None and self.unless.holds(cpu))

    @property
    def times(self) -> tuple[When, ...]:
        """When it is done, by each occasion."""
        return tuple(When(occasion, self.first_after) for occasion in self.at)

    def contradiction(self) -> str:
        """Say what makes no sense, nothing if all does."""
        before = frozenset(part for occasion in self.first_after for part in occasion.parts)
        rules = (
            (not (self.costs and Occasion.IDLE in self.at), f"no trace counts {Occasion.IDLE}: leave costs out"),
            (bool(self.costs) == (self.counts_as is not None), "costs and counts_as go together"),
            (bool(self.measures or self.flushes or self.hides or self.costs), "give is, flushes, hides or costs"),
            (bool(self.at) or not (self.costs or self.flushes), "say at what occasions: at"),
            (bool(self.at) or not self.first_after, "say at what occasions: at"),
            (
                all(before.isdisjoint(occasion.parts) for occasion in self.at),
                "first_after must not name an occasion that is in at",
            ),
            (
                not self.first_after or Occasion.KERNEL_INSTRUCTION not in {*self.at, *self.first_after},
                f"first_after is about events, and {Occasion.KERNEL_INSTRUCTION} is none",
            ),
        )
        return next((fault for holds, fault in rules if not holds), "")


class KernelMitigation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a kernel does against vulnerabilities.

    :ivar together: Vulnerabilities that are mitigated by the same means: to leave one out changes nothing while the
        processor has another one of them that is not left out.
    :ivar names: Other names of vulnerabilities, for who leaves one out.
    :ivar name: The name that :func:`load_mitigation` knows it by.
    :ivar file: Where it was read, for messages.
    :ivar left_out: Vulnerabilities against which nothing is done.
    """

    title: str
    work: tuple[Work, ...]
    together: tuple[tuple[Bug, ...], ...] = ()
    names: dict[str, Bug] = {}
    name: Annotated[str, FILLED] = ""
    file: Annotated[str, FILLED] = ""
    left_out: Annotated[frozenset[Bug], FILLED] = frozenset()

    @property
    def vulnerabilities(self) -> frozenset[Bug]:
        """What something is done against."""
        tied = (bug for group in self.together for bug in group)
        return frozenset({bug for work in self.work for bug in (work.vulnerability, *work.any_bug)} | set(tied))

    def without(self, bugs: Iterable[Bug]) -> KernelMitigation:
        """Return the kernel that does nothing against some vulnerabilities: as if no processor had them.

        What it does instead against others follows: Intel's IBRS is Retbleed's, and without it there are retpolines.
        """
        less = tuple(dict.fromkeys(bugs))
        name = "".join([self.name, *(f":-{bug.value}" for bug in less)])
        return msgspec.structs.replace(self, name=name, left_out=self.left_out | frozenset(less))

    def with_it(self, bug: Bug, cpu: CpuModel) -> frozenset[Bug]:
        """Return what has to be left out with a vulnerability on a processor so that nothing is done against it."""
        tied = (frozenset(group) for group in self.together if bug in group)
        return (frozenset({bug}).union(*tied)) & cpu.bugs

    def on(self, cpu: CpuModel) -> tuple[Work, ...]:
        """Return what is done on a processor."""
        off = frozenset(bug for bug in self.left_out if self.with_it(bug, cpu) <= self.left_out)
        seen = msgspec.structs.replace(cpu, bugs=cpu.bugs - off) if off else cpu
        return tuple(work for work in self.work if work.acts_on(seen))


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
