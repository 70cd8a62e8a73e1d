"""CPU models: what a processor has, shares, clears and gets wrong, as data (TOML).

A model file says nothing about prices but may have a table `[costs]`, which is kept as it is for who knows its keys.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_origin

import msgspec

from asikit.errors import nearest
from asikit.machine.x86.errors import CpuModelError
from asikit.protocol import PRIMITIVES, CpuBug, CpuFeature

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["CLEARING", "Bug", "CpuModel", "Feature", "Paging", "Sharing", "StructureModel", "cpu_names", "load_cpu"]

_SUFFIX = ".toml"


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
    """A table of a model file."""


class Paging(_Table, frozen=True, kw_only=True):
    """What decides about address translation.

    Attributes:
        maxphyaddr: physical address bits, CPUID.80000008H:EAX[7:0].
        tlb_entries: entries of the last-level TLB.
    """

    maxphyaddr: int
    tlb_entries: int
    la57: bool
    gib_pages: bool
    pcid: bool
    invpcid: bool
    smep: bool
    smap: bool


class StructureModel(_Table, frozen=True, kw_only=True):
    """A microarchitectural structure.

    Attributes:
        entries: how many values or trainings it holds (for each thread, if `sharing` is `thread`).
        sharing: who shares it.
        cleared_by: primitives each of which clears it; none is one that nothing clears.
    """

    entries: int
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


class CpuModel(_Table, frozen=True, kw_only=True):
    """A CPU model.

    Attributes:
        name: the name that `load_cpu` knows it by.
        title: what it is called in public.
        threads: hardware threads of a core, 1 or 2.
        features: what it has against transient execution.
        bugs: what it is vulnerable to.
        costs: the file's table `[costs]`, as it stands there.
    """

    name: str = ""
    title: str
    vendor: str
    microarchitecture: str
    threads: int
    features: frozenset[Feature]
    bugs: frozenset[Bug]
    paging: Paging
    structures: Structures
    costs: dict[str, Any] = {}

    @property
    def protocol_features(self) -> frozenset[CpuFeature]:
        """The features that decide about the protocol's transitions."""
        return frozenset({CpuFeature.IBPB} if Feature.IBPB in self.features else ())

    @property
    def protocol_bugs(self) -> frozenset[CpuBug]:
        """The vulnerabilities that decide what the protocol's flushes consist of."""
        return frozenset(_PROTOCOL_BUGS[bug] for bug in self.bugs if bug in _PROTOCOL_BUGS)


def cpu_names() -> tuple[str, ...]:
    """Return the names of the models that come with the package, sorted."""
    return tuple(sorted(item.name.removesuffix(_SUFFIX) for item in _folder().iterdir() if item.name.endswith(_SUFFIX)))


def load_cpu(name_or_file: str | Path) -> CpuModel:
    """Return a CPU model.

    :param name_or_file: The name of a model that comes with the package, or the path of a TOML file (it ends in
        ``.toml``).
    :raises CpuModelError: No such model, a file that is not TOML, a key that is missing or that no model has, or a
        value that its key cannot have.
    """
    text = str(name_or_file)
    if text.endswith(_SUFFIX):
        source: Traversable = Path(text)
    else:
        known = cpu_names()
        if text not in known:
            raise CpuModelError(
                f'no CPU model "{text}"{nearest(text, known)}'
                f" (shipped: {', '.join(known)}; a file of your own ends in {_SUFFIX})"
            )
        source = _folder() / f"{text}{_SUFFIX}"
    return _checked(_read(source), str(source) if isinstance(source, Path) else source.name)


def _folder() -> Traversable:
    return files("asikit") / "data" / "cpus"


def _read(source: Traversable) -> dict[str, Any]:
    shown = str(source)
    try:
        return tomllib.loads(source.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise CpuModelError(f"{shown}: not a TOML file: {error}") from error
    except UnicodeDecodeError as error:
        raise CpuModelError(f"{shown}: not a TOML file: it is not UTF-8 text") from error
    except OSError as error:
        raise CpuModelError(f"{shown}: cannot read the CPU model: {error.strerror}") from error


def _checked(document: dict[str, Any], shown: str) -> CpuModel:
    _check_words(document, CpuModel, shown, "")
    if "name" in document:
        raise CpuModelError(f"{shown}: name: a model's name is its file's; remove the key")
    try:
        model = msgspec.convert({**document, "name": Path(shown).name.removesuffix(_SUFFIX)}, CpuModel)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at `$.")
        key = where.rstrip("`")
        raise CpuModelError(f"{shown}: {key}: {what}" if key else f"{shown}: {what}") from error
    _check_numbers(model, shown)
    return model


def _check_words(value: object, kind: Any, shown: str, place: str) -> None:  # noqa: ANN401 - a type, of any form
    """Refuse misspelt keys and names with the nearest right one; msgspec does the rest."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct) and isinstance(value, dict):
        fields = {field.name: field.type for field in msgspec.structs.fields(kind)}
        for key, item in value.items():
            if key not in fields:
                keys = [name for name in fields if name != "name"]
                near = nearest(key, keys) or f" (its keys: {', '.join(sorted(keys))})"
                where = f"[{place}]" if place else "a CPU model"
                raise CpuModelError(f'{shown}: {where} has no key "{key}"{near}')
            _check_words(item, fields[key], shown, f"{place}.{key}" if place else key)
    elif isinstance(kind, type) and issubclass(kind, StrEnum) and isinstance(value, str):
        known = [word.value for word in kind]
        if value not in known:
            raise CpuModelError(
                f'{shown}: {place}: "{value}" is not one of {", ".join(sorted(known))}{nearest(value, known)}'
            )
    elif get_origin(kind) in {tuple, frozenset} and isinstance(value, list):
        for item in value:
            _check_words(item, get_args(kind)[0], shown, place)


def _check_numbers(model: CpuModel, shown: str) -> None:
    ranges = {
        "threads": (model.threads, 1, 2),
        "paging.maxphyaddr": (model.paging.maxphyaddr, 32, 52),
        "paging.tlb_entries": (model.paging.tlb_entries, 1, None),
        **{
            f"structures.{name}.entries": (getattr(model.structures, name).entries, 1, None)
            for name in model.structures.__struct_fields__
        },
    }
    for key, (value, low, high) in ranges.items():
        if value < low or (high is not None and value > high):
            wanted = f"at least {low}" if high is None else f"{low} to {high}"
            raise CpuModelError(f"{shown}: {key}: must be {wanted}, not {value}")
