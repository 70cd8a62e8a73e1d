"""A CPU model file for a measured machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.cost.parameters import Unit
from asikit.machine.x86 import Bug, Feature

if TYPE_CHECKING:
    from asikit.cost.calibrate import Calibration, Measurement
    from asikit.cost.host import Identity
    from asikit.machine.x86 import CpuModel

__all__ = ["model_file"]

# The kernel's names of bugs (/proc/cpuinfo) where they are not the models'.
_BUG_NAMES = {
    "cpu_meltdown": Bug.MELTDOWN,
    "spec_store_bypass": Bug.SSB,
    "mmio_stale_data": Bug.MMIO,
    "itlb_multihit": Bug.ITLB,
}
# What a kernel does not call a bug because nothing needs to be done: not known from cpuinfo.


def model_file(calibration: Calibration, like: CpuModel, source: str) -> str:
    """Return the text of a model file.

    :param source: What each figure's source says.
    """
    identity = calibration.identity
    lines = [
        f"# Measured by {source}.",
        f"# What user mode cannot see (structures, sizes) is taken from {like.name}.",
        f"title = {_quoted(identity.name or identity.vendor)}",
        f"vendor = {_quoted({'GenuineIntel': 'intel', 'AuthenticAMD': 'amd'}.get(identity.vendor, identity.vendor))}",
        f"microarchitecture = {_quoted(like.microarchitecture if identity.model else 'unknown')}",
        f"threads = {identity.threads}",
        f"features = {_list(sorted(feature.value for feature in Feature if feature.value in identity.flags))}",
        f"bugs = {_list(sorted(_bugs(identity)))}",
        "",
        *_paging(identity, like),
        *_structures(like),
        *_costs(calibration, like, source),
    ]
    return "\n".join(lines) + "\n"


def _bugs(identity: Identity) -> set[str]:
    known = {bug.value for bug in Bug}
    return {
        _BUG_NAMES[name].value if name in _BUG_NAMES else name
        for name in identity.bugs
        if name in _BUG_NAMES or name in known
    }


def _paging(identity: Identity, like: CpuModel) -> list[str]:
    flags = {
        "la57": "la57",
        "gib_pages": "pdpe1gb",
        "pcid": "pcid",
        "invpcid": "invpcid",
        "smep": "smep",
        "smap": "smap",
    }
    return [
        "[paging]",
        f"maxphyaddr = {identity.physical_bits or like.paging.maxphyaddr}",
        f"tlb_entries = {like.paging.tlb_entries}",
        *(f"{key} = {str(flag in identity.flags).lower()}" for key, flag in flags.items()),
    ]


def _structures(like: CpuModel) -> list[str]:
    lines = []
    for name in like.structures.__struct_fields__:
        structure = getattr(like.structures, name)
        lines += [
            "",
            f"[structures.{name}]",
            f"entries = {structure.entries}",
            f"sharing = {_quoted(structure.sharing.value)}",
            f"cleared_by = {_list([clearing.value for clearing in structure.cleared_by])}",
        ]
    return lines


def _costs(calibration: Calibration, like: CpuModel, source: str) -> list[str]:
    lines: list[str] = []
    for one in calibration.measured:
        lines += ["", f"[costs.{one.name}]", f'unit = "{one.unit.value}"', *_figures(one), 'basis = "measured"']
        lines.append(f"source = {_quoted(f'{source}: {one.how}; median of {one.figures.runs} samples')}")
    measured = {one.name for one in calibration.measured}
    kept = {name: cost for name, cost in like.costs.items() if name not in measured and calibration.identity.model}
    for name, cost in kept.items():
        lines += ["", f"[costs.{name}]"]
        # Of another specimen: no longer measured on this one.
        lines += [f"{key} = {_value(value if key != 'basis' else 'estimate')}" for key, value in cost.items()]
    lines += ["", "[costs.not_measured]"]
    lines += [f"{name} = {_quoted(why)}" for name, why in sorted(calibration.missing.items())]
    return lines


def _figures(one: Measurement) -> list[str]:
    figures = one.figures
    digits = 4 if one.unit is Unit.GIGAHERTZ else 1
    if figures.low is None or figures.high is None:
        return [f"value = {figures.median:.{digits}f}"]
    low, high = max(0.0, figures.low), figures.high
    return [
        f"low = {low:.{digits}f}",
        f"mid = {figures.median:.{digits}f}",
        f"high = {high:.{digits}f}",
    ]


def _list(words: list[str]) -> str:
    return f"[{', '.join(map(_quoted, words))}]"


def _value(value: object) -> str:
    return _quoted(value) if isinstance(value, str) else str(value)


def _quoted(text: str) -> str:
    """Return a TOML basic string."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(char if char.isprintable() else " " for char in escaped) + '"'
