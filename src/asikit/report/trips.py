"""Round trips of a recording: a list of them, and one step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asikit.replay import NO_STEP
from asikit.report._words import REASON_WORDS
from asikit.report.view import Column, Note, Report, Row, Style, Table
from asikit.trace import NO_PAGE, TOUCH_KINDS, EventKind, Stacks, TlbFlush

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

    from asikit.protocol import ExitReason
    from asikit.replay import History

__all__ = ["trip_dict", "trip_list", "trip_report", "trip_table"]

_NESTED = {
    EventKind.NESTED_EXCEPTION: "exception",
    EventKind.NESTED_INTERRUPT: "interrupt",
    EventKind.NESTED_NMI: "NMI",
}
_SIMPLE = {EventKind.NESTED_RETURN: "return from it", EventKind.VM_ENTRY: "VM entry"}
_INDENT = "  "
_FUNCTIONS = 2
"""Functions of a stack to show at a step: the one that does it, and its caller."""


def trip_list(history: History, trips: pl.DataFrame, top: int) -> Report:
    """Return round trips, a line each.

    :param trips: Those to show, in the order to show them.
    :param top: The most to show.
    """
    rows = [
        Row(
            (
                f"{row['trip']:,}",
                str(row["cpu"]),
                _who(row),
                row["entry"],
                f"{row['instructions']:,}",
                f"{row['exits']:,}",
            )
        )
        for row in trips.head(top).iter_rows(named=True)
    ]
    more = trips.height - top
    if more > 0:
        rows.append(Row(("", "", "", f"... and {more:,} more", "", "")))
    columns = (
        Column("trip", number=True),
        Column("CPU", number=True),
        Column("task", breaks=True),
        Column("entry", breaks=True),
        Column("instructions", number=True),
        Column("exits", number=True),
    )
    return Report((Table(columns, tuple(rows)),), f"{trips.height:,} round trips under {history.policy.name}")


def trip_report(history: History, trip: int) -> Report:
    """Return one round trip, a line for each step, with the instructions since the entry.

    :raises SelectionError: There is no such round trip.
    """
    lines = list(_lines(history, trip))
    row = history.trips.filter(trip=trip).row(0, named=True)
    steps = [Note(text, f"{since:>7,}  {_INDENT * depth}", style) for since, depth, text, style in lines]
    if row["end"] is None:
        steps.append(Note("(not over when the recording ended)", " " * 9))
    title = f"Round trip {trip:,} under {history.policy.name}, CPU {row['cpu']}, {_who(row)}"
    return Report(tuple(steps), title)


def trip_table(history: History, trip: int, most: int) -> tuple[Table, int]:
    """Return the same steps as a table, and how many of them are left out.

    :param most: The most steps to show.
    """
    lines = list(_lines(history, trip))
    # What ASI does stands before what it does nothing about, and the earlier before the later.
    first = sorted(range(len(lines)), key=lambda number: (number > 0 and lines[number][-1] is Style.PLAIN, number))
    shown = [lines[number] for number in sorted(first[:most])]
    rows = [Row((f"{since:,}", _INDENT * depth + text), style) for since, depth, text, style in shown]
    columns = (Column("instructions", number=True), Column("step", breaks=True))
    return Table(columns, tuple(rows), ruled=False), max(0, len(lines) - most)


def trip_dict(history: History, trip: int) -> dict[str, Any]:
    """Return one round trip as plain values."""
    row = history.trips.filter(trip=trip).row(0, named=True)
    steps = [
        {"instructions": since, "depth": depth, "what": text, "exit": style is Style.WARNING}
        for since, depth, text, style in _lines(history, trip)
    ]
    return {"policy": history.policy.name, "trip": row, "steps": steps}


def _who(row: dict[str, Any]) -> str:
    return "?" if row["comm"] is None else f"{row['comm']} {row['pid']}"


def _lines(history: History, trip: int) -> Iterator[tuple[int, int, str, Style]]:
    """Give each step: instructions since the entry, how deep in handlers, what it is, and what that means."""
    events = history.steps_of(trip)
    stacks = Stacks(history.trace)
    entry = str(history.trips.filter(trip=trip)["entry"].item())
    began, depth = 0, 0
    for number, (clock, kind, arg, stack, step) in enumerate(
        events.select("clock", "kind", "arg", "stack", "step").iter_rows()
    ):
        began = clock if number == 0 else began
        event = EventKind(kind)
        what = entry if number == 0 else _what(history, event, arg)
        where = " <- ".join(stacks.names(stack)[:_FUNCTIONS])
        depth -= event is EventKind.NESTED_RETURN and depth > 0
        yield clock - began, depth, f"{what}  ({where})" if where and number else what, Style.PLAIN
        depth += event in _NESTED
        yield from ((clock - began, depth, text, style) for text, style in _followed(history, step))


def _followed(history: History, step: int) -> Iterator[tuple[str, Style]]:
    """Give what the protocol does at an event."""
    if step == NO_STEP:
        return
    found = history.step(step)
    if found.amended:
        yield "the recording lacks something before this", Style.FAINT
    if found.exit_reason is not None:
        yield f"EXIT: {_reason(found.exit_reason)}", Style.WARNING
    for effect in found.effects:
        yield str(effect), Style.NOTABLE


def _reason(reason: ExitReason) -> str:
    return f"{reason.value.replace('_', ' ')}: {REASON_WORDS[reason.value]}"


def _what(history: History, kind: EventKind, arg: int) -> str:
    """Return an event in words, without where it happened."""
    if kind in TOUCH_KINDS:
        return f"{kind.name.removeprefix('TOUCH_').lower()} {_place(history, arg)}"
    if kind in _NESTED:
        return f"{_NESTED[kind]} {_vector(history, arg)}in kernel mode"
    if kind in _SIMPLE:
        return _SIMPLE[kind]
    if kind is EventKind.RETURN_USER:
        return "IRET to user mode" if arg else "SYSRET to user mode"
    return _of_tables(history, kind, arg)


def _of_tables(history: History, kind: EventKind, arg: int) -> str:
    tables = history.tables
    if kind is EventKind.TASK_SWITCH:
        comm, pid = tables.tasks.select("comm", "pid").row(arg)
        return f"switch to {comm} {pid}"
    if kind is EventKind.MM_SWITCH:
        return f"page tables of mm {arg}" if arg else "page tables of the kernel alone (init_mm)"
    if kind is EventKind.TLB_FLUSH:
        return f"TLB flush: {TlbFlush(arg).word.replace('_', ' ')}"
    frame, order = tables.allocations.select("frame", "order").row(arg)
    return f"{'allocate' if kind is EventKind.PAGE_ALLOC else 'free'} frame {frame:#x}, order {order}"


def _vector(history: History, arg: int) -> str:
    name = history.tables.meta.get("vectors", {}).get(str(arg))
    return f"{arg} {name.replace('_', ' ')} " if name else f"{arg} "


def _place(history: History, arg: int) -> str:
    vaddr, region, page = history.tables.places.select("vaddr", "region", "page").row(arg)
    if page == NO_PAGE:
        return f"{region} {vaddr:#x}: no memory"
    kind, cache = history.tables.pages.select("kind", "cache").row(page)
    return f"{region} {vaddr:#x}: {kind.replace('_', ' ')}{f' {cache}' if cache else ''}"
