"""A calibration: what was measured, and what was not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.cost import Unit, known_parameters
from asikit.report.view import Column, Note, Report, Row, Table, choices

if TYPE_CHECKING:
    from asikit.cost import Calibration, Measurement

__all__ = ["calibration_report"]


def calibration_report(calibration: Calibration) -> Report:
    """Return what was measured, with 95 % intervals, and what was not and why."""
    frequency = next(one for one in calibration.measured if one.unit is Unit.GIGAHERTZ).figures.median
    rows = tuple(
        Row((one.name, *_figures(one), _cycles(one, frequency), known_parameters()[one.name].about))
        for one in calibration.measured
    )
    numbers = (Column(heading, number=True) for heading in ("median", "95 % interval", "cycles"))
    table = Table((Column("cost"), *numbers, Column("what it is", breaks=True)), rows)
    missing = choices(dict(sorted(calibration.missing.items())), indent="  ")
    return Report((Note(calibration.identity.name), table, Note("Not measured"), missing))


def _figures(one: Measurement) -> tuple[str, str]:
    figures, unit = one.figures, one.unit.value
    digits = 2 if one.unit is Unit.GIGAHERTZ else 1
    median = f"{figures.median:,.{digits}f} {unit}"
    if figures.low is None or figures.high is None:
        return median, "too few samples"
    return median, f"{figures.low:,.{digits}f} to {figures.high:,.{digits}f}"


def _cycles(one: Measurement, frequency: float) -> str:
    return "-" if one.unit is Unit.GIGAHERTZ else f"{one.figures.median * frequency:,.0f}"
