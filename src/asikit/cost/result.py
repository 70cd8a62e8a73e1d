"""The answer of a pricing, and its JSON form."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asikit import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.cost.expression import Range, Sum
    from asikit.cost.measure import Base
    from asikit.cost.parameters import Parameter, Unit
    from asikit.cost.pricing import BaseTime
    from asikit.cost.terms import CostTerm
    from asikit.trace import Trace

__all__ = ["SCHEMA", "BreakEven", "CostPart", "CostResult", "CostRow", "EachRow", "Influence", "PartRow"]

SCHEMA = "asikit.cost/1"
"""``schema`` of the JSON form."""

_DIGITS = 8  # significant ones; further ones are rounding


@dataclass(frozen=True, slots=True)
class Influence:
    """How far one parameter alone moves the overhead, with the others at their middle.

    :ivar low: The overhead at one end of its range, a share of the run; ``high`` at the other.
    """

    parameter: str
    unit: Unit
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class BreakEven:
    """When ASI costs as much as another mitigation.

    :ivar fraction: Of the round trips: how many may have an exit. More than 1: ASI costs less even if all of them have;
        less than 0: it costs more without any.
    :ivar observed: How many have one.
    """

    fraction: Range
    observed: float

    def to_dict(self) -> dict[str, float]:
        """Return the JSON form."""
        return {**_figures(self.fraction), "observed": _rounded(self.observed)}


@dataclass(frozen=True, slots=True)
class CostRow:
    """A mitigation on a processor.

    :ivar policy: The sensitivity policy; None where there is none.
    :ivar overhead: Share of the run's time without any mitigation that is added.
    :ivar per_round_trip: Cycles added to a round trip, on average.
    :ivar by_source: The overhead's parts.
    :ivar terms: What is added up.
    :ivar shares: The overhead as a sum of products.
    :ivar parameters: The parameters in it.
    :ivar sensitivity: Which parameter moves the overhead how far, most first.
    :ivar exits: Only of ASI, as all that follows: exits of the run.
    :ivar per_exit: Cycles of an exit by a page fault and the return that enters again.
    :ivar per_exit_ns: Nanoseconds of an exit by a page fault and the return that enters again.
    :ivar exit_by_source: Its parts, in cycles.
    :ivar per_ephmap_ns: Of one ephemeral mapping, in ns; None if there are none.
    :ivar break_even: Against the blanket mitigation on this processor.
    :ivar break_even_linux: Against what Linux does by default on this processor.
    """

    mitigation: str
    policy: str | None
    cpu: str
    overhead: Range
    per_round_trip: Range
    by_source: Mapping[str, Range]
    terms: tuple[CostTerm, ...]
    shares: Sum
    parameters: Mapping[str, Parameter]
    sensitivity: tuple[Influence, ...]
    round_trips: int
    exits: int | None = None
    round_trips_with_exit: int | None = None
    per_exit: Range | None = None
    per_exit_ns: Range | None = None
    exit_by_source: Mapping[str, Range] = field(default_factory=dict)
    per_ephmap_ns: Range | None = None
    break_even: BreakEven | None = None
    break_even_linux: BreakEven | None = None
    notes: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """What a table calls it."""
        return self.mitigation if self.policy is None else f"{self.mitigation}, {self.policy}"

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; figures with 8 significant digits."""
        return {
            "mitigation": self.mitigation,
            "policy": self.policy,
            "cpu": self.cpu,
            "overhead": _figures(self.overhead),
            "cycles_per_round_trip": _figures(self.per_round_trip),
            "by_source": {name: _figures(figures) for name, figures in self.by_source.items()},
            "break_even": None if self.break_even is None else self.break_even.to_dict(),
            "break_even_linux": None if self.break_even_linux is None else self.break_even_linux.to_dict(),
            "round_trips": self.round_trips,
            "round_trips_with_exit": self.round_trips_with_exit,
            "exits": self.exits,
            "cycles_per_exit": None if self.per_exit is None else _figures(self.per_exit),
            "ns_per_exit": None if self.per_exit_ns is None else _figures(self.per_exit_ns),
            "exit_by_source": {name: _figures(figures) for name, figures in self.exit_by_source.items()},
            "ns_per_ephmap": None if self.per_ephmap_ns is None else _figures(self.per_ephmap_ns),
            "sensitivity": [
                {"parameter": row.parameter, "low": _rounded(row.low), "high": _rounded(row.high)}
                for row in self.sensitivity
            ],
            "terms": [
                {
                    "source": term.source.value,
                    "what": term.what,
                    "count": _rounded(term.count),
                    "price": list(term.price),
                }
                for term in self.terms
            ],
            "shares": [{"coefficient": term.coefficient, "powers": dict(term.powers)} for term in self.shares],
            "parameters": {name: parameter.to_dict() for name, parameter in self.parameters.items()},
            "notes": list(self.notes),
        }


@dataclass(frozen=True, slots=True)
class PartRow:
    """What a mitigation on a processor adds in a part of the run.

    :ivar cycles: Cycles added; those of all parts add up to the run's.
    :ivar overhead: The time added, as a share of the whole run's time, not of the part's.
    :ivar exits: Only of ASI.
    """

    mitigation: str
    policy: str | None
    cpu: str
    cycles: Range
    overhead: Range
    exits: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; figures with 8 significant digits."""
        return {
            "mitigation": self.mitigation,
            "policy": self.policy,
            "cpu": self.cpu,
            "cycles": _figures(self.cycles),
            "overhead": _figures(self.overhead),
            "exits": self.exits,
        }


@dataclass(frozen=True, slots=True)
class EachRow:
    """What a vulnerability adds to a mitigation on a processor: the cost with it, less the cost without it.

    What is done instead counts: without Retbleed's IBRS there are retpolines. So the rows need not add up to the
    mitigation's cost, and one may be negative.

    :ivar vulnerabilities: One, or several that are mitigated by the same means.
    :ivar overhead: None if a trace cannot count what is done.
    """

    mitigation: str
    cpu: str
    vulnerabilities: tuple[str, ...]
    overhead: Range | None = None
    per_round_trip: Range | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; figures with 8 significant digits."""
        return {
            "mitigation": self.mitigation,
            "cpu": self.cpu,
            "vulnerabilities": list(self.vulnerabilities),
            "overhead": None if self.overhead is None else _figures(self.overhead),
            "cycles_per_round_trip": None if self.per_round_trip is None else _figures(self.per_round_trip),
        }


@dataclass(frozen=True, slots=True)
class CostPart:
    """A task, a process, a CPU, or the stretches in which the same phases are open.

    :ivar instructions: Also those in user mode.
    :ivar rows: One for each of the result's rows, in their order.
    """

    name: str
    pids: tuple[int, ...]
    instructions: int
    kernel_instructions: int
    round_trips: int
    rows: tuple[PartRow, ...]

    @classmethod
    def of(cls, name: str, pids: tuple[int, ...], base: Base, rows: tuple[PartRow, ...]) -> CostPart:
        """Return a part of a run."""
        walked = base.walked
        return cls(name, pids, base.instructions, walked.kernel_instructions, walked.round_trips, rows)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "name": self.name,
            "pids": list(self.pids),
            "instructions": self.instructions,
            "kernel_instructions": self.kernel_instructions,
            "round_trips": self.round_trips,
            "rows": [row.to_dict() for row in self.rows],
        }


@dataclass(frozen=True, slots=True)
class CostResult:
    """What was asked, and a row for each combination.

    :ivar instructions: Of the run, on all CPUs.
    :ivar kernel_instructions: Of these, in round trips into the kernel.
    :ivar base_seconds: The run's CPU seconds, if they were given.
    :ivar warnings: A line for each name that a policy's author gave and that matches nothing in the recording.
    :ivar selection: What of the recording is priced, in words; empty: all of it. Then all of this is about that part.
    :ivar by: What the parts are: ``task``, ``pid``, ``cpu`` or ``phase``; empty if there are none.
    :ivar parts: The longest first.
    :ivar each: What each vulnerability adds to the mitigations that are data, if that was asked for.
    """

    trace: Mapping[str, Any]
    instructions: int
    kernel_instructions: int
    base_seconds: float | None
    smt: bool
    rows: tuple[CostRow, ...]
    warnings: tuple[str, ...] = ()
    selection: str = ""
    by: str = ""
    parts: tuple[CostPart, ...] = ()
    each: tuple[EachRow, ...] = ()

    @classmethod
    def of(cls, trace: Trace, base: Base, base_time: BaseTime, rows: list[CostRow], *, smt: bool) -> CostResult:
        """Return the result for a trace, without warnings."""
        recorder = trace.recorder
        identity = {
            "content_hash": trace.content_hash,
            "kernel": recorder.kernel.release,
            "workload": recorder.workload.command,
        }
        walked = base.walked
        return cls(identity, base.instructions, walked.kernel_instructions, base_time.seconds, smt, tuple(rows))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {
            "schema": SCHEMA,
            "asikit": __version__,
            "trace": dict(self.trace),
            "base": {
                "instructions": self.instructions,
                "kernel_instructions": self.kernel_instructions,
                "seconds": self.base_seconds,
            },
            "smt": self.smt,
            "rows": [row.to_dict() for row in self.rows],
            "warnings": list(self.warnings),
            "selection": self.selection or None,
            "by": {"key": self.by, "parts": [part.to_dict() for part in self.parts]} if self.by else None,
            "each": [row.to_dict() for row in self.each],
        }


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _figures(figures: Range) -> dict[str, float]:
    return {name: _rounded(value) for name, value in figures.to_dict().items()}
