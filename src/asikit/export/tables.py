"""Round trips and exits as tables, for whatever reads CSV or Parquet."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import polars as pl

from asikit.replay.causes import LABELS

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["csv", "flat", "parquet"]


def flat(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table of numbers and texts alone: the names of several phases are one text."""
    lists = [name for name, dtype in table.schema.items() if isinstance(dtype, pl.List)]
    labels = [label for label in LABELS if isinstance(table.schema.get(label), pl.Enum)]
    return table.with_columns(pl.col(lists).list.join(" + "), pl.col(labels).cast(pl.String))


def csv(table: pl.DataFrame) -> Iterator[bytes]:
    """Give a table as CSV, with a line of headings."""
    yield flat(table).write_csv().encode()


def parquet(table: pl.DataFrame) -> Iterator[bytes]:
    """Give a table as Parquet."""
    out = io.BytesIO()
    flat(table).write_parquet(out)
    yield out.getvalue()
