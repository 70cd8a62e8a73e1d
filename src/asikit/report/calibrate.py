"""A calibration as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asikit.cost import Unit, known_parameters

if TYPE_CHECKING:
    from rich.console import RenderableType

    from asikit.cost import Calibration, Measurement

__all__ = ["calibration_report"]

_WIDTH = 100


def calibration_report(calibration: Calibration) -> RenderableType:
    """Return what was measured, with 95 % intervals, and what was not and why."""
    frequency = next(one for one in calibration.measured if one.unit is Unit.GIGAHERTZ).figures.median
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), width=_WIDTH)
    table.add_column("cost", no_wrap=True)
    for heading in ("median", "95 % interval", "cycles"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("what it is", overflow="fold")
    for one in calibration.measured:
        table.add_row(one.name, *_figures(one), _cycles(one, frequency), known_parameters()[one.name].about)
    parts: list[RenderableType] = [Text(calibration.identity.name), table, Text("Not measured")]
    width = max(len(name) for name in calibration.missing)
    parts += [Text(f"  {name:<{width}}  {why}") for name, why in sorted(calibration.missing.items())]
    return Group(*parts)


def _figures(one: Measurement) -> tuple[str, str]:
    figures, unit = one.figures, one.unit.value
    digits = 2 if one.unit is Unit.GIGAHERTZ else 1
    median = f"{figures.median:,.{digits}f} {unit}"
    if figures.low is None or figures.high is None:
        return median, "too few samples"
    return median, f"{figures.low:,.{digits}f} to {figures.high:,.{digits}f}"


def _cycles(one: Measurement, frequency: float) -> str:
    return "-" if one.unit is Unit.GIGAHERTZ else f"{one.figures.median * frequency:,.0f}"
