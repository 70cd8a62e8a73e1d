"""Where time goes: a bar for each mitigation on each processor, of the parts that add up to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.report.cost import SOURCE_WORDS, interval, percent
from asikit.report.html import BarGroup, BarPart, PartName, Stacked, StackedBar

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.cost import CostRow
    from asikit.report.recording.sides import RecordingView

__all__ = ["stacked"]

_NONE = "none"


def stacked(recordings: Sequence[RecordingView]) -> Stacked:
    """Return the overheads of all recordings on one scale."""
    several = len(recordings) > 1
    groups = []
    for recording in recordings:
        rows = recording.cost.rows if recording.cost is not None else ()
        for cpu in dict.fromkeys(row.cpu for row in rows):
            bars = tuple(_bar(row) for row in rows if row.cpu == cpu and row.mitigation != _NONE)
            groups.append(BarGroup(f"{recording.name} on {cpu}" if several else f"On {cpu}", bars))
    used = {share.source for group in groups for bar in group.bars for share in bar.parts}
    words = tuple(PartName(key, text.strip()) for key, text in SOURCE_WORDS.items() if key in used)
    return Stacked(tuple(groups), words)


def _bar(row: CostRow) -> StackedBar:
    parts = (
        BarPart(source, row.by_source[source].mid, percent(row.by_source[source].mid))
        for source in SOURCE_WORDS
        if source in row.by_source
    )
    overhead = row.overhead
    return StackedBar(row.label, overhead.low, overhead.mid, overhead.high, interval(overhead), tuple(parts))
