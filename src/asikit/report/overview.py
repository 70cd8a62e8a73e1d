"""Several recordings under several policies, in one table that a newcomer understands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asikit.report._tables import fitted
from asikit.report.cost import percent
from asikit.report.replay import cause_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from asikit.cost import CostResult, Range
    from asikit.replay import ReplayResult

__all__ = ["cost_overview", "overview"]

_PREDICTOR, _BUFFERS = "ibpb", "verw"
_WIDTH = 98


def overview(recordings: Mapping[str, Sequence[ReplayResult]]) -> RenderableType:
    """Return a row for each recording and policy, and the main cause of the exits below each recording.

    :param recordings: Name of the recording -> its results, in the order of the rows.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), width=_WIDTH)
    table.add_column("recording", no_wrap=True)
    table.add_column("policy", no_wrap=True)
    for heading in (
        "kernel\nentries",
        "exits",
        "entries that\nneeded none",
        "predictor\nflushes",
        "buffer\nflushes",
        "CR3\nwrites",
    ):
        table.add_column(heading, justify="right", vertical="bottom")
    for name, results in recordings.items():
        for number, result in enumerate(results):
            table.add_row("" if number else name, result.policy, *_figures(result), end_section=result is results[-1])
    lines = [line for name, results in recordings.items() for line in _main_causes(name, results)]
    return Group(
        table, Text("Why the kernel left the restricted address space most often", style="bold"), *map(Text, lines)
    )


def cost_overview(recordings: Mapping[str, CostResult]) -> RenderableType:
    """Return the overhead of each mitigation, a row for each recording and processor, and what it consists of.

    :param recordings: Name of the recording -> its costs, in the order of the rows; all of the same mitigations.
    """
    labels = list(dict.fromkeys(row.label for result in recordings.values() for row in result.rows))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("recording", no_wrap=True)
    table.add_column("processor", no_wrap=True)
    for label in labels:
        table.add_column(label, justify="right", no_wrap=True)
    for name, result in recordings.items():
        cpus = list(dict.fromkeys(row.cpu for row in result.rows))
        for cpu in cpus:
            cells = {row.label: _overhead(row.overhead) for row in result.rows if row.cpu == cpu}
            shown = name if cpu == cpus[0] else ""
            table.add_row(shown, cpu, *(cells[label] for label in labels), end_section=cpu == cpus[-1])
    title = "What it costs: time added to the run, best guess (and what is not excluded)"
    return Group(Text(title, style="bold"), fitted(table))


def _overhead(figures: Range) -> str:
    """Return a range in the fewest characters: ``12.5% (3.10-40.2%)``."""
    if figures.is_exact:
        return percent(figures.mid)
    return f"{percent(figures.mid)} ({percent(figures.low).removesuffix('%')}-{percent(figures.high)})"


def _figures(result: ReplayResult) -> tuple[str, ...]:
    entries = result.round_trips
    asi = result.mechanism == "asi"
    return (
        f"{entries:,}",
        f"{result.exits:,}" if asi else "-",
        f"{result.round_trips_without_exit / max(1, entries):.0%}" if asi else "-",
        f"{result.flushes.get(_PREDICTOR, 0):,}",
        f"{result.flushes.get(_BUFFERS, 0):,}",
        f"{result.cr3_writes:,}",
    )


def _main_causes(name: str, results: Sequence[ReplayResult]) -> list[str]:
    """Name the first cause under each policy, once if it is the same under all."""
    lines: dict[tuple[str, str], str] = {}
    for result in results:
        for cause in result.top_causes(1):
            head = f"  {name}, {result.policy}: {cause.share:.0%} of the exits"
            lines.setdefault((cause.function, cause.caller), f"{head}\n    {cause_line(cause)}")
    return list(lines.values())
