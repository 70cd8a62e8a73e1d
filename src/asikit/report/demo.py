"""Several recordings under several policies, in one table that a newcomer understands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.report.cost import percent
from asikit.report.replay import cause_line
from asikit.report.view import Column, Note, Report, Row, Section, Style, Table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asikit.cost import CostResult, Range
    from asikit.replay import ReplayResult

__all__ = ["overview"]

_PREDICTOR, _BUFFERS = "ibpb", "verw"
_HEADINGS = (
    "kernel\nentries",
    "exits",
    "without\nan exit",
    "predictor\nflushes",
    "buffer\nflushes",
    "CR3\nwrites",
)


def overview(title: str, recordings: Mapping[str, Sequence[ReplayResult]], costs: Mapping[str, CostResult]) -> Report:
    """Return a row for each recording and policy, the main cause of the exits of each, and what that costs.

    :param title: What the recordings are.
    :param recordings: Name of the recording -> its results, in the order of the rows.
    :param costs: Name of the recording -> its costs, in the order of the rows; all of the same mitigations.
    """
    rows = [
        Row(("" if number else name, result.policy, *_figures(result)), ends_group=result is results[-1])
        for name, results in recordings.items()
        for number, result in enumerate(results)
    ]
    columns = (Column("recording"), Column("policy"), *(Column(heading, number=True) for heading in _HEADINGS))
    why = Note("Why the kernel left the restricted address space most often", style=Style.STRONG)
    causes = (note for name, results in recordings.items() for note in _main_causes(name, results))
    return Report((Note(title), Table(columns, tuple(rows), keys=2), why, *causes, _costs(costs)))


def _costs(recordings: Mapping[str, CostResult]) -> Section:
    labels = list(dict.fromkeys(row.label for result in recordings.values() for row in result.rows))
    rows = []
    for name, result in recordings.items():
        cpus = list(dict.fromkeys(row.cpu for row in result.rows))
        for cpu in cpus:
            cells = {row.label: _overhead(row.overhead) for row in result.rows if row.cpu == cpu}
            shown = name if cpu == cpus[0] else ""
            rows.append(Row((shown, cpu, *(cells[label] for label in labels)), ends_group=cpu == cpus[-1]))
    figures = (Column(label, number=True, breaks=True) for label in labels)
    table = Table((Column("recording"), Column("processor"), *figures), tuple(rows), keys=2)
    return Section((table,), "What it costs: time added to the run, best guess (and what is not excluded)")


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


def _main_causes(name: str, results: Sequence[ReplayResult]) -> list[Note]:
    """Name the first cause under each policy, once if it is the same under all."""
    notes: dict[tuple[str, str], list[Note]] = {}
    for result in results:
        for cause in result.top_causes(1):
            head = Note(f"{name}, {result.policy}: {cause.share:.0%} of the exits", "  ")
            notes.setdefault((cause.function, cause.caller), [head, Note(cause_line(cause), "    ")])
    return [note for pair in notes.values() for note in pair]
