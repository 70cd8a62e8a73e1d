"""Named costs: each a range with its unit, how it is known, and its source.

``data/costs.toml`` has every parameter that exists, with the range in which it lies on the processors that somebody
measured, or an estimate. A CPU model's ``[costs]`` lays over it what is known of that processor (docs/cpu-models.md).
"""

from __future__ import annotations

import math
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from asikit.cost.errors import CostError
from asikit.cost.expression import Range
from asikit.documents import FILLED, KeyPlace, shipped_text, typed
from asikit.errors import nearest
from asikit.sources import cited, spelt_out

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.machine.x86 import CpuModel

__all__ = ["Basis", "Parameter", "Unit", "cpu_parameters", "known_parameters"]

_SHARED = "costs.toml"
_NOT_MEASURED = "not_measured"  # a table of reasons in what `asi calibrate` writes


class Unit(StrEnum):
    """What a parameter's figures count."""

    CYCLES = "cycles"
    """Cycles of the core's clock."""
    NANOSECONDS = "ns"
    GIGAHERTZ = "GHz"
    CYCLES_PER_INSTRUCTION = "cycles/instruction"
    PER_INSTRUCTION = "1/instruction"
    SHARE = "share"
    """A part of a whole, 0 to 1."""
    COUNT = "count"
    """So many lines, pages, entries: the parameter's name says which."""


_POSITIVE = frozenset({Unit.GIGAHERTZ, Unit.CYCLES_PER_INSTRUCTION})  # what is divided by


class Basis(StrEnum):
    """How a figure is known."""

    MEASURED = "measured"
    """By the source, on this very processor."""
    DOCUMENTED = "documented"
    """The vendor says so."""
    ESTIMATE = "estimate"
    """Nobody measured it on this processor: carried over from others, or reasoned; the source says from what."""
    TRACE = "trace"
    """Counted in the recording, as far as it can be."""
    USER = "given"
    """Given on the command line."""


class Parameter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A named cost.

    :ivar source: In words; what it cites is called by its short name.
    :ivar value: Instead of the three: a figure that is known.
    :ivar cites: Keys of the sources that it cites (:mod:`asikit.sources`).
    """

    unit: Unit
    basis: Basis
    source: str
    low: float | None = None
    mid: float | None = None
    high: float | None = None
    value: float | None = None
    about: str = ""
    cites: Annotated[tuple[str, ...], FILLED] = ()

    @property
    def range(self) -> Range:
        """The figures."""
        if self.value is not None:
            return Range.exactly(self.value)
        if self.low is None or self.mid is None or self.high is None:
            raise CostError("a cost has neither a value nor a range")
        return Range(self.low, self.mid, self.high)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"unit": self.unit.value, **self.range.to_dict(), "basis": self.basis.value, "source": self.source}


@cache
def _shared() -> Mapping[str, Parameter]:
    known = shipped_text(_SHARED, dict[str, Parameter], CostError, "table of costs")
    return {name: _sound(parameter, _place(_SHARED, name)) for name, parameter in known.items()}


def known_parameters() -> Mapping[str, Parameter]:
    """Return all parameters, as they are where nothing is known of the processor."""
    return dict(_shared())


def cpu_parameters(model: CpuModel) -> Mapping[str, Parameter]:
    """Return all parameters of a processor: its own, and the shared ones where it has none.

    :raises CostError: The model's table ``[costs]`` has a parameter that nobody asks for, or one that makes no sense.
    """
    known = _shared()
    own: dict[str, Parameter] = {}
    for name, table in model.costs.items():
        if name == _NOT_MEASURED:
            continue
        if name not in known:
            hint = nearest(name, known) or f" (there are {', '.join(sorted(known))})"
            raise CostError.usage(f'{model.name}: [costs] has no parameter "{name}"{hint}')
        own[name] = _own(name, table, model.name, known[name])
    return {name: own.get(name, shared) for name, shared in known.items()}


def _own(name: str, table: object, where: str, shared: Parameter) -> Parameter:
    """Check a model's parameter; what it is about and its unit are the shared one's, unless it is given in others."""
    place = _place(where, f"costs.{name}")
    if not isinstance(table, dict):
        raise place.fault("must be a table with unit, basis, source, and value or low, mid, high")
    parameter = _sound(typed(table, Parameter, place), place)
    times = {Unit.CYCLES, Unit.NANOSECONDS}
    if parameter.unit is not shared.unit and not {parameter.unit, shared.unit} <= times:
        raise place.fault(f"unit: must be {shared.unit.value}, not {parameter.unit.value}")
    return msgspec.structs.replace(parameter, about=parameter.about or shared.about)


def _place(file: str, key: str) -> KeyPlace:
    return KeyPlace(file, CostError, "table of costs", key)


def _sound(parameter: Parameter, place: KeyPlace) -> Parameter:
    fault = _fault(parameter)
    if fault:
        raise place.fault(fault)
    source = parameter.source
    return msgspec.structs.replace(parameter, source=spelt_out(source), cites=cited(source))


def _fault(parameter: Parameter) -> str:
    """Say what is wrong with the figures, nothing if they are right."""
    three = (parameter.low, parameter.mid, parameter.high)
    figures = [figure for figure in (*three, parameter.value) if figure is not None]
    if len(figures) not in {1, 3} or (len(figures) == 1 and parameter.value is None):
        return "must have either value, or low, mid and high"
    rules = (
        (all(math.isfinite(figure) and figure >= 0 for figure in figures), "must not be negative or infinite"),
        (figures == sorted(figures), f"must have low <= mid <= high, not {', '.join(f'{x:g}' for x in figures)}"),
        (parameter.unit not in _POSITIVE or figures[0] > 0, "must be greater than 0"),
        (parameter.unit is not Unit.SHARE or figures[-1] <= 1, "must be at most 1"),
        (bool(parameter.source.strip()), "source: must say where the figures come from"),
    )
    return next((fault for holds, fault in rules if not holds), "")
