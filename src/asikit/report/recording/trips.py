"""Which round trips a page opens, step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from asikit.report.html import Fold
from asikit.report.trips import trip_table
from asikit.report.view import Note, Style

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.report.recording.sides import PolicyView

__all__ = ["chosen_trips", "opened_trips"]


def opened_trips(side: PolicyView, *, most: int) -> tuple[Fold, ...]:
    """Return the most common round trip with an exit, and the one with most exits, step by step.

    :param most: The most steps of each.
    """
    return tuple(_opened(side, words, trip, most) for words, trip in chosen_trips(side).items())


def _opened(side: PolicyView, words: str, trip: int, most: int) -> Fold:
    row = side.history.trips.filter(trip=trip).row(0, named=True)
    who = f"{row['comm']} (process {row['pid']})" if row["comm"] is not None else "a task that is not known"
    phases = f", phase {row['phases']}" if row["phases"] else ""
    first = (
        f"Round trip {trip:,} of the recording, by {who} on CPU {row['cpu']}{phases}, at {row['begin']:,} instructions"
    )
    notes = [Note(f"{first}. It takes {row['instructions']:,}.")]
    table, more = trip_table(side.history, trip, most)
    if more:
        notes.append(Note(f"{more:,} steps about which ASI does nothing are left out.", style=Style.FAINT))
    return Fold(words, (*notes, table))


def chosen_trips(side: PolicyView) -> Mapping[str, int]:
    """Return which round trips to open, each with what it is an example of."""
    whole = side.history.trips.filter(pl.col("end").is_not_null() & pl.col("protected"))
    trips = whole.join(side.exits, on="trip", how="semi", maintain_order="left")
    if not trips.height:
        return {}
    alike = trips.group_by("entry", "exits", maintain_order=True)
    most = alike.agg(pl.len(), pl.col("instructions").median()).sort("len", descending=True, maintain_order=True)
    entry, exits, times, middle = most.row(0)
    same = trips.filter((pl.col("entry") == entry) & (pl.col("exits") == exits))
    typical = same.sort((pl.col("instructions") - middle).abs(), maintain_order=True).row(0, named=True)
    worst = trips.sort("exits", "instructions", descending=True, maintain_order=True).row(0, named=True)
    share = times / trips.height
    shown = {f"A typical one: {entry}, {_exits(exits)} ({share:.0%} of those that exit are like it)": typical["trip"]}
    if worst["trip"] != typical["trip"]:
        what = "The one with most exits" if worst["exits"] > exits else "No other has more exits; the longest"
        shown[f"{what}: {worst['entry']}, {_exits(worst['exits'])}"] = worst["trip"]
    return shown


def _exits(count: int) -> str:
    return f"{count} exit{'' if count == 1 else 's'}"
