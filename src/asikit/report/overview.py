"""Several recordings under several policies, in one table that a newcomer understands."""

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asikit.report.replay import cause_line

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import RenderableType

    from asikit.replay import ReplayResult

__all__ = ["overview"]

_PREDICTOR, _BUFFERS = "ibpb", "verw"
_WIDTH = 98


def overview(recordings: "Mapping[str, Sequence[ReplayResult]]") -> "RenderableType":
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


def _figures(result: "ReplayResult") -> tuple[str, ...]:
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


def _main_causes(name: str, results: "Sequence[ReplayResult]") -> list[str]:
    """Name the first cause under each policy, once if it is the same under all."""
    lines: dict[tuple[str, str], str] = {}
    for result in results:
        for cause in result.top_causes(1):
            head = f"  {name}, {result.policy}: {cause.share:.0%} of the exits"
            lines.setdefault((cause.function, cause.caller), f"{head}\n    {cause_line(cause)}")
    return list(lines.values())
