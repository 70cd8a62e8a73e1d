"""What a kernel does without ASI, as data: for each vulnerability and processor, work at countable happenings.

``data/mitigations/NAME.toml``; ``docs/cost.md`` has the format.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from asikit.cost.errors import CostError
from asikit.cost.parameters import Unit, known_parameters
from asikit.machine.x86 import Bug, Feature

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

    from asikit.machine.x86 import CpuModel

__all__ = ["Mitigation", "Occasion", "Source", "Work", "load_mitigation", "shipped_mitigations"]

_SUFFIX = ".toml"


class Occasion(StrEnum):
    """What a trace counts."""

    SYSCALL_ENTRY = "syscall_entry"
    EXCEPTION_ENTRY = "exception_entry"
    INTERRUPT_ENTRY = "interrupt_entry"
    NMI_ENTRY = "nmi_entry"
    USER_ENTRY = "user_entry"
    """The four together: an entry from user mode."""
    USER_RETURN = "user_return"
    VM_EXIT = "vm_exit"
    VM_ENTRY = "vm_entry"
    TASK_SWITCH = "task_switch"
    MM_SWITCH = "mm_switch"
    PROCESS_SWITCH = "process_switch"
    """A context switch that changes the mm: no exec, no end of a process, no patching of the kernel's code."""
    KERNEL_INSTRUCTION = "kernel_instruction"


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


class _Condition(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
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


class Work(_Condition, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One thing that a mitigation does.

    :ivar vulnerability: What it is against.
    :ivar unless: Processors that are excepted.
    :ivar at: When it is done.
    :ivar does: Names of costs: those of one list are multiplied, the lists added.
    """

    vulnerability: Bug
    name: str
    at: tuple[Occasion, ...]
    does: tuple[tuple[str, ...], ...]
    counts_as: Source
    source: str
    unless: _Condition | None = None

    def acts_on(self, cpu: CpuModel) -> bool:
        """Tell whether it is done on a processor."""
        return self.holds(cpu) and not (self.unless is not None and self.unless.holds(cpu))


class Mitigation(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a kernel does against vulnerabilities.

    :ivar name: The name that :func:`load_mitigation` knows it by.
    """

    title: str
    work: tuple[Work, ...]
    name: str = ""

    def on(self, cpu: CpuModel) -> tuple[Work, ...]:
        """Return the work that is done on a processor."""
        return tuple(work for work in self.work if work.acts_on(cpu))


def shipped_mitigations() -> tuple[str, ...]:
    """Return the names of the mitigations that come with the package as data, sorted."""
    return tuple(sorted(item.name.removesuffix(_SUFFIX) for item in _folder().iterdir() if item.name.endswith(_SUFFIX)))


def load_mitigation(name_or_file: str) -> Mitigation:
    """Return a mitigation.

    :param name_or_file: The name of a shipped one, or the path of a TOML file (it ends in ``.toml``).
    :raises CostError: There is no such file, it is not TOML, or it has a key or a cost that there is not.
    """
    source: Traversable = (
        Path(name_or_file) if name_or_file.endswith(_SUFFIX) else _folder() / f"{name_or_file}{_SUFFIX}"
    )
    shown = str(source) if isinstance(source, Path) else source.name
    try:
        document = tomllib.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise CostError(f"{shown}: cannot read the mitigation: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CostError(f"{shown}: not a TOML file: {error}") from error
    try:
        loaded = msgspec.convert(document | {"name": source.name.removesuffix(_SUFFIX)}, Mitigation)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$.")
        raise CostError(f"{shown}: {key.rstrip('`')}: {what}" if key else f"{shown}: {what}") from error
    _check_costs(loaded, shown)
    return loaded


def _folder() -> Traversable:
    return files("asikit") / "data" / "mitigations"


def _check_costs(mitigation: Mitigation, shown: str) -> None:
    known = known_parameters()
    for work in mitigation.work:
        for product in work.does:
            for name in product:
                if name not in known:
                    raise CostError(f'{shown}: {work.name}: no cost "{name}" (there are {", ".join(sorted(known))})')
            times = [name for name in product if known[name].unit in {Unit.CYCLES, Unit.NANOSECONDS}]
            if len(times) != 1:
                raise CostError(f"{shown}: {work.name}: one of {', '.join(product)} must be a time, the others are not")
