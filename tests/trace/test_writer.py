"""The writer's refusals, and that a trace is whole or not there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from asikit.trace import EventKind, Trace, TraceError, TraceWriter, _writer
from tests.builders import META, small_trace


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _columns(rows: int = 3) -> dict[str, Any]:
    return {
        "cpu": np.zeros(rows, np.uint8),
        "clock": np.zeros(rows, np.uint64),
        "kind": np.full(rows, EventKind.RETURN_USER, np.uint8),
        "arg": np.zeros(rows, np.uint32),
        "stack": np.zeros(rows, np.uint32),
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cpu": np.zeros(3, np.int64)}, "events: column 'cpu' is int64, not uint8"),
        ({"clock": np.zeros(3, np.float64)}, "events: column 'clock' is float64, not uint64"),
        ({"arg": np.zeros(3, ">u4")}, "events: column 'arg' is >u4, not uint32"),
        ({"arg": [1, 2, 3]}, "events: column 'arg' is a list, not a numpy array"),
        ({"stack": np.zeros((3, 1), np.uint32)}, "events: column 'stack' has 2 dimensions, not 1"),
        (
            {"arg": np.zeros(2, np.uint32)},
            "events: columns differ in length: cpu 3, clock 3, kind 3, arg 2, stack 3",
        ),
        ({"kind": np.array([1, 0, 2], np.uint8)}, "events: unknown kind 0"),
        ({"kind": np.array([1, 20, 2], np.uint8)}, "events: unknown kind 20"),
    ],
)
def test_wrong_events(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """Events of a wrong type, shape or kind are refused, and nothing is left."""
    path = tmp_path / "t"
    with pytest.raises(TraceError) as caught, TraceWriter(path, META) as writer:
        writer.append_events(**(_columns() | change))
    assert str(caught.value) == f"{path}: {message}"
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("table", "frame", "message"),
    [
        (
            "events",
            pl.DataFrame(),
            "events: no such side table; there are places, pages, allocations, stacks, symbols, tasks, phases",
        ),
        ("tasks", pl.DataFrame({"pid": [1]}), "tasks: column 'pid' is int64, not uint32"),
        ("tasks", pl.DataFrame({"pid": [1]}, {"pid": pl.UInt32}), "tasks: column 'tgid' is missing"),
        (
            "places",
            pl.DataFrame(
                [(0, "user", 0, 1)],
                {"vaddr": pl.UInt64, "region": pl.String, "page": pl.UInt32, "x": pl.Int8},
                orient="row",
            ),
            "places: unknown column 'x'",
        ),
        (
            "places",
            pl.DataFrame(
                [(0, "user", 0), (0, "usr", 0)],
                {"vaddr": pl.UInt64, "region": pl.String, "page": pl.UInt32},
                orient="row",
            ),
            "places: row 1: unknown region 'usr'",
        ),
        (
            "places",
            pl.DataFrame(
                [(0, "user", 0), (0, None, 0)],
                {"vaddr": pl.UInt64, "region": pl.String, "page": pl.UInt32},
                orient="row",
            ),
            "places: row 1: column 'region' has no value",
        ),
        (
            "stacks",
            pl.DataFrame([(0, 5, 0)], {"parent": pl.UInt32, "address": pl.UInt64, "symbol": pl.UInt32}, orient="row"),
            "stacks: row 0 is not the empty stack {'parent': 0, 'address': 0, 'symbol': 0}",
        ),
        (
            "symbols",
            pl.DataFrame(
                [("read", None, 5)], {"name": pl.String, "module": pl.String, "address": pl.UInt64}, orient="row"
            ),
            "symbols: row 0 is not the unknown symbol {'name': '?', 'module': None, 'address': 0}",
        ),
    ],
)
def test_wrong_side_table(tmp_path: Path, table: str, frame: pl.DataFrame, message: str) -> None:
    """A side table with a wrong column, null or word is refused, and nothing is left."""
    path = tmp_path / "t"
    with pytest.raises(TraceError) as caught, TraceWriter(path, META) as writer:
        writer.append(table, frame)
    assert str(caught.value) == f"{path}: {message}"
    assert _names(tmp_path) == []


def test_row_in_a_later_piece(tmp_path: Path) -> None:
    """The row that a message names is the table's row, not the piece's."""
    schema = {"frame": pl.UInt64, "kind": pl.String, "cache": pl.String, "allocation": pl.UInt32}
    with pytest.raises(TraceError) as caught, TraceWriter(tmp_path / "t", META) as writer:
        writer.append("pages", pl.DataFrame([(1, "anon", None, None)] * 5, schema, orient="row"))
        assert writer.rows("pages") == 5
        writer.append("pages", pl.DataFrame([(1, "slab", None, 0), (1, "slob", None, 0)], schema, orient="row"))
    assert str(caught.value) == f"{tmp_path / 't'}: pages: row 6: unknown kind 'slob'"


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({}, "Object missing required field `source`"),
        ({"source": 3}, "source: Expected `str`, got `int`"),
        ({"source": "x", "machine": {"cpus": "two"}}, "machine.cpus: Expected `int | null`, got `str`"),
        ({"source": "x", "lost": {"events": None}}, "lost[...]: Expected `int`, got `null`"),
        ({"source": "x", "own": {1, 2}}, "meta cannot be written as JSON: Object of type set is not JSON serializable"),
        (
            {"source": "x", "own": float("nan")},
            "meta cannot be written as JSON: Out of range float values are not JSON compliant: nan",
        ),
    ],
)
def test_wrong_meta(tmp_path: Path, meta: dict[str, Any], message: str) -> None:
    """A meta that no reader could use is refused at the end of the block, and nothing is left."""
    path = tmp_path / "t"
    with pytest.raises(TraceError) as caught, TraceWriter(path, meta):
        pass
    # Python 3.11 does not say which number it was.
    assert f"{caught.value}: nan".startswith(f"{path / 'meta.json'}: {message}")
    assert _names(tmp_path) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, ValueError])
def test_exception_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    """An exception in the block, Ctrl-C included, comes out as it is and leaves nothing."""
    with pytest.raises(error), TraceWriter(tmp_path / "t", META, rows_per_part=2) as writer:
        writer.append_events(**_columns(9))
        assert _names(tmp_path) != []
        raise error
    assert _names(tmp_path) == []


def test_interrupt_while_completing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the last tables are written leaves nothing either."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(TraceWriter, "_rename", interrupted)
    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path / "t", META):
        pass
    assert _names(tmp_path) == []


def test_nothing_under_the_name_before_the_end(tmp_path: Path) -> None:
    """Inside the block the trace grows under another name, beside the one it will get."""
    with TraceWriter(tmp_path / "t", META) as writer:
        assert not (tmp_path / "t").exists()
        (partial,) = _names(tmp_path)
        assert partial.startswith(".t.")
        assert partial.endswith(".partial")
        writer.append_events(**_columns())
    assert _names(tmp_path) == ["t"]


def test_existing_trace_is_kept(tmp_path: Path) -> None:
    """A trace is not overwritten unless that is asked for."""
    trace = small_trace().write(tmp_path / "t")
    with pytest.raises(TraceError) as caught, TraceWriter(trace.path, META):
        pass
    assert str(caught.value) == f"{trace.path}: already exists: choose another name or remove it"
    trace.verify()


def test_overwrite_replaces_a_trace(tmp_path: Path) -> None:
    """With overwrite, the new trace is in the old one's place and the old one is gone."""
    old = small_trace().write(tmp_path / "t", rows_per_part=3)
    with TraceWriter(old.path, META, overwrite=True) as writer:
        writer.append_events(**_columns(4))
        Trace.open(old.path).verify()  # still the old one
    assert Trace.open(old.path).rows("events") == 4
    assert _names(tmp_path) == ["t"]


@pytest.mark.parametrize("events", [0, 4])
def test_last_events(tmp_path: Path, events: int) -> None:
    """When the events have come to their end the last are written at once; the trace is the same as without."""

    def written() -> int:
        return sum(1 for folder in tmp_path.iterdir() for part in folder.glob("events/*"))

    with TraceWriter(tmp_path / "t", META, rows_per_part=3) as writer:
        writer.append_events(**_columns(events))
        writer.end_events()
        before = written()
    assert written() == before == max(1, -(-events // 3))
    with TraceWriter(tmp_path / "u", META, rows_per_part=3) as writer:
        writer.append_events(**_columns(events))
    assert Trace.open(tmp_path / "t").content_hash == Trace.open(tmp_path / "u").content_hash


def test_overwrite_at_no_time_without_a_trace(tmp_path: Path) -> None:
    """While a trace is replaced its name leads to the old one or to the new one."""
    path = small_trace().write(tmp_path / "t").path
    ends = threading.Event()
    missing = []

    def look() -> None:
        while not ends.is_set():
            if not path.exists():
                missing.append(path)

    looking = threading.Thread(target=look)
    looking.start()
    for _ in range(20):
        with TraceWriter(path, META, overwrite=True, rows_per_part=8):
            pass
    ends.set()
    looking.join()
    assert missing == []
    assert _names(tmp_path) == ["t"]


@pytest.mark.parametrize("fails", [False, True])
def test_overwrite_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool) -> None:
    """Where two names cannot be exchanged in one step, the old trace steps aside, and comes back after a failure."""
    old = small_trace().write(tmp_path / "t", rows_per_part=3)
    rows = old.rows("events")
    monkeypatch.setattr(_writer, "exchange", lambda *_: False)
    renaming = Path.rename

    def rename(path: Path, target: Path) -> Path:
        if fails and path.suffix == ".partial":
            raise KeyboardInterrupt
        return renaming(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with (
        pytest.raises(KeyboardInterrupt) if fails else nullcontext(),
        TraceWriter(old.path, META, overwrite=True) as writer,
    ):
        writer.append_events(**_columns(4))
    assert Trace.open(old.path).rows("events") == (rows if fails else 4)
    assert _names(tmp_path) == ["t"]


_KILLED = """
import os, signal, sys
from asikit.trace import TraceWriter
with TraceWriter(sys.argv[1], {"source": "test"}) as writer:
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_killed(tmp_path: Path) -> None:
    """What a killed writer leaves is cleared away by the next one in that folder, of whatever name."""
    subprocess.run([sys.executable, "-c", _KILLED, tmp_path / "one"], check=False)
    (left,) = _names(tmp_path)
    assert left.startswith(".one.")
    with TraceWriter(tmp_path / "two", META):
        pass
    assert _names(tmp_path) == ["two"]


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_overwrite_replaces_nothing_else(tmp_path: Path, kind: str) -> None:
    """With overwrite, a folder, a file or a link that is not a trace is refused and kept."""
    path = tmp_path / "t"
    if kind == "folder":
        path.mkdir()
        (path / "precious").touch()
    elif kind == "file":
        path.touch()
    else:
        path.symlink_to(small_trace().write(tmp_path / "other").path)
    with pytest.raises(TraceError) as caught, TraceWriter(path, META, overwrite=True):
        pass
    assert str(caught.value) == f"{path}: already exists and is not a trace: it is not overwritten"
    assert path.exists()


def test_name_taken_meanwhile(tmp_path: Path) -> None:
    """A trace that appeared under the name during the block is kept; ours is not left half-way."""
    path = tmp_path / "t"
    with pytest.raises(TraceError) as caught, TraceWriter(path, META):
        other = small_trace().write(path)
    assert str(caught.value) == f"{path}: already exists: choose another name or remove it"
    other.verify()
    assert _names(tmp_path) == ["t"]


def test_no_such_folder(tmp_path: Path) -> None:
    """A folder that does not exist is not made."""
    path = tmp_path / "no" / "t"
    with pytest.raises(TraceError) as caught, TraceWriter(path, META):
        pass
    assert str(caught.value) == f"{path}: cannot be written: No such file or directory"


def test_outside_its_block(tmp_path: Path) -> None:
    """A writer takes nothing before its block and after it."""
    writer = TraceWriter(tmp_path / "t", META)
    message = f"{tmp_path / 't'}: not open for writing: use TraceWriter in a with statement"
    with pytest.raises(TraceError) as caught:
        writer.append_events(**_columns())
    assert str(caught.value) == message
    with writer:
        pass
    with pytest.raises(TraceError) as caught:
        writer.append("tasks", pl.DataFrame())
    assert str(caught.value) == message


def test_senseless_part(tmp_path: Path) -> None:
    """A part holds at least one event."""
    with pytest.raises(TraceError, match="rows_per_part is 0, must be at least 1"):
        TraceWriter(tmp_path / "t", META, rows_per_part=0)


_FILL = """
import resource, sys
import numpy as np
from asikit.trace import TraceError, TraceWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
noise = np.random.default_rng(1).integers(0, 2**32, 4096, np.uint32)
try:
    with TraceWriter(sys.argv[1], {"source": "test"}, rows_per_part=4096) as writer:
        ones = np.ones(4096, np.uint8)
        writer.append_events(cpu=ones, clock=noise.astype(np.uint64), kind=ones, arg=noise, stack=noise)
except TraceError as error:
    print(error)
"""


def test_disk_full(tmp_path: Path) -> None:
    """When a part does not fit (here: the limit on a file's size), one line says so and nothing is left."""
    path = tmp_path / "t"
    done = subprocess.run([sys.executable, "-c", _FILL, path], capture_output=True, text=True, check=True)
    assert done.stdout == f"{path}: cannot be written: File too large\n"
    assert _names(tmp_path) == []


def test_meta_with_odd_text(tmp_path: Path) -> None:
    """What is no Unicode, as an argument in another encoding, is written visibly; all else as it is."""
    words = [os.fsdecode(b"caf\xe9 \xff"), "caf\u00e9 \\xff", "\ud800", "\U0001f642"]
    meta = {"source": "test", "workload": {"command": words}, "own": {os.fsdecode(b"\x80"): 1}}
    with TraceWriter(tmp_path / "t", meta):
        pass
    opened = Trace.open(tmp_path / "t")
    assert opened.recorder.workload.command == ["caf\\xe9 \\xff", "caf\u00e9 \\xff", "\\ud800", "\U0001f642"]
    assert opened.meta["own"] == {"\\x80": 1}
    opened.verify()


def test_meta_of_another_trace(tmp_path: Path) -> None:
    """A trace's own meta can be given for the next: what the writer fills in is filled in anew."""
    first = small_trace().write(tmp_path / "one")
    with TraceWriter(tmp_path / "two", first.meta):
        pass
    second = Trace.open(tmp_path / "two")
    assert second.rows("events") == 0
    assert second.meta["kernel"] == first.meta["kernel"]
