"""The tables' columns and types, and the checks that a frame has them."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import polars as pl

from asikit.trace._kinds import EventKind, PageKind, Region

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGE_BYTES: Final = 4096
"""Bytes in a page frame; ``places.vaddr`` is a multiple of it."""

CPUS: Final = 1 << 8
"""CPUs that a trace may have: ``events.cpu`` is one byte."""

EVENT_SCHEMA: Final = pl.Schema(
    {"cpu": pl.UInt8(), "clock": pl.UInt64(), "kind": pl.UInt8(), "arg": pl.UInt32(), "stack": pl.UInt32()}
)
"""Columns of ``events``, in the order in which they are stored."""

SIDE_TABLES: Final[Mapping[str, pl.Schema]] = MappingProxyType(
    {
        "places": pl.Schema({"vaddr": pl.UInt64(), "region": pl.String(), "page": pl.UInt32()}),
        "pages": pl.Schema(
            {"frame": pl.UInt64(), "kind": pl.String(), "cache": pl.String(), "allocation": pl.UInt32()}
        ),
        "allocations": pl.Schema(
            {
                "frame": pl.UInt64(),
                "order": pl.UInt8(),
                "gfp": pl.UInt32(),
                "migratetype": pl.UInt8(),
                "stack": pl.UInt32(),
            }
        ),
        "stacks": pl.Schema({"parent": pl.UInt32(), "address": pl.UInt64(), "symbol": pl.UInt32()}),
        "symbols": pl.Schema({"name": pl.String(), "module": pl.String(), "address": pl.UInt64()}),
        "tasks": pl.Schema({"pid": pl.UInt32(), "tgid": pl.UInt32(), "comm": pl.String(), "mm": pl.UInt32()}),
        "phases": pl.Schema(
            {
                "name": pl.String(),
                "begin": pl.UInt64(),
                "end": pl.UInt64(),
                "task": pl.UInt32(),
                "ended": pl.Boolean(),
            }
        ),
    }
)
"""Columns of the side tables, by the table's name."""

TABLES: Final[Mapping[str, pl.Schema]] = MappingProxyType({"events": EVENT_SCHEMA, **SIDE_TABLES})
"""Columns of every table."""

SINCE: Final[Mapping[str, int]] = MappingProxyType({"phases": 3})
"""The version of the format that a table came with, where it is not the first; before, it was empty."""

NULLABLE: Final = frozenset(
    {
        ("pages", "cache"),
        ("pages", "allocation"),
        ("allocations", "gfp"),
        ("allocations", "migratetype"),
        ("symbols", "module"),
        ("phases", "task"),
    }
)
"""The (table, column) pairs in which a null is allowed; it means "unknown" or "does not apply"."""

_WORDS: Final = MappingProxyType(
    {
        ("places", "region"): frozenset(Region),
        ("pages", "kind"): frozenset(PageKind),
    }
)

FIRST_KIND: Final = min(EventKind)
LAST_KIND: Final = max(EventKind)

ROW_ZERO: Final[Mapping[str, Mapping[str, object]]] = MappingProxyType(
    {
        "stacks": MappingProxyType({"parent": 0, "address": 0, "symbol": 0}),
        "symbols": MappingProxyType({"name": "?", "module": None, "address": 0}),
    }
)
"""The reserved first rows: the empty stack and the unknown symbol."""


def empty_table(name: str) -> pl.DataFrame:
    """Give a side table that has nothing but its reserved first row, if it has one."""
    rows = [dict(ROW_ZERO[name])] if name in ROW_ZERO else []
    return pl.DataFrame(rows, schema=SIDE_TABLES[name])


def schema_fault(table: str, found: Mapping[str, pl.DataType]) -> str | None:
    """Say what is wrong with a frame's columns, or None. The order of the columns does not matter."""
    wanted = TABLES[table]
    for column, dtype in wanted.items():
        if column not in found:
            return f"column {column!r} is missing"
        if found[column] != dtype:
            return f"column {column!r} is {_name(found[column])}, not {_name(dtype)}"
    for column in found:
        if column not in wanted:
            return f"unknown column {column!r}"
    return None


def value_fault(table: str, frame: pl.DataFrame, *, first_row: int = 0) -> str | None:
    """Say which value of a frame is not allowed in its column, or None.

    The frame's columns have passed :func:`schema_fault`, or are a selection of such columns.

    :param first_row: Number in the table of the frame's first row, for the message.
    """
    for column in frame.get_columns():
        if (table, column.name) not in NULLABLE and column.null_count():
            row = first_row + int(column.is_null().arg_max() or 0)
            return f"row {row}: column {column.name!r} has no value"
        words = _WORDS.get((table, column.name))
        if words is not None:
            strange = set(column.unique().to_list()) - words
            if strange:
                word = min(strange)
                row = first_row + int((column == word).arg_max() or 0)
                return f"row {row}: unknown {column.name} {word!r}"
    return None


def row_zero_fault(table: str, frame: pl.DataFrame) -> str | None:
    """Say that a table does not begin with its reserved row, or None."""
    wanted = ROW_ZERO.get(table)
    if wanted is None:
        return None
    if frame.height == 0 or frame.row(0, named=True) != dict(wanted):
        meaning = {"stacks": "the empty stack", "symbols": "the unknown symbol"}[table]
        return f"row 0 is not {meaning} {dict(wanted)}"
    return None


def _name(dtype: pl.DataType) -> str:
    return str(dtype).lower()
