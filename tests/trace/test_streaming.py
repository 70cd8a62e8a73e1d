"""A trace larger than memory is written and read a part at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest

from asikit.trace import EventKind, Trace, TraceError, TraceWriter, summarize
from asikit.trace import _writer as writer_module

if TYPE_CHECKING:
    from pathlib import Path

_PART = 1000
_EVENTS = 25_300


def _write(path: Path) -> Trace:
    clock = np.arange(_EVENTS, dtype=np.uint64)
    with TraceWriter(path, {"source": "test"}, rows_per_part=_PART) as writer:
        for batch in np.array_split(clock, 7):
            zeros = np.zeros(len(batch), np.uint32)
            kind = np.full(len(batch), EventKind.ENTRY_SYSCALL, np.uint8)
            writer.append_events(cpu=zeros.astype(np.uint8), clock=batch, kind=kind, arg=zeros, stack=zeros)
    return Trace.open(path)


def test_writer_holds_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While events are appended, each part goes to disk as soon as it is full: never more than one is held."""
    written = []
    plain = writer_module.TraceWriter._write_table

    def spy(self: TraceWriter, path: str, frame: pl.DataFrame) -> object:
        written.append((path, frame.height, sum(column.nbytes for column in self._buffer.values())))
        return plain(self, path, frame)

    monkeypatch.setattr(writer_module.TraceWriter, "_write_table", spy)
    _write(tmp_path / "t")
    parts = [row for row in written if row[0].startswith("events/")]
    assert parts[:25] == [(f"events/{i:05d}.parquet", _PART, _PART * 18) for i in range(25)]
    assert parts[25:] == [("events/00025.parquet", 300, _PART * 18)]


def test_reader_holds_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The iterator reads a part only when its first chunk is asked for, and each chunk is of one part."""
    trace = _write(tmp_path / "t")
    read = []
    plain = pl.read_parquet

    def spy(file: Path, **options: object) -> pl.DataFrame:
        read.append(file.name)
        return plain(file, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(pl, "read_parquet", spy)
    chunks = trace.events(columns=["clock"], chunk_rows=400)
    assert read == []
    first = next(chunks)
    assert read == ["00000.parquet"]
    heights = [first.height, *(chunk.height for chunk in chunks)]
    assert heights == [400, 400, 200] * 25 + [300]
    assert read == [f"{i:05d}.parquet" for i in range(26)]


def test_chunks_are_in_order(tmp_path: Path) -> None:
    """The chunks laid end to end are the recording, also past the tenth part (part names sort as numbers)."""
    trace = _write(tmp_path / "t")
    clock = np.concatenate([chunk["clock"].to_numpy() for chunk in trace.events(columns=["clock"])])
    assert np.array_equal(clock, np.arange(_EVENTS))
    assert trace.scan_events().select("clock").collect()["clock"].equals(pl.Series("clock", clock))


def test_columns_are_selected_in_order(tmp_path: Path) -> None:
    """Only the columns asked for are read, in the order asked for."""
    chunk = next(_write(tmp_path / "t").events(columns=["stack", "cpu"]))
    assert chunk.columns == ["stack", "cpu"]


def test_empty_trace(tmp_path: Path) -> None:
    """A recording without events is a trace: one empty part, the reserved rows, all counts 0."""
    with TraceWriter(tmp_path / "t", {"source": "test"}):
        pass
    trace = Trace.open(tmp_path / "t")
    trace.verify()
    assert [chunk.height for chunk in trace.events()] == [0]
    assert trace.table("stacks").rows() == [(0, 0, 0)]
    assert trace.table("symbols").rows() == [("?", None, 0)]
    summary = summarize(trace)
    assert (summary.round_trips, summary.cpus, summary.touches) == (0, (), ())


@pytest.mark.parametrize(
    ("columns", "chunk_rows", "message"),
    [
        (["cpu", "time"], None, "events have no column 'time'; there are cpu, clock, kind, arg, stack"),
        ([], None, "no column of the events was asked for"),
        (None, 0, "chunk_rows is 0, must be at least 1"),
    ],
)
def test_wrong_request(tmp_path: Path, columns: list[str] | None, chunk_rows: int | None, message: str) -> None:
    """A column that does not exist, or a senseless chunk, is refused at the call, not at the first chunk."""
    trace = _write(tmp_path / "t")
    with pytest.raises(TraceError) as caught:
        trace.events(columns=columns, chunk_rows=chunk_rows)
    assert str(caught.value) == f"{trace.path}: {message}"
