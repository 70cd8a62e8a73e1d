"""The checks that need to read the whole trace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from asikit.trace._errors import TraceError
from asikit.trace._kinds import NO_PAGE, TOUCH_KINDS, EventKind, TlbFlush
from asikit.trace._schema import CPUS, FIRST_KIND, LAST_KIND, PAGE_BYTES, row_zero_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy.typing as npt
    import polars as pl

    from asikit.trace._reader import Trace

# The side table that an event's arg is a row of.
_ARG_TABLE = {
    **dict.fromkeys(sorted(TOUCH_KINDS), "places"),
    EventKind.TASK_SWITCH: "tasks",
    EventKind.PAGE_ALLOC: "allocations",
    EventKind.PAGE_FREE: "allocations",
}
# How many values an event's arg has, where it is a choice.
_ARG_CHOICES = {EventKind.RETURN_USER: 2, EventKind.TLB_FLUSH: len(TlbFlush)}


def verify(trace: Trace) -> None:
    """Check a trace's ids and clocks; see :meth:`Trace.verify`.

    :raises TraceError: The first fault found.
    """
    for table, check in _SIDE_CHECKS.items():
        fault = check(trace.table(table), trace.rows)
        if fault is not None:
            raise TraceError.at(trace.path / f"{table}.parquet", fault)
    _check_events(trace)


def stacks_fault(stacks: pl.DataFrame, symbols: int) -> str | None:
    """Say what is wrong with the table of stacks, or None: parents come first, symbols are there."""
    parent = stacks["parent"].to_numpy()
    row = _first(parent[1:] >= np.arange(1, len(parent)))
    if row is not None:
        return f"row {row + 1}: parent {parent[row + 1]} is not an earlier row"
    return row_zero_fault("stacks", stacks) or _bound("symbol", stacks, "symbols", symbols)


def _places(places: pl.DataFrame, rows: Callable[[str], int]) -> str | None:
    vaddr = places["vaddr"].to_numpy()
    row = _first(vaddr % PAGE_BYTES != 0)
    if row is not None:
        return f"row {row}: vaddr {vaddr[row]:#x} is not the address of a page"
    return _bound("page", places, "pages", rows("pages"), none=NO_PAGE)


def _pages(pages: pl.DataFrame, rows: Callable[[str], int]) -> str | None:
    return _bound("allocation", pages, "allocations", rows("allocations"))


def _allocations(allocations: pl.DataFrame, rows: Callable[[str], int]) -> str | None:
    return _bound("stack", allocations, "stacks", rows("stacks"))


def _stacks(stacks: pl.DataFrame, rows: Callable[[str], int]) -> str | None:
    return stacks_fault(stacks, rows("symbols"))


def _symbols(symbols: pl.DataFrame, _rows: Callable[[str], int]) -> str | None:
    return row_zero_fault("symbols", symbols)


def _tasks(_tasks: pl.DataFrame, _rows: Callable[[str], int]) -> str | None:
    return None  # any pid, name and mm may be


def _phases(phases: pl.DataFrame, rows: Callable[[str], int]) -> str | None:
    begin, end = phases["begin"].to_numpy(), phases["end"].to_numpy()
    for wrong, what in (
        (begin > end, "ends before it begins"),
        (end > rows("events"), f"ends after the last of {rows('events')} events"),
        (begin < np.concatenate((begin[:1], begin[:-1])), "begins before the one above it"),
    ):
        row = _first(wrong)
        if row is not None:
            return f"row {row}: the phase {phases['name'][row]!r}, from event {begin[row]} to {end[row]}, {what}"
    return _bound("task", phases, "tasks", rows("tasks"))


_SIDE_CHECKS: Mapping[str, Callable[[pl.DataFrame, Callable[[str], int]], str | None]] = {
    "places": _places,
    "pages": _pages,
    "allocations": _allocations,
    "stacks": _stacks,
    "symbols": _symbols,
    "tasks": _tasks,
    "phases": _phases,
}


def _bound(column: str, frame: pl.DataFrame, table: str, rows: int, *, none: int | None = None) -> str | None:
    ids = frame[column]
    wrong = (ids >= rows).fill_null(value=False)
    if none is not None:
        wrong &= ids != none
    if not wrong.any():
        return None
    row = int(wrong.arg_max() or 0)
    return f"row {row}: {column} {ids[row]} is not in {table}, which has {rows} rows"


def _check_events(trace: Trace) -> None:
    """Check the events a part at a time, so that memory stays bounded."""
    limits = {kind: trace.rows(table) for kind, table in _ARG_TABLE.items()} | _ARG_CHOICES
    cpus = trace.recorder.machine.cpus or CPUS
    clocks = np.zeros(CPUS, np.uint64)
    for (path, _), part in zip(trace.files("events").items(), trace.events(), strict=True):
        columns = {name: part[name].to_numpy() for name in part.columns}
        fault = _events_fault(columns, limits, trace.rows("stacks"), cpus) or _clock_fault(columns, clocks)
        if fault is not None:
            raise TraceError.at(trace.path / path, fault)


def _events_fault(
    columns: Mapping[str, npt.NDArray[Any]], limits: Mapping[EventKind, int], stacks: int, cpus: int
) -> str | None:
    kind = columns["kind"]
    row = _first((kind < FIRST_KIND) | (kind > LAST_KIND))
    if row is not None:
        return f"row {row}: unknown kind {kind[row]}"
    row = _first(columns["cpu"] >= cpus)
    if row is not None:
        return f"row {row}: CPU {columns['cpu'][row]}, but the machine has {cpus}"
    row = _first(columns["stack"] >= stacks)
    if row is not None:
        return f"row {row}: stack {columns['stack'][row]} is not in stacks, which has {stacks} rows"
    # A limit for each kind, then one comparison for all events. 2**32 lets every arg pass.
    limit = np.full(LAST_KIND + 1, 1 << 32, np.int64)
    for event, most in limits.items():
        limit[event] = most
    arg = columns["arg"]
    row = _first(arg >= limit[kind])
    if row is None:
        return None
    event = EventKind(int(kind[row]))
    table = _ARG_TABLE.get(event)
    wanted = f"not in {table}, which has {limits[event]} rows" if table else f"not from 0 to {limits[event] - 1}"
    return f"row {row}: {event.name} with arg {arg[row]}, {wanted}"


def _clock_fault(columns: Mapping[str, npt.NDArray[Any]], clocks: npt.NDArray[np.uint64]) -> str | None:
    """Check that no CPU's clock runs backwards, and keep each CPU's last value in ``clocks`` for the next part."""
    for cpu in np.unique(columns["cpu"]):
        rows = np.flatnonzero(columns["cpu"] == cpu)
        clock = columns["clock"][rows]
        before = np.concatenate((clocks[cpu : cpu + 1], clock[:-1]))
        at = _first(clock < before)
        if at is not None:
            return f"row {rows[at]}: the clock of CPU {cpu} runs backwards, from {before[at]} to {clock[at]}"
        clocks[cpu] = clock[-1]
    return None


def _first(wrong: npt.NDArray[np.bool_]) -> int | None:
    return int(wrong.argmax()) if wrong.any() else None
