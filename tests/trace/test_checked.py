"""A large trace's files are hashed once, and again when somebody may have written to them."""

from __future__ import annotations

import hashlib
import os
import time
from typing import TYPE_CHECKING

import pytest

from asikit.trace import Trace, TraceError
from asikit.trace import _checked as checked_module
from asikit.trace import _reader as reader_module
from tests.builders import small_trace

if TYPE_CHECKING:
    from _hashlib import HASH
    from collections.abc import Callable
    from pathlib import Path

PART = "events/00001.parquet"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a trace of three parts that counts as large, with a cache folder of its own and a clock without ticks."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(reader_module, "_HASHED_WHEN_OPENED", 0)
    monkeypatch.setattr(checked_module, "_TICK_NS", 0)
    return small_trace().write(tmp_path / "t.asitrace", rows_per_part=10).path


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Give the list that names each file as it is hashed."""
    names: list[str] = []
    plain = hashlib.file_digest

    def spy(stream: object, name: str) -> HASH:
        names.append(os.path.basename(stream.name))  # type: ignore[attr-defined]  # noqa: PTH119
        return plain(stream, name)  # type: ignore[arg-type]

    monkeypatch.setattr(hashlib, "file_digest", spy)
    return names


def _read(path: Path) -> int:
    return sum(chunk.height for chunk in Trace.open(path).events())


PARTS = ["00000.parquet", "00001.parquet", "00002.parquet"]


def test_hashed_once(path: Path, hashed: list[str]) -> None:
    """The second opening hashes nothing; verify() hashes everything."""
    assert _read(path) == _read(path)
    assert hashed == PARTS
    Trace.open(path).verify()
    assert len(hashed) == 3 + 10


def test_written_since(path: Path) -> None:
    """A file that was changed is refused, though its size is the same and its mtime was set back."""
    _read(path)
    before = (path / PART).stat()
    data = bytearray((path / PART).read_bytes())
    data[30] ^= 1
    (path / PART).write_bytes(data)
    os.utime(path / PART, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(TraceError, match=r"00001.parquet: damaged, or of another trace: its SHA-256 begins"):
        _read(path)


def test_written_just_now(path: Path, hashed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is not trusted whose times a write right after the hash would not change."""
    monkeypatch.setattr(checked_module, "_TICK_NS", time.time_ns())
    _read(path)
    _read(path)
    assert hashed == PARTS * 2


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: [file.write_bytes(b"\xff\x00 nonsense") for file in folder.glob("*/*/*")],
        lambda folder: [file.unlink() or file.mkdir() for file in folder.glob("*/*/*")],
        lambda folder: folder.rename(folder.with_name("moved")) and folder.touch(),
    ],
    ids=["not text", "a folder", "no folder"],
)
def test_spoilt_cache(path: Path, hashed: list[str], spoil: Callable[[Path], object]) -> None:
    """A cache that cannot be read or written means that the files are hashed, and is no error."""
    _read(path)
    spoil(path.parent / "cache")
    _read(path)
    assert hashed == PARTS * 2


def test_small_trace_keeps_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace that is hashed when it is opened leaves nothing in the cache folder."""
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(path.parent / "cache"))
    _read(path)
    assert not (path.parent / "cache").exists()
