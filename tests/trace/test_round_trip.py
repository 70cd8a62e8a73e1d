"""What is written is what is read, and the same input gives the same bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import numpy as np
import polars as pl
from hypothesis import given, settings

from asikit.trace import EVENT_SCHEMA, SIDE_TABLES, EventKind, PageKind, Region, Trace, TraceWriter
from tests.builders import small_trace

if TYPE_CHECKING:
    import numpy.typing as npt

_DTYPES = {"cpu": np.uint8, "clock": np.uint64, "kind": np.uint8, "arg": np.uint32, "stack": np.uint32}

_u8 = st.integers(0, 2**8 - 1)
_u32 = st.integers(0, 2**32 - 1)
_u64 = st.integers(0, 2**64 - 1)
_text = st.text(max_size=20)

_events = st.lists(st.tuples(_u8, _u64, st.sampled_from(sorted(EventKind)), _u32, _u32), max_size=60)
_side_rows: dict[str, st.SearchStrategy[list[tuple[Any, ...]]]] = {
    "places": st.lists(st.tuples(_u64, st.sampled_from(sorted(Region)), _u32), max_size=9),
    "pages": st.lists(
        st.tuples(_u64, st.sampled_from(sorted(PageKind)), st.none() | _text, st.none() | _u32), max_size=9
    ),
    "allocations": st.lists(st.tuples(_u64, _u8, st.none() | _u32, st.none() | _u8, _u32), max_size=9),
    "stacks": st.lists(st.tuples(_u32, _u64, _u32), max_size=9).map(lambda rows: [(0, 0, 0), *rows]),
    "symbols": st.lists(st.tuples(_text, st.none() | _text, _u64), max_size=9).map(
        lambda rows: [("?", None, 0), *rows]
    ),
    "tasks": st.lists(st.tuples(_u32, _u32, _text, _u32), max_size=9),
    "phases": st.lists(st.tuples(_text, _u64, _u64, st.none() | _u32, st.booleans()), max_size=9),
}


def _columns(rows: list[tuple[Any, ...]]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.array([row[i] for row in rows], dtype) for i, (name, dtype) in enumerate(_DTYPES.items())}


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=40)
@given(
    batches=st.lists(_events, max_size=4),
    sides=st.fixed_dictionaries(_side_rows),
    rows_per_part=st.integers(1, 50),
    cut=st.integers(0, 9),
)
def test_what_is_written_is_read(
    batches: list[list[tuple[Any, ...]]],
    sides: dict[str, list[tuple[Any, ...]]],
    rows_per_part: int,
    cut: int,
) -> None:
    """Any events, appended in any batches and kept in parts of any size, and any side tables, come back."""
    rows = [row for batch in batches for row in batch]
    frames = {name: pl.DataFrame(sides[name], SIDE_TABLES[name], orient="row") for name in SIDE_TABLES}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.asitrace")
        with TraceWriter(path, {"source": "test"}, rows_per_part=rows_per_part) as writer:
            for batch in batches:
                writer.append_events(**_columns(batch))
            for name, frame in frames.items():
                writer.append(name, frame[:cut])
                writer.append(name, frame[cut:])
        trace = Trace.open(path)
        assert pl.concat(trace.events()).rows() == rows
        assert trace.scan_events().collect().rows() == rows
        assert pl.concat(trace.events()).schema == EVENT_SCHEMA
        assert trace.rows("events") == len(rows)
        for name, frame in frames.items():
            assert trace.table(name).equals(frame)
            assert trace.table(name).schema == SIDE_TABLES[name]
            assert trace.rows(name) == frame.height


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    """Two traces of the same events are equal file by file, so their hash says whether two recordings are one."""
    one = small_trace().write(tmp_path / "one.asitrace", rows_per_part=10)
    two = small_trace().write(tmp_path / "two.asitrace", rows_per_part=10)
    assert _files(one.path) == _files(two.path)
    assert one.content_hash == two.content_hash


def test_hash_is_of_the_content(tmp_path: Path) -> None:
    """One event more is another hash; other words in meta.json are not."""
    plain = small_trace().write(tmp_path / "plain.asitrace")
    other = small_trace()
    other.meta["workload"] = {"command": ["other"], "exit_status": 1}
    assert other.write(tmp_path / "other.asitrace").content_hash == plain.content_hash
    assert other.entry_syscall(1).write(tmp_path / "more.asitrace").content_hash != plain.content_hash


def test_batches_do_not_show(tmp_path: Path) -> None:
    """Events appended one by one and all at once are the same files."""
    columns = small_trace().columns()
    for name, batch in (("singly", 1), ("at once", 1000)):
        with TraceWriter(tmp_path / name, {"source": "test"}, rows_per_part=7) as writer:
            for start in range(0, len(columns["kind"]), batch):
                writer.append_events(**{key: column[start : start + batch] for key, column in columns.items()})
    assert _files(tmp_path / "singly") == _files(tmp_path / "at once")


def test_meta_is_kept(tmp_path: Path) -> None:
    """The recorder's meta comes back, also keys that this version does not know, and what was added in the block."""
    with TraceWriter(tmp_path / "t", {"source": "test", "own": [1, {"a": None}]}) as writer:
        writer.meta["lost"] = {"events": 3}
    meta = Trace.open(tmp_path / "t").meta
    assert {key: meta[key] for key in ("source", "own", "lost", "format", "version")} == {
        "source": "test",
        "own": [1, {"a": None}],
        "lost": {"events": 3},
        "format": "asitrace",
        "version": 3,
    }


def test_awkward_names(tmp_path: Path) -> None:
    """A path with glob characters, a space, a per cent sign and a colon is a path like any other."""
    folder = tmp_path / "s3:" / "[a]*?{b} %20é"
    folder.mkdir(parents=True)
    trace = small_trace().write(folder / "t[0].asitrace")
    trace.verify()
    assert trace.scan_events().collect().height == trace.rows("events")
