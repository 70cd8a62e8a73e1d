"""CPU models: what a processor has, shares, clears and gets wrong, as data (TOML).

A model file says nothing about prices but may have a table `[costs]`, which is kept as it is for who knows its keys.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from asikit.documents import FILLED, Shelf
from asikit.machine.x86.errors import CpuModelError
from asikit.protocol import PRIMITIVES, CpuBug, CpuFeature

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = [
    "CLEARING",
    "Bug",
    "CpuModel",
    "Feature",
    "Paging",
    "Sharing",
    "StructureModel",
    "StructureName",
    "cpu_names",
    "load_cpu",
]


class Sharing(StrEnum):
    """Who uses one instance of a structure."""

    THREAD = "thread"
    """Each hardware thread has its own."""
    PARTITIONED = "partitioned"
    """The core has one, of which each thread has a part; a thread that sleeps leaves its part to the other."""
    CORE = "core"
    """The core's threads compete for it."""
    UNCORE = "uncore"
    """All cores of the package share it."""


Clearing = StrEnum(  # type: ignore[misc]  # the members are the protocol's, so that there is one list
    "Clearing", [(primitive.kind.name, primitive.kind.value) for primitive in PRIMITIVES]
)
"""Primitives that clear structures; the values are those of the protocol's EffectKind."""
CLEARING = tuple(Clearing)


class Feature(StrEnum):
    """Features against transient execution: the kernel's names (`/proc/cpuinfo`, `cpufeatures.h`)."""

    IBPB = "ibpb"
    IBRS = "ibrs"
    EIBRS = "ibrs_enhanced"
    STIBP = "stibp"
    SSBD = "ssbd"
    FLUSH_L1D = "flush_l1d"
    MD_CLEAR = "md_clear"
    TSX = "rtm"
    AVX2 = "avx2"
    BHI_CTRL = "bhi_ctrl"
    SRSO_USER_KERNEL_NO = "srso_user_kernel_no"
    SRSO_BP_SPEC_REDUCE = "srso_bp_spec_reduce"


class Bug(StrEnum):
    """Vulnerabilities; where Linux has a file in sysfs, several share one (`spectre_v2`)."""

    MELTDOWN = "meltdown"
    SPECTRE_V1 = "spectre_v1"
    SWAPGS = "swapgs"
    SPECTRE_V2 = "spectre_v2"
    SPECTRE_V2_USER = "spectre_v2_user"
    BHI = "bhi"
    RETBLEED = "retbleed"
    SRSO = "srso"
    SSB = "ssb"
    L1TF = "l1tf"
    MDS = "mds"
    TAA = "taa"
    MMIO = "mmio"
    RFDS = "rfds"
    GDS = "gds"
    SRBDS = "srbds"
    PBRSB = "pbrsb"
    TOPSTACK = "topstack"
    VRS_L1DES = "vrs_l1des"
    DIV0 = "div0"
    ZENBLEED = "zenbleed"
    LVI = "lvi"
    V3A_LAZYFP = "v3a_lazyfp"
    SLS_MISC = "sls_misc"
    IBRS_SCOPE = "ibrs_scope"
    CONTENTION = "contention"
    ITLB = "itlb"
    REPTAR_ETC = "reptar_etc"
    TSA = "tsa"
    ITS = "its"
    ITS_GUEST_HOST = "its_guest_host"
    """ITS from a guest to its host as well: without what the kernel calls ITS_NATIVE_ONLY."""
    MMIO_SBDS = "mmio_sbds"
    """MMIO with SBDR and SBDS, of buffers that all cores share, and not DRPW alone. The kernel's MMIO_SBDS marks those
    of them that SRBDS does not concern besides (arch/x86/kernel/cpu/common.c); Intel's list has them all."""
    VMSCAPE = "vmscape"


_PROTOCOL_BUGS = {Bug.MMIO if bug is CpuBug.MMIO_STALE_DATA else Bug(bug.value): bug for bug in CpuBug}


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table of a model file: its fields are the table's keys."""


_Count = Annotated[int, msgspec.Meta(ge=1)]


class Paging(_Table, frozen=True, kw_only=True):
    """What decides about address translation.

    :ivar maxphyaddr: Physical address bits, CPUID.80000008H:EAX[7:0].
    :ivar tlb_entries: Entries of the last-level TLB.
    """

    maxphyaddr: Annotated[int, msgspec.Meta(ge=32, le=52)]
    tlb_entries: _Count
    la57: bool
    gib_pages: bool
    pcid: bool
    invpcid: bool
    smep: bool
    smap: bool


class StructureModel(_Table, frozen=True, kw_only=True):
    """A microarchitectural structure.

    :ivar entries: How many values or trainings it holds (for each thread, if `sharing` is `thread`).
    :ivar sharing: Who shares it.
    :ivar cleared_by: Primitives each of which clears it; none is one that nothing clears.
    """

    entries: _Count
    sharing: Sharing
    cleared_by: tuple[Clearing, ...]


class Structures(_Table, frozen=True, kw_only=True):
    """All structures of a model, by the names of `asikit.machine.x86.structures`."""

    btb: StructureModel
    bhb: StructureModel
    rsb: StructureModel
    pht: StructureModel
    l1d: StructureModel
    fill_buffer: StructureModel
    store_buffer: StructureModel
    load_port: StructureModel
    vector_registers: StructureModel
    divider: StructureModel
    staging_buffer: StructureModel


StructureName = StrEnum(  # type: ignore[misc]  # the members are the model's, so that there is one list
    "StructureName", [(name.upper(), name) for name in Structures.__struct_fields__]
)
"""The structures of a CPU model."""


class CpuModel(_Table, frozen=True, kw_only=True):
    """A CPU model.

    :ivar name: The name that `load_cpu` knows it by.
    :ivar file: Where it was read: the path of a user's own file.
    :ivar title: What it is called in public.
    :ivar threads: Hardware threads of a core, 1 or 2.
    :ivar features: What it has against transient execution.
    :ivar bugs: What it is vulnerable to.
    :ivar costs: The file's table `[costs]`, as it stands there.
    """

    name: Annotated[str, FILLED] = ""
    file: Annotated[str, FILLED] = ""
    title: str
    vendor: str
    microarchitecture: str
    threads: Annotated[int, msgspec.Meta(ge=1, le=2)]
    features: frozenset[Feature]
    bugs: frozenset[Bug]
    paging: Paging
    structures: Structures
    costs: dict[str, Any] = {}

    def has(self, any_of: Collection[Bug], none_of: Collection[Bug]) -> bool:
        """Tell whether it is vulnerable to one of some, if there are any, and to none of others."""
        return (not any_of or not self.bugs.isdisjoint(any_of)) and self.bugs.isdisjoint(none_of)

    @property
    def protocol_features(self) -> frozenset[CpuFeature]:
        """The features that decide about the protocol's transitions."""
        return frozenset({CpuFeature.IBPB} if Feature.IBPB in self.features else ())

    @property
    def protocol_bugs(self) -> frozenset[CpuBug]:
        """The vulnerabilities that decide what the protocol's flushes consist of."""
        return frozenset(_PROTOCOL_BUGS[bug] for bug in self.bugs if bug in _PROTOCOL_BUGS)


_SHELF = Shelf("cpus", CpuModel, CpuModelError, "CPU model")


def cpu_names() -> tuple[str, ...]:
    """Return the names of the models that come with the package, sorted."""
    return _SHELF.names()


def load_cpu(name_or_file: str | Path) -> CpuModel:
    """Return a CPU model.

    :param name_or_file: The name of a model that comes with the package, or the path of a TOML file (it ends in
        ``.toml``).
    :raises CpuModelError: No such model, a file that is not TOML, a key that is missing or that no model has, or a
        value that its key cannot have.
    """
    return _SHELF.load(name_or_file)
