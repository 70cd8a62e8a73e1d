"""What a stock kernel does, read from data: flushes at crossings, and what it makes different besides.

Two files: ``data/mitigations/linux.toml``, whose work `asikit.cost` prices too, and ``data/hardening/linux.toml`` for
what costs nothing that a trace could count.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import msgspec

from asikit.attacks.vulnerability import StructureName
from asikit.machine.x86 import Bug, Feature
from asikit.protocol import EffectKind, Happening

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.machine.x86 import CpuModel

__all__ = ["Hardening", "Measure", "linux_hardening"]


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


class _Condition(msgspec.Struct, frozen=True, kw_only=True):
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
            and (not self.any_bug or not cpu.bugs.isdisjoint(self.any_bug))
            and cpu.bugs.isdisjoint(self.no_bug)
            and cpu.features.issuperset(self.features)
            and cpu.features.isdisjoint(self.no_feature)
        )


class _Work(_Condition, frozen=True, kw_only=True):
    """An entry of data/mitigations/linux.toml, as far as this room cares: not what it costs."""

    at: tuple[str, ...]
    does: tuple[tuple[str, ...], ...]
    unless: _Condition | None = None


class _Extra(_Condition, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An entry of data/hardening/linux.toml."""

    vulnerability: Bug
    name: str
    source: str
    does: tuple[Measure, ...] = ()
    hides: tuple[StructureName, ...] = ()
    at: tuple[str, ...] = ()
    flushes: tuple[EffectKind, ...] = ()


_MEASURE_OF = {
    "cr3_write": Measure.PTI,
    "retpoline": Measure.NO_INDIRECT_PREDICTION,
    "safe_return": Measure.NO_RETURN_PREDICTION,
    "untrain_return": Measure.NO_RETURN_PREDICTION,
    "spec_ctrl_write": Measure.ISOLATE_MODES,
}
"""What the work is whose costs have these names."""

_USER_ENTRY = tuple(happening for happening in Happening if happening.from_user)
_HAPPENINGS: dict[str, tuple[Happening, ...]] = {
    "user_entry": _USER_ENTRY,
    "user_return": (Happening.RETURN_USER,),
    "task_switch": (Happening.CONTEXT_SWITCH,),
    "process_switch": (Happening.MM_SWITCH,),
}
_AFTER_GUESTS = "user_return_after_vm_exit"
"""The first return to user mode after a VM exit: of all returns only those that have a guest behind them."""


@dataclass(frozen=True)
class Hardening:
    """What a kernel does on one processor.

    :ivar flushes: Primitives at happenings, in order.
    :ivar after_guests: Primitives at the first return to user mode after a VM exit on that CPU.
    :ivar measures: What becomes different.
    :ivar hidden: Structures that a vulnerability cannot reach any more.
    """

    flushes: tuple[tuple[Happening, EffectKind], ...] = ()
    after_guests: tuple[EffectKind, ...] = ()
    measures: frozenset[Measure] = frozenset()
    hidden: frozenset[tuple[Bug, str]] = frozenset()


def linux_hardening(cpu: CpuModel) -> Hardening:
    """Return what Linux does by default on a processor, with SMT off where that is a mitigation."""
    flushes: list[tuple[Happening, EffectKind]] = []
    after_guests: list[EffectKind] = []
    measures: set[Measure] = set()
    hidden: set[tuple[Bug, str]] = set()
    for entry in _read("mitigations")["work"]:
        work = msgspec.convert(entry, _Work)
        if work.holds(cpu) and not (work.unless is not None and work.unless.holds(cpu)):
            names = {name for product in work.does for name in product}
            measures |= {_MEASURE_OF[name] for name in names if name in _MEASURE_OF}
            measures |= _fences(names, work.at)
            flushes += _at(work.at, (EffectKind(name) for name in sorted(names) if name in set(EffectKind)))
    for entry in _read("hardening")["measure"]:
        extra = msgspec.convert(entry, _Extra)
        if extra.holds(cpu):
            measures |= set(extra.does)
            hidden |= {(extra.vulnerability, str(name)) for name in extra.hides}
            flushes += _at((place for place in extra.at if place != _AFTER_GUESTS), extra.flushes)
            after_guests += extra.flushes if _AFTER_GUESTS in extra.at else ()
    return Hardening(
        flushes=tuple(dict.fromkeys(flushes)),
        after_guests=tuple(dict.fromkeys(after_guests)),
        measures=frozenset(measures),
        hidden=frozenset(hidden),
    )


def _fences(names: set[str], at: Iterable[str]) -> set[Measure]:
    if "lfence" not in names:
        return set()
    return {Measure.FENCE_VM_EXIT if place == "vm_exit" else Measure.FENCE_ENTRY for place in at}


def _at(places: Iterable[str], kinds: Iterable[EffectKind]) -> list[tuple[Happening, EffectKind]]:
    kinds = tuple(kinds)
    return [
        (happening, kind)
        for place in places
        if place != "kernel_instruction"
        for happening in _HAPPENINGS.get(place) or (Happening(place),)
        for kind in kinds
    ]


@cache
def _read(folder: str) -> dict[str, Any]:
    return tomllib.loads((files("asikit") / "data" / folder / "linux.toml").read_text(encoding="utf-8"))
