"""A truncated, mixed, doctored or foreign folder is refused with one line that names the file and the fault."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from asikit.trace import EVENT_SCHEMA, SIDE_TABLES, Trace, TraceError
from asikit.trace import _reader as reader_module
from tests.builders import small_trace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Give a good trace of three parts to spoil."""
    return small_trace().write(tmp_path / "t.asitrace", rows_per_part=10).path


def _refusal(path: Path, code: int = 1) -> str:
    """Give the message of opening a trace, from the trace's path on."""
    with pytest.raises(TraceError) as caught:
        Trace.open(path)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == code
    return message.removeprefix(str(path))


def _meta(path: Path) -> dict[str, Any]:
    meta: dict[str, Any] = json.loads((path / "meta.json").read_text())
    return meta


def _edit(path: Path, **change: object) -> None:
    (path / "meta.json").write_text(json.dumps(_meta(path) | change))


def doctor(path: Path, file: str, data: bytes, *, rows: int | None = None) -> None:
    """Put other bytes into a file of a trace and make meta.json agree: a well-made forgery."""
    (path / file).write_bytes(data)
    meta = _meta(path)
    table = meta["tables"][file.partition("/")[0].removesuffix(".parquet")]
    entry = table["files"][file]
    entry["sha256"] = hashlib.sha256(data).hexdigest()
    entry["bytes"] = len(data)
    if rows is not None:
        table["rows"] += rows - entry["rows"]
        entry["rows"] = rows
    files = {name: entry["sha256"] for table in meta["tables"].values() for name, entry in table["files"].items()}
    lines = "".join(f"{files[name]}  {name}\n" for name in sorted(files))
    meta["content_hash"] = hashlib.sha256(lines.encode()).hexdigest()
    (path / "meta.json").write_text(json.dumps(meta))


def _parquet(frame: pl.DataFrame, path: Path) -> bytes:
    frame.write_parquet(path / "x.tmp")
    data = (path / "x.tmp").read_bytes()
    (path / "x.tmp").unlink()
    return data


def test_nothing_there(tmp_path: Path) -> None:
    """A path that does not exist."""
    assert _refusal(tmp_path / "no.asitrace", code=2) == ": does not exist"


def test_a_file(tmp_path: Path) -> None:
    """A file instead of a folder."""
    (tmp_path / "file").touch()
    assert _refusal(tmp_path / "file", code=2) == ": not a folder: a trace is a folder NAME.asitrace"


def test_any_folder(tmp_path: Path) -> None:
    """A folder that is no trace."""
    assert _refusal(tmp_path) == "/meta.json: missing: the folder is not a trace"


def test_awkward_name(tmp_path: Path) -> None:
    """A name with a line break or an escape code still makes one plain line."""
    with pytest.raises(TraceError) as caught:
        Trace.open(tmp_path / "a\nb\x1b[1m")
    assert str(caught.value) == f"'{tmp_path}/a\\nb\\x1b[1m': does not exist"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON: Input data was truncated"),
        ("{", "not valid JSON: Input data was truncated"),
        ("[1]", "not a trace: not a JSON object"),
        ("{}", "not a trace: its 'format' is not 'asitrace'"),
        ('{"format": "zip", "version": 1}', "not a trace: its 'format' is not 'asitrace'"),
        ('{"format": "asitrace"}', "'version' is null, not a number from 1"),
        ('{"format": "asitrace", "version": true}', "'version' is true, not a number from 1"),
        ('{"format": "asitrace", "version": "1"}', "'version' is \"1\", not a number from 1"),
        (
            '{"format": "asitrace", "version": 4, "tables": "of another kind"}',
            "trace format version 4 is newer than this asikit reads (3): update asikit",
        ),
        ('{"format": "asitrace", "version": 1}', "Object missing required field `tables`"),
    ],
)
def test_wrong_meta(path: Path, text: str, message: str) -> None:
    """A meta.json that is cut, not JSON, not ours, or newer than we know."""
    (path / "meta.json").write_text(text)
    assert _refusal(path) == f"/meta.json: {message}"


def test_meta_of_random_bytes(path: Path) -> None:
    """A meta.json that is not text."""
    (path / "meta.json").write_bytes(b"\xff\xfe\x00")
    assert _refusal(path) == "/meta.json: not valid JSON: JSON is malformed: invalid character (byte 0)"


def test_meta_is_a_folder(path: Path) -> None:
    """A meta.json that is a folder."""
    (path / "meta.json").unlink()
    (path / "meta.json").mkdir()
    assert _refusal(path) == "/meta.json: not a regular file"


def test_meta_is_a_pipe(path: Path) -> None:
    """A meta.json that would never end is not read."""
    (path / "meta.json").unlink()
    os.mkfifo(path / "meta.json")
    assert _refusal(path) == "/meta.json: not a regular file"


def test_recorders_part_of_meta(path: Path) -> None:
    """A meta.json whose recorder wrote a number where a text belongs."""
    _edit(path, kernel={"release": 6.1})
    assert _refusal(path) == "/meta.json: kernel.release: Expected `str`, got `float`"


def _no_pages(meta: dict[str, Any]) -> None:
    del meta["tables"]["pages"]


def _new_table(meta: dict[str, Any]) -> None:
    meta["tables"]["clocks"] = {"rows": 0, "files": {}}


def _path_outside(meta: dict[str, Any]) -> None:
    files = meta["tables"]["pages"]["files"]
    files["../pages.parquet"] = files.pop("pages.parquet")


def _part_left_out(meta: dict[str, Any]) -> None:
    del meta["tables"]["events"]["files"]["events/00001.parquet"]


def _no_parts(meta: dict[str, Any]) -> None:
    meta["tables"]["events"] = {"rows": 0, "files": {}}


def _other_rows(meta: dict[str, Any]) -> None:
    meta["tables"]["events"]["rows"] = 28


def _other_hash(meta: dict[str, Any]) -> None:
    meta["tables"]["tasks"]["files"]["tasks.parquet"]["sha256"] = "0" * 64


def _text_for_rows(meta: dict[str, Any]) -> None:
    meta["tables"]["tasks"]["rows"] = "many"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_no_pages, "table 'pages' is not listed"),
        (_new_table, "unknown table 'clocks'"),
        (_path_outside, "table 'pages' lists the files ['../pages.parquet'], not ['pages.parquet']"),
        (
            _part_left_out,
            (
                "table 'events' lists the files ['events/00000.parquet', 'events/00002.parquet'], not "
                "['events/00000.parquet', 'events/00001.parquet']"
            ),
        ),
        (_no_parts, "table 'events' lists the files [], not ['events/00000.parquet']"),
        (_other_rows, "table 'events' has 28 rows but its files have 27"),
        (_other_hash, "'content_hash' does not agree with the files' hashes: it was edited or mixed"),
        (_text_for_rows, "tables[...].rows: Expected `int`, got `str`"),
    ],
)
def test_edited_meta(path: Path, spoil: Callable[[dict[str, Any]], None], message: str) -> None:
    """A meta.json whose list of tables was edited."""
    meta = _meta(path)
    spoil(meta)
    (path / "meta.json").write_text(json.dumps(meta))
    assert _refusal(path) == f"/meta.json: {message}"


@pytest.mark.parametrize("file", ["events/00001.parquet", "places.parquet"])
def test_missing_file(path: Path, file: str) -> None:
    """A part or a side table that is not there."""
    (path / file).unlink()
    assert _refusal(path) == f"/{file}: missing: the trace is incomplete"


def test_truncated_file(path: Path) -> None:
    """A file whose end is missing."""
    file = path / "events/00002.parquet"
    size = file.stat().st_size
    os.truncate(file, size - 5)
    assert _refusal(path) == f"/events/00002.parquet: truncated: {size - 5} bytes, meta.json says {size}"


def test_longer_file(path: Path) -> None:
    """A file with something after its end."""
    file = path / "tasks.parquet"
    size = file.stat().st_size
    os.truncate(file, size + 5)
    assert _refusal(path) == f"/tasks.parquet: too long: {size + 5} bytes, meta.json says {size}"


def test_part_of_another_trace(path: Path, tmp_path: Path) -> None:
    """A part of the same size from another recording."""
    other = small_trace().write(tmp_path / "other", rows_per_part=10)
    file = other.path / "events/00000.parquet"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    shutil.copy(file, path / "events/00000.parquet")
    (path / "events/00000.parquet").write_bytes(data)
    wanted = _meta(path)["tables"]["events"]["files"]["events/00000.parquet"]["sha256"]
    assert _refusal(path) == (
        "/events/00000.parquet: damaged, or of another trace: its SHA-256 begins "
        f"{hashlib.sha256(data).hexdigest()[:12]}, meta.json says {wanted[:12]}"
    )


@pytest.mark.parametrize("name", ["events/00003.parquet", "old.parquet", "events/more/00000.parquet"])
def test_part_too_many(path: Path, name: str) -> None:
    """A table that meta.json does not know."""
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).touch()
    assert _refusal(path) == f"/{name}: not listed in meta.json: the folder mixes two traces"


def test_other_files_are_welcome(path: Path) -> None:
    """A note beside the tables does no harm."""
    (path / "README").write_text("recorded on a rainy day")
    Trace.open(path).verify()


def test_a_table_that_is_not_parquet(path: Path) -> None:
    """Bytes that are no Parquet, with a meta.json that agrees."""
    doctor(path, "tasks.parquet", b"PAR1 but not really PAR1")
    message = _refusal(path)
    assert message.startswith("/tasks.parquet: not readable as Parquet: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("kind").cast(pl.UInt32), "column 'kind' is uint32, not uint8"),
        (pl.lit(1).alias("colour"), "unknown column 'colour'"),
    ],
)
def test_wrong_columns(path: Path, change: pl.Expr, message: str) -> None:
    """A part with other columns, with a meta.json that agrees."""
    part = pl.read_parquet(path / "events/00001.parquet").with_columns(change)
    doctor(path, "events/00001.parquet", _parquet(part, path))
    assert _refusal(path) == f"/events/00001.parquet: {message}"


def test_missing_column(path: Path) -> None:
    """A side table without one of its columns."""
    frame = pl.read_parquet(path / "places.parquet").drop("region")
    doctor(path, "places.parquet", _parquet(frame, path))
    assert _refusal(path) == "/places.parquet: column 'region' is missing"


def test_other_number_of_rows(path: Path) -> None:
    """A table that has other rows than meta.json says."""
    frame = pl.read_parquet(path / "tasks.parquet")
    doctor(path, "tasks.parquet", _parquet(pl.concat([frame, frame]), path))
    assert _refusal(path) == "/tasks.parquet: has 2 rows, meta.json says 1"


def test_null_in_events(path: Path) -> None:
    """A null in the events is refused when its part is read, so a compiled loop never sees one."""
    part = pl.DataFrame([(0, 1, 1, 0, 0), (0, 1, 1, None, 0)], EVENT_SCHEMA, orient="row")
    doctor(path, "events/00000.parquet", _parquet(part, path), rows=2)
    with pytest.raises(TraceError) as caught:
        next(Trace.open(path).events())
    assert str(caught.value) == f"{path}/events/00000.parquet: row 1: column 'arg' has no value"


def test_large_trace_is_hashed_when_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace too large to be hashed when it is opened is hashed file by file, before anything in a file is used."""
    data = bytearray((path / "events/00001.parquet").read_bytes())
    data[30] ^= 1
    (path / "events/00001.parquet").write_bytes(data)
    monkeypatch.setattr(reader_module, "_HASHED_WHEN_OPENED", 0)
    trace = Trace.open(path)
    chunks = trace.events()
    assert next(chunks).height == 10
    for use in (lambda: next(chunks), trace.scan_events, trace.verify):
        with pytest.raises(TraceError, match=r"00001.parquet: damaged, or of another trace: its SHA-256 begins"):
            use()


def test_unknown_table(path: Path) -> None:
    """Asking for a table that the format does not have names those it has."""
    trace = Trace.open(path)
    with pytest.raises(TraceError) as caught:
        trace.table("events")
    assert str(caught.value) == f"{path}: no side table 'events'; there are {', '.join(SIDE_TABLES)}"
    with pytest.raises(TraceError) as caught:
        trace.rows("clocks")
    assert str(caught.value) == f"{path}: no table 'clocks'; there are events, {', '.join(SIDE_TABLES)}"
