"""A comparison as text: figures of both sides, the difference with its interval, and the most changed causes."""

from __future__ import annotations

from math import isinf
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asikit.report._tables import fitted

if TYPE_CHECKING:
    from rich.console import RenderableType

    from asikit.cost import Change, Comparison, Pair

__all__ = ["compare_report"]

_SHARES = frozenset({"overhead"})
_LABELS = ("mitigation", "policy", "cpu", "classes")


def compare_report(comparison: Comparison, *, top: int = 10) -> RenderableType:
    """Return the sides' difference, and a section for each pair.

    :param top: The most causes to show of each pair.
    """
    parts: list[RenderableType] = []
    for facet, (one, other) in comparison.differs.items():
        parts.append(Text(f"{facet}: {one} -> {other}"))
    if not comparison.differs:
        parts.append(Text("Both sides are of the same."))
    first, second = comparison.runs
    if (first, second) != (1, 1):
        parts.append(Text(f"{first} and {second} runs: medians with 95 % intervals; ~ is no difference"))
    for pair in comparison.pairs:
        if all(change.first.median == change.second.median == 0 for change in pair.metrics):
            continue
        parts += [Text(), Text(_title(pair), style="bold"), _metrics(pair)]
        parts += _causes(pair, top)
    return Group(*parts)


def _title(pair: Pair) -> str:
    return ", ".join(pair.what[facet] for facet in _LABELS if facet in pair.what) or "Both"


def _metrics(pair: Pair) -> Table:
    shown = [change for change in pair.metrics if change.first.median or change.second.median]
    rows = [_row(change) for change in shown]
    headings = ["", "A", "B", "change", "", "interval"]
    if not any(row[-1] for row in rows):
        headings, rows = headings[:-1], [row[:-1] for row in rows]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in headings:
        table.add_column(heading, justify="right" if heading or table.columns else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return fitted(table)


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


def _causes(pair: Pair, top: int) -> list[RenderableType]:
    changed = [change for change in pair.causes if change.by.shift][:top]
    if not changed:
        return []
    share = pair.metric("overhead") is not None
    lines: list[RenderableType] = [Text("Most changed")]
    lines += [
        Text(f"  {_shift(change, share=share):>12}  {change.name.replace('_', ' ') if share else change.name}")
        for change in changed
    ]
    if pair.cut:
        lines.append(Text(f"  {'':>12}  (of the causes that all documents list: one was cut off with --top)"))
    more = sum(1 for change in pair.causes if change.by.shift) - len(changed)
    if more:
        lines.append(Text(f"  {'':>12}  ... and {more:,} more"))
    if pair.read_as_one:
        causes = "cause has" if pair.read_as_one == 1 else "causes have"
        lines.append(
            Text(f"  {'':>12}  ({pair.read_as_one:,} {causes} other names in B, where others are inlined: a | b)")
        )
    return lines


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
