"""A sensitivity policy: which memory the restricted address space lacks, and which mechanism guards it.

The fields of these classes are the keys of a policy file (``docs/policies.md``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

from asikit.documents import FILLED, Short
from asikit.protocol import CpuBug, CpuFeature, Mapped
from asikit.trace import PageKind, Region, TlbFlush

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ACCESSES",
    "ExitOn",
    "MechanismKind",
    "Policy",
    "PolicyCpu",
    "PolicyEphmap",
    "PolicyMechanism",
    "PolicyMemory",
    "Rules",
    "Sensitivity",
    "TouchKind",
]


class TouchKind(StrEnum):
    """How the kernel touches a page: one kind of touch event each."""

    READ = "read"
    WRITE = "write"
    FETCH = "fetch"


ACCESSES = tuple(TouchKind)


class MechanismKind(StrEnum):
    """What guards the kernel."""

    ASI = "asi"
    BLANKET = "blanket"
    OFF = "off"


class ExitOn(StrEnum):
    """Which switches leave the restricted address space.

    The January 2025 RFC exits in every ``context_switch``; Google's production kernel exits only when the mm changes,
    so that a trip to a kernel thread and back (lazy TLB) keeps the restricted address space.
    """

    CONTEXT_SWITCH = "context_switch"
    MM_SWITCH = "mm_switch"


class Sensitivity(StrEnum):
    """Whether the restricted address space lacks a page."""

    SENSITIVE = "sensitive"
    NONSENSITIVE = "nonsensitive"


@dataclass(frozen=True, slots=True)
class Rules:
    """What makes a page sensitive, or nonsensitive.

    Strongest first: slab cache, allocating function, page kind, kind of a page whose allocation is unknown, gfp flags.
    """

    gfp: tuple[str, ...] = ()
    """Names of gfp flags: an allocation matches if it has all bits of one of them."""
    unrecorded_kinds: tuple[PageKind, ...] = ()
    """Kinds of pages allocated before the recording began, whose gfp flags nobody knows."""
    kinds: tuple[PageKind, ...] = ()
    allocated_by: tuple[str, ...] = ()
    """Globs over the function that allocated the page (as in the causes of the output)."""
    caches: tuple[str, ...] = ()
    """Globs over slab cache names."""


@dataclass(frozen=True, slots=True)
class PolicyMemory:
    """The sensitivity of a page. Where both sets of rules match with equal strength, it is sensitive."""

    default: Sensitivity = Sensitivity.NONSENSITIVE
    sensitive: Rules = field(default_factory=Rules)
    nonsensitive: Rules = field(default_factory=Rules)


@dataclass(frozen=True, slots=True)
class PolicyEphmap:
    """Pages reached through an ephemeral per-CPU mapping, instead of an exit."""

    kinds: tuple[PageKind, ...] = ()
    access: tuple[TouchKind, ...] = (TouchKind.READ,)
    functions: tuple[str, ...] = ()
    """Globs over the accessing function; empty for all functions."""


@dataclass(frozen=True, slots=True)
class PolicyCpu:
    """What the processor makes a flush consist of."""

    features: tuple[CpuFeature, ...] = (CpuFeature.IBPB,)
    bugs: tuple[CpuBug, ...] = (CpuBug.L1TF, CpuBug.MDS)
    """Its vulnerabilities, which decide what clears its data: the L1D for ``l1tf``, buffers (VERW) for ``mds``..."""
    rsb_fill: bool = True
    """A predictor flush also fills the return stack buffer."""


_PUBLISHED_FLUSHES = (TlbFlush.USER,)


def _flushes(exits: bool) -> list[str]:  # noqa: FBT001 - a value of a file
    """Return the list that ``true``, for what the published code does, or ``false`` stands for."""
    return [flush.word for flush in _PUBLISHED_FLUSHES] if exits else []


@dataclass(frozen=True, slots=True)
class PolicyMechanism:
    """Which mechanism guards the kernel, in which variant."""

    kind: MechanismKind = MechanismKind.ASI
    exit_on: ExitOn = ExitOn.CONTEXT_SWITCH
    exit_on_tlb_flush: Annotated[tuple[TlbFlush, ...], Short(bool, _flushes)] = _PUBLISHED_FLUSHES
    """The kernel's TLB flushes that exit first: published is a full one of user addresses (``native_flush_tlb_local``).
    """
    kvm_protects_user_data: bool = True
    """A guest may not sample its own VMM process."""
    kvm_exit_on_user_return: bool = False
    """The prototypes' exit at the end of the KVM_RUN ioctl."""
    pti: bool = False
    """Page-table isolation: user code runs on page tables without a kernel, and each crossing writes CR3."""
    noflush: bool = False
    """CR3 writes keep the TLB entries of an up-to-date address space (bit 63 of the CR3 operand)."""
    smt: bool = False
    """The core has a sibling thread, which an exit must stun."""


def _every_access(mapped: str) -> dict[str, str]:
    """Return the table that one word stands for."""
    return dict.fromkeys(ACCESSES, mapped)


_ByAccess = Annotated[Mapping[TouchKind, Mapped], Short(Mapped, _every_access)]


DEFAULT_REGIONS: Mapping[Region, Mapping[TouchKind, Mapped]] = MappingProxyType(
    {
        region: MappingProxyType(
            dict.fromkeys(
                ACCESSES,
                {Region.DIRECT_MAP: Mapped.BY_MEMORY, Region.USER: Mapped.USERSPACE}.get(region, Mapped.MAPPED),
            )
        )
        for region in Region
    }
)
"""A restricted address space that lacks parts of the direct map only, as the 6.16-based prototype's."""


@dataclass(frozen=True, slots=True)
class Policy:
    """A sensitivity policy."""

    name: Annotated[str, FILLED]
    title: str = ""
    """One line for tables and lists."""
    inherits: str = field(default="", compare=False)
    """The policy that the file is laid over: a name, or a file."""
    file: Annotated[str, FILLED] = field(default="", compare=False)
    """Where it was read, for messages."""
    mechanism: PolicyMechanism = field(default_factory=PolicyMechanism)
    cpu: PolicyCpu = field(default_factory=PolicyCpu)
    memory: PolicyMemory = field(default_factory=PolicyMemory)
    regions: Mapping[Region, _ByAccess] = field(default_factory=lambda: DEFAULT_REGIONS)
    ephmap: PolicyEphmap = field(default_factory=PolicyEphmap)
    shipped_names: Annotated[frozenset[tuple[str, str]], FILLED] = field(default=frozenset(), compare=False)
    """Of :meth:`names`, those that a policy of ours gives: they are about all kernels and workloads, so that nobody is
    warned of one that a recording lacks."""

    def names(self) -> Iterator[tuple[str, str]]:
        """Give the names that are looked up in a recording, each with the key of its list in a policy file."""
        for sensitivity in Sensitivity:
            rules: Rules = getattr(self.memory, sensitivity)
            for rule in fields(rules):
                yield from ((f"memory.{sensitivity}.{rule.name}", name) for name in getattr(rules, rule.name))
        yield from (("ephmap.kinds", name) for name in self.ephmap.kinds)
        yield from (("ephmap.functions", name) for name in self.ephmap.functions)
