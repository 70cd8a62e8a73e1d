"""Counts divided by task, process, CPU or phase: tables whose columns add up to the whole."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.report.view import Column, Row, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from asikit.replay import Part, ReplayResult

__all__ = ["PART_WORDS", "parts_table", "rest_label"]

PART_WORDS: Mapping[str, tuple[str, str]] = {
    "task": ("task", "tasks"),
    "pid": ("process", "processes"),
    "cpu": ("CPU", "CPUs"),
    "phase": ("phase", "stretches of phases"),
}
"""What one part is called, and several."""


def parts_table(results: Sequence[ReplayResult], top: int) -> Table:
    """Return a row for each part of one recording: in detail under one policy, else the exits under each.

    :param top: The most parts to show; the last row is for all the others.
    """
    one, _ = PART_WORDS[results[0].by]
    order = results[0].parts
    names = [part.name for part in order[:top]]
    by_name = [{part.name: part for part in result.parts} for result in results]
    shown = [[[parts[name]] for parts in by_name] for name in names]
    if order[top:]:
        names.append(rest_label(len(order) - top, results[0].by))
        shown.append([[parts[part.name] for part in order[top:]] for parts in by_name])
    rows = [
        Row((name, *(_detail(results[0], row[0]) if len(results) == 1 else _beside(results, row))))
        for name, row in zip(names, shown, strict=True)
    ]
    columns = (Column(one, breaks=True), *(Column(heading, number=True) for heading in _headings(results)))
    return Table(columns, tuple(rows))


def rest_label(more: int, by: str) -> str:
    """Return what the last row is called: all parts that have none of their own."""
    return f"... and {more:,} more {PART_WORDS[by][more != 1]}"


def _headings(results: Sequence[ReplayResult]) -> list[str]:
    if len(results) > 1:
        return ["round trips", *(f"exits, {result.policy}" for result in results)]
    return ["round trips", "without exit", "exits", "a round trip", "share"]


def _detail(result: ReplayResult, parts: Sequence[Part]) -> list[str]:
    def total(of: Callable[[Part], int]) -> int:
        return sum(map(of, parts))

    trips, exits = total(lambda part: part.round_trips), total(lambda part: part.exits)
    if result.mechanism != "asi":  # without it there is nothing to exit from
        return [f"{trips:,}", *["-"] * 4]
    ratio = f"{exits / trips:.3f}" if trips else "-"
    share = f"{exits / result.exits:.1%}" if result.exits else "-"
    return [f"{trips:,}", f"{total(lambda part: part.round_trips_without_exit):,}", f"{exits:,}", ratio, share]


def _beside(results: Sequence[ReplayResult], row: Sequence[Sequence[Part]]) -> list[str]:
    exits = [
        f"{sum(part.exits for part in parts):,}" if result.mechanism == "asi" else "-"
        for result, parts in zip(results, row, strict=True)
    ]
    return [f"{sum(part.round_trips for part in row[0]):,}", *exits]
