"""A comparison: figures of both sides, the difference with its interval, and the most changed causes."""

from __future__ import annotations

from math import isinf
from typing import TYPE_CHECKING

from asikit.report.view import Bar, Chart, Column, Note, Report, Row, Section, Style, Table

if TYPE_CHECKING:
    from asikit.cost import Change, Comparison, Pair

__all__ = ["compare_report"]

_SHARES = frozenset({"overhead"})
_LABELS = ("mitigation", "policy", "cpu", "classes")


def compare_report(comparison: Comparison, *, top: int = 10) -> Report:
    """Return the sides' difference, and a section for each pair.

    :param top: The most causes to show of each pair.
    """
    parts: list[Note | Section] = [
        Note(f"{one} -> {other}", f"{facet}: ") for facet, (one, other) in comparison.differs.items()
    ]
    if not comparison.differs:
        parts.append(Note("No factor (policy, kernel, processor, ...) differs between the sides."))
    first, second = comparison.runs
    if (first, second) != (1, 1):
        parts.append(Note(f"{first} and {second} runs: medians with 95 % intervals; ~ is no difference"))
    parts += [
        Section((_metrics(pair), *_causes(pair, top)), _title(pair))
        for pair in comparison.pairs
        if any(change.first.median or change.second.median for change in pair.metrics)
    ]
    return Report(tuple(parts))


def _title(pair: Pair) -> str:
    return ", ".join(pair.what[facet] for facet in _LABELS if facet in pair.what) or "Both"


def _metrics(pair: Pair) -> Table:
    shown = [change for change in pair.metrics if change.first.median or change.second.median]
    rows = [_row(change) for change in shown]
    headings = ["A", "B", "change", "", "interval"]
    if not any(row[-1] for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    columns = (Column(), *(Column(heading, number=True) for heading in headings))
    return Table(columns, tuple(map(Row, rows)))


def _row(change: Change) -> tuple[str, ...]:
    share = change.name in _SHARES
    return (
        change.name.replace("_", " "),
        _figure(change.first.median, share=share),
        _figure(change.second.median, share=share),
        _shift(change, share=share),
        _percent(change),
        _interval(change, share=share),
    )


def _causes(pair: Pair, top: int) -> list[Chart]:
    changed = [change for change in pair.causes if change.by.shift]
    if not changed[:top]:
        return []
    share = pair.metric("overhead") is not None
    bars = [
        Bar(change.name.replace("_", " ") if share else change.name, _shift(change, share=share), change.by.shift)
        for change in changed[:top]
    ]
    if pair.cut:
        bars.append(Bar("(of the causes that all documents list: one was cut off with --top)"))
    if changed[top:]:
        bars.append(Bar(f"... and {len(changed[top:]):,} more"))
    if pair.read_as_one:
        causes = "cause has" if pair.read_as_one == 1 else "causes have"
        bars.append(Bar(f"({pair.read_as_one:,} {causes} other names in B than in A: A's name | B's name)"))
    return [Chart(tuple(bars), "Most changed", Style.PLAIN)]


def _shift(change: Change, *, share: bool) -> str:
    if not change.by.is_real:
        return "~"
    sign = "+" if change.by.shift > 0 else "-"
    return f"{sign}{_figure(abs(change.by.shift), share=share)}"


def _percent(change: Change) -> str:
    if not change.by.is_real or change.percent is None:
        return ""
    return f"{change.percent:+.1f}%"


def _interval(change: Change, *, share: bool) -> str:
    low, high = change.by.low, change.by.high
    if low is None or high is None or (low == high == change.by.shift):
        return ""
    if isinf(low) or isinf(high):
        return "too few runs"
    return f"{_figure(low, share=share)} to {_figure(high, share=share)}"


def _figure(value: float, *, share: bool) -> str:
    if share:
        return f"{100 * value:.2f}%"
    return f"{value:,.0f}" if value == round(value) else f"{value:,.1f}"
