"""`Trace.verify` finds each id that leads nowhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest

from asikit.trace import SIDE_TABLES, EventKind, Stacks, Trace, TraceError, TraceWriter
from tests.builders import META, TraceBuilder, small_trace

if TYPE_CHECKING:
    from pathlib import Path


def _write(path: Path, builder: TraceBuilder, **tables: pl.DataFrame) -> Trace:
    """Write a trace with some of its side tables replaced."""
    with TraceWriter(path, META, rows_per_part=10) as writer:
        writer.append_events(**builder.columns())
        for name in SIDE_TABLES:
            writer.append(name, tables.get(name, builder.table(name)))
    return Trace.open(path)


def _fault(trace: Trace) -> str:
    with pytest.raises(TraceError) as caught:
        trace.verify()
    return str(caught.value).removeprefix(f"{trace.path}/")


def test_good_trace(tmp_path: Path) -> None:
    """A trace with a bit of everything passes."""
    _write(tmp_path / "t", small_trace()).verify()


@pytest.mark.parametrize(
    ("kind", "arg", "stack", "cpu", "message"),
    [
        (EventKind.TOUCH_READ, 6, 0, 0, "row 7: TOUCH_READ with arg 6, not in places, which has 6 rows"),
        (EventKind.TOUCH_FETCH, 99, 0, 0, "row 7: TOUCH_FETCH with arg 99, not in places, which has 6 rows"),
        (EventKind.TASK_SWITCH, 1, 0, 0, "row 7: TASK_SWITCH with arg 1, not in tasks, which has 1 rows"),
        (EventKind.PAGE_ALLOC, 2, 0, 0, "row 7: PAGE_ALLOC with arg 2, not in allocations, which has 2 rows"),
        (
            EventKind.PAGE_FREE,
            2**32 - 1,
            0,
            0,
            "row 7: PAGE_FREE with arg 4294967295, not in allocations, which has 2 rows",
        ),
        (EventKind.RETURN_USER, 2, 0, 0, "row 7: RETURN_USER with arg 2, not from 0 to 1"),
        (EventKind.TLB_FLUSH, 4, 0, 0, "row 7: TLB_FLUSH with arg 4, not from 0 to 3"),
        (EventKind.ENTRY_SYSCALL, 0, 13, 0, "row 7: stack 13 is not in stacks, which has 13 rows"),
        (EventKind.ENTRY_SYSCALL, 0, 0, 2, "row 7: CPU 2, but the machine has 2"),
    ],
)
def test_wrong_event(tmp_path: Path, kind: EventKind, arg: int, stack: int, cpu: int, message: str) -> None:
    """An event whose arg, stack or CPU is not there is named by its part and row."""
    builder = small_trace()
    rows = {name: column.copy() for name, column in builder.columns().items()}
    for name, value in {"kind": kind, "arg": arg, "stack": stack, "cpu": cpu}.items():
        rows[name][17] = value
    rows["clock"][:] = 5
    builder.columns = lambda: rows  # type: ignore[method-assign]
    assert _fault(_write(tmp_path / "t", builder)) == f"events/00001.parquet: {message}"


@pytest.mark.parametrize("kind", [EventKind.VM_EXIT, EventKind.ENTRY_SYSCALL, EventKind.MM_SWITCH])
def test_any_number_is_allowed(tmp_path: Path, kind: EventKind) -> None:
    """An arg that is no id may be any number: an unknown exit code, a strange system call."""
    builder = small_trace().event(kind, 2**32 - 1)
    _write(tmp_path / "t", builder).verify()


def test_clock_backwards(tmp_path: Path) -> None:
    """A CPU's clock that runs backwards is found across parts, and each CPU has its own."""
    builder = small_trace()
    clock = builder.columns()["clock"]
    cpu = builder.columns()["cpu"]
    rows = builder.columns()
    rows["clock"] = np.where((cpu == 0) & (np.arange(len(clock)) == 25), 1, clock).astype(np.uint64)
    builder.columns = lambda: rows  # type: ignore[method-assign]
    message = "events/00002.parquet: row 5: the clock of CPU 0 runs backwards, from 120 to 1"
    assert _fault(_write(tmp_path / "t", builder)) == message


def _with(table: str, row: int, **values: Any) -> dict[str, pl.DataFrame]:  # noqa: ANN401
    rows = small_trace().table(table).to_dicts()
    rows[row] |= values
    return {table: pl.DataFrame(rows, SIDE_TABLES[table])}


@pytest.mark.parametrize(
    ("tables", "message"),
    [
        (_with("places", 1, vaddr=0xFFF), "places.parquet: row 1: vaddr 0xfff is not the address of a page"),
        (_with("places", 1, page=5), "places.parquet: row 1: page 5 is not in pages, which has 5 rows"),
        (
            _with("pages", 2, allocation=2),
            "pages.parquet: row 2: allocation 2 is not in allocations, which has 2 rows",
        ),
        (
            _with("allocations", 1, stack=13),
            "allocations.parquet: row 1: stack 13 is not in stacks, which has 13 rows",
        ),
        (_with("stacks", 3, parent=3), "stacks.parquet: row 3: parent 3 is not an earlier row"),
        (_with("stacks", 3, parent=2**32 - 1), "stacks.parquet: row 3: parent 4294967295 is not an earlier row"),
        (_with("stacks", 3, symbol=12), "stacks.parquet: row 3: symbol 12 is not in symbols, which has 12 rows"),
        (
            _with("phases", 0, end=2),
            "phases.parquet: row 0: the phase 'steady', from event 3 to 2, ends before it begins",
        ),
        (
            _with("phases", 1, end=99),
            "phases.parquet: row 1: the phase 'inner', from event 11 to 99, ends after the last of 27 events",
        ),
        (
            _with("phases", 1, begin=2),
            "phases.parquet: row 1: the phase 'inner', from event 2 to 27, begins before the one above it",
        ),
        (_with("phases", 0, task=1), "phases.parquet: row 0: task 1 is not in tasks, which has 1 rows"),
    ],
)
def test_wrong_side_table(tmp_path: Path, tables: dict[str, pl.DataFrame], message: str) -> None:
    """A side table's row that leads nowhere is named."""
    assert _fault(_write(tmp_path / "t", small_trace(), **tables)) == message


def test_stacks_are_checked_before_use(tmp_path: Path) -> None:
    """A stack that is its own caller is refused when the stacks are loaded, so that walking one always ends."""
    trace = _write(tmp_path / "t", small_trace(), **_with("stacks", 3, parent=3))
    with pytest.raises(TraceError) as caught:
        Stacks(trace)
    assert str(caught.value) == f"{trace.path}/stacks.parquet: row 3: parent 3 is not an earlier row"
