"""One round trip step by step: what the kernel did, and what ASI did about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from asikit.protocol import Space
from asikit.replay import NO_STEP
from asikit.report._words import REASON_WORDS, REGION_WORDS
from asikit.report.html import Fold
from asikit.report.view import Column, Note, Row, Style, Table
from asikit.trace import ENTRY_KINDS, NO_STACK, RETURN_KINDS, TOUCH_KINDS, EventKind, Stacks, TlbFlush

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.report.recording.sides import Side

__all__ = ["chosen_trips", "opened_trips", "trip_table"]

_CALLERS = 3
_ACCESS = {EventKind.TOUCH_READ: "reads", EventKind.TOUCH_WRITE: "writes", EventKind.TOUCH_FETCH: "runs code in"}
_NESTED = {
    EventKind.NESTED_EXCEPTION: "exception",
    EventKind.NESTED_INTERRUPT: "interrupt",
    EventKind.NESTED_NMI: "NMI",
}


def opened_trips(side: Side, *, most: int) -> tuple[Fold, ...]:
    """Return the most common round trip with an exit, and the one with most exits, step by step.

    :param most: The most steps of each.
    """
    stacks = Stacks(side.trace)
    return tuple(Fold(words, trip_parts(side, trip, stacks, most)) for words, trip in chosen_trips(side).items())


def chosen_trips(side: Side) -> Mapping[str, int]:
    """Return which round trips to open, each with what it is an example of."""
    trips = side.history.trips.filter(pl.col("end").is_not_null() & pl.col("protected") & (pl.col("exits") > 0))
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


def trip_parts(side: Side, trip: int, stacks: Stacks, most: int) -> tuple[Note | Table, ...]:
    """Return who makes a round trip, and its steps."""
    row = side.history.trips.row(trip - 1, named=True)
    who = f"{row['comm']} (process {row['pid']})" if row["comm"] is not None else "a task that is not known"
    phases = f", phase {row['phases']}" if row["phases"] else ""
    first = (
        f"Round trip {trip:,} of the recording, by {who} on CPU {row['cpu']}{phases}, at {row['begin']:,} instructions"
    )
    notes = [Note(f"{first}. It takes {row['instructions']:,}.")]
    table, more = trip_table(side, trip, stacks, most)
    if more:
        notes.append(Note(f"Its first {most} steps; {more:,} follow.", style=Style.FAINT))
    return (*notes, table)


def trip_table(side: Side, trip: int, stacks: Stacks, most: int) -> tuple[Table, int]:
    """Return the steps of a round trip, and how many of them are left out."""
    history = side.history
    marks = history.marks.filter(pl.col("trip") == trip)
    causes = {row["row"]: row for row in history.exits.filter(pl.col("trip") == trip).iter_rows(named=True)}
    entry = str(history.trips["entry"][trip - 1])
    began = int(marks["clock"][0])
    rows = []
    for mark in marks.head(most).iter_rows(named=True):
        step = None if mark["step"] == NO_STEP else history.step(mark["step"])
        cause = causes.get(mark["row"])
        what = _what(mark, entry, cause, side)
        done = ", ".join(str(effect).replace("_", " ") for effect in step.effects) if step is not None else ""
        space = "" if step is None else Space(step.state.cpu.curr_asi).label
        if cause is not None:
            done = f"exit ({REASON_WORDS.get(str(cause['reason']), str(cause['reason']))}): {done}"
        where = " <- ".join(stacks.names(mark["stack"])[:_CALLERS]) if mark["stack"] != NO_STACK else ""
        style = Style.NOTABLE if cause is not None else Style.PLAIN
        rows.append(Row((f"{mark['clock'] - began:,}", what, where, done, space), style))
    columns = (
        Column("after", number=True),
        Column("the kernel", breaks=True),
        Column("function <- callers", breaks=True),
        Column("what ASI does", breaks=True),
        Column("address space then", breaks=True),
    )
    return Table(columns, tuple(rows)), max(0, marks.height - most)


def _what(mark: Mapping[str, int], entry: str, cause: Mapping[str, object] | None, side: Side) -> str:  # noqa: PLR0911
    kind = EventKind(mark["kind"])
    if kind in ENTRY_KINDS:
        return f"is entered: {entry}"
    if kind in RETURN_KINDS:
        return "enters the guest" if kind is EventKind.VM_ENTRY else "returns to user mode"
    if kind in TOUCH_KINDS:
        return f"{_ACCESS[kind]} {_memory(cause)}"
    if kind in _NESTED:
        return f"is interrupted: {_NESTED[kind]} {mark['arg']}"
    if kind is EventKind.NESTED_RETURN:
        return "returns from that"
    if kind is EventKind.TASK_SWITCH:
        tasks = side.history.tables.tasks
        known = mark["arg"] < tasks.height
        return f"switches to {tasks['comm'][mark['arg']]}" if known else "switches to a task that is not known"
    if kind is EventKind.MM_SWITCH:
        return "loads the kernel's own page tables" if mark["arg"] == 0 else f"loads page tables of mm {mark['arg']}"
    return f"flushes the TLB: {TlbFlush(mark['arg'] % len(TlbFlush)).word.replace('_', ' ')}"


def _memory(cause: Mapping[str, object] | None) -> str:
    """Return what was touched: only of an exit is that said here."""
    if cause is None or not cause["kind"]:
        return "memory that is not mapped there"
    kind, cache = str(cause["kind"]).replace("_", " "), str(cause["cache"])
    region = str(cause["region"])
    where = "" if region == "direct_map" else f" in {REGION_WORDS.get(region, region.replace('_', ' '))}"
    by = str(cause["allocated_by"])
    return f"{kind}{f' {cache}' if cache and cache != kind else ''}{where}{f' of {by}' if by not in {'', '?'} else ''}"


def _exits(count: int) -> str:
    return f"{count} exit{'' if count == 1 else 's'}"
