"""Reading a trace: cheap checks when it is opened, events in chunks, side tables whole."""

from __future__ import annotations

import hashlib
import os
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import polars as pl

from asikit.trace import _meta
from asikit.trace._checked import CheckedFiles
from asikit.trace._errors import TraceError, first_line
from asikit.trace._schema import EVENT_SCHEMA, SIDE_TABLES, TABLES, empty_table, schema_fault, value_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

# A trace of up to this many bytes is hashed whole when it is opened: a few hundredths of a second.
_HASHED_WHEN_OPENED: Final = 64 << 20

# What polars raises for a file that it cannot read. On damaged bytes its Rust code may also panic, which arrives as a
# BaseException, or abort the process, or make wrong values: so it only ever sees files whose hash is right.
_PARQUET_ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError)


class Trace:
    """A trace on disk, opened for reading. It keeps no file open and holds no table in memory."""

    def __init__(self, path: Path, meta: _meta.Meta) -> None:
        """Use :meth:`open`."""
        self.path = path
        """The folder."""
        self.watch: Callable[[int], None] | None = None
        """Told how many events have been read, whenever somebody goes through them."""
        self._meta = meta
        self._intact: set[str] = set()  # the files whose hash has been checked
        self._checked: CheckedFiles | None = None  # those of them that were checked before, where that is kept

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a trace and check what is cheap to check.

        Checked are ``meta.json``, that each file is there with its size, and that there is no other table in the
        folder. A file's hash, columns and number of rows are checked before anything in it is used: now when the trace
        is small, else when the file is first read. A file of a large trace that was hashed before, and that nobody has
        written to since, is not hashed again. All that needs the whole trace is checked by :meth:`verify`.

        :raises TraceError: The folder is not a trace, or is truncated, or mixed with another, or is newer than we know.
        """
        folder = Path(path)
        if not folder.exists():
            raise TraceError.no_trace(folder, "does not exist")
        if not folder.is_dir():
            raise TraceError.no_trace(folder, "not a folder: a trace is a folder NAME.asitrace")
        try:
            trace = cls(folder, _meta.read(folder / _meta.META_FILE))
            trace._check_files()
        except OSError as error:
            raise TraceError.from_os_error(error.filename or folder, "read", error) from error
        return trace

    @property
    def meta(self) -> Mapping[str, Any]:
        """``meta.json`` as it was read."""
        return self._meta.raw

    @property
    def recorder(self) -> _meta.RecorderMeta:
        """The recorder's part of ``meta.json`` as typed values: source, kernel, machine, workload, clock, losses."""
        return self._meta.recorder

    @property
    def content_hash(self) -> str:
        """SHA-256, in hexadecimal, over the tables: two traces with the same hash hold the same events."""
        return self._meta.content_hash

    @property
    def size(self) -> int:
        """Bytes on disk: the tables and ``meta.json``."""
        tables = sum(file.bytes for table in self._meta.tables.values() for file in table.files.values())
        return tables + (self.path / _meta.META_FILE).stat().st_size

    def rows(self, table: str) -> int:
        """Give the number of rows of ``events`` or of a side table.

        :raises TraceError: No such table.
        """
        return self._table(table).rows

    def files(self, table: str) -> Mapping[str, _meta.TableFile]:
        """Give a table's files, by their path in the folder, in the order of their rows.

        :raises TraceError: No such table.
        """
        files = self._table(table).files
        return {path: files[path] for path in sorted(files, key=lambda path: (len(path), path))}

    def table(self, table: str) -> pl.DataFrame:
        """Read a side table whole; the row number is the id.

        :raises TraceError: No such side table (the events are read by :meth:`events`), or its file is damaged.
        """
        if table not in SIDE_TABLES:
            raise TraceError.at(self.path, f"no side table {table!r}; there are {', '.join(SIDE_TABLES)}")
        if not self.files(table):  # of an earlier version, which had no such table
            return empty_table(table)
        return self._read(table, f"{table}.parquet", SIDE_TABLES[table].names())

    def events(self, *, columns: Sequence[str] | None = None, chunk_rows: int | None = None) -> Iterator[pl.DataFrame]:
        """Read the events in order, a part at a time: memory stays that of one part, however long the trace.

        :param columns: The columns to read, in this order; all when None.
        :param chunk_rows: The most rows in a chunk; a chunk never spans two parts.
        :raises TraceError: No such column, or a part is damaged.
        """
        names = list(EVENT_SCHEMA.names() if columns is None else columns)
        if not names:
            raise TraceError.at(self.path, "no column of the events was asked for")
        for name in names:
            if name not in EVENT_SCHEMA:
                raise TraceError.at(self.path, f"events have no column {name!r}; there are {', '.join(EVENT_SCHEMA)}")
        if chunk_rows is not None and chunk_rows < 1:
            raise TraceError.at(self.path, f"chunk_rows is {chunk_rows}, must be at least 1")
        return self._chunks(names, chunk_rows)

    def scan_events(self) -> pl.LazyFrame:
        """Give the events as a lazy frame; collect with ``engine="streaming"`` to keep memory bounded.

        Each part's hash is checked now, which reads all of them once.

        :raises TraceError: A part is damaged.
        """
        for path in self.files("events"):
            self._check_content("events", path)
            self._check_rows("events", path, self._count_rows(path))
        return pl.scan_parquet([self._file(path) for path in self.files("events")], glob=False)

    def verify(self) -> None:
        """Check everything: the files' hashes again, that each id is in its table, that no clock runs backwards.

        :raises TraceError: The first fault found, with its file and row.
        """
        # Only this method needs them, and they import this class.
        from asikit.trace._verify import verify  # noqa: PLC0415

        self._intact.clear()
        if self._checked is not None:
            self._checked.forget()
        for table in TABLES:
            for path in self.files(table):
                self._check_content(table, path)
        verify(self)

    def _chunks(self, names: list[str], chunk_rows: int | None) -> Iterator[pl.DataFrame]:
        paths, read = list(self.files("events")), 0
        with ThreadPoolExecutor(1, thread_name_prefix="asikit-check") as checker:
            coming = checker.submit(self._check_content, "events", paths[0])
            for path, following in zip_longest(paths, paths[1:]):
                coming.result()
                if following is not None:  # to be hashed while this part is decoded and used
                    coming = checker.submit(self._check_content, "events", following)
                part = self._read("events", path, names)
                read += part.height
                if self.watch is not None:
                    self.watch(read)
                # An empty part is a chunk too, so that there is always one to take the columns' types from.
                yield from part.iter_slices(chunk_rows or part.height) if part.height else (part,)

    def _table(self, table: str) -> _meta.TableFiles:
        if table not in TABLES:
            raise TraceError.at(self.path, f"no table {table!r}; there are {', '.join(TABLES)}")
        return self._meta.tables[table]

    def _file(self, path: str) -> Path:
        # Absolute, so that polars does not take a name such as "s3:" for a network address.
        return self.path.absolute() / path

    def _read(self, table: str, path: str, names: list[str]) -> pl.DataFrame:
        self._check_content(table, path)
        with self._parquet(path) as file:
            frame = pl.read_parquet(file, columns=names, glob=False)[names]
        self._check_rows(table, path, frame.height)
        fault = value_fault(table, frame)
        if fault is not None:
            raise TraceError.at(self.path / path, fault)
        return frame

    @contextmanager
    def _parquet(self, path: str) -> Iterator[Path]:
        """Give the file to read with polars, and name it when polars cannot."""
        try:
            yield self._file(path)
        except _PARQUET_ERRORS as error:
            raise TraceError.at(self.path / path, f"not readable as Parquet: {first_line(error)}") from error

    def _check_files(self) -> None:
        listed = {path: table for table in TABLES for path in self.files(table)}
        for file in sorted(self.path.rglob("*.parquet")):
            if file.relative_to(self.path).as_posix() not in listed:
                raise TraceError.at(file, "not listed in meta.json: the folder mixes two traces")
        for path, table in listed.items():
            self._check_size(path, self._meta.tables[table].files[path])
        if self.size > _HASHED_WHEN_OPENED:
            self._checked = CheckedFiles(self.content_hash)
            return
        for path, table in listed.items():
            self._check_content(table, path)
            self._check_rows(table, path, self._count_rows(path))

    def _check_size(self, path: str, wanted: _meta.TableFile) -> None:
        file = self.path / path
        if not file.is_file():
            raise TraceError.at(file, "missing: the trace is incomplete")
        size = file.stat().st_size
        if size != wanted.bytes:
            state = "truncated" if size < wanted.bytes else "too long"
            raise TraceError.at(file, f"{state}: {size} bytes, meta.json says {wanted.bytes}")

    def _check_content(self, table: str, path: str) -> None:
        """Check a file's hash, then its columns, once: nothing in it is used before."""
        if path in self._intact:
            return
        self._check_hash(path, self._meta.tables[table].files[path].sha256)
        with self._parquet(path) as file:
            schema = pl.scan_parquet(file, glob=False).collect_schema()  # of the footer
        fault = schema_fault(table, schema)
        if fault is not None:
            raise TraceError.at(self.path / path, fault)
        self._intact.add(path)

    def _count_rows(self, path: str) -> int:
        """Give the number of rows that the file's footer says."""
        with self._parquet(path) as file:
            return int(pl.scan_parquet(file, glob=False).select(pl.len()).collect().item())

    def _check_rows(self, table: str, path: str, found: int) -> None:
        wanted = self._meta.tables[table].files[path].rows
        if found != wanted:
            raise TraceError.at(self.path / path, f"has {found} rows, meta.json says {wanted}")

    def _check_hash(self, path: str, wanted: str) -> None:
        file = self.path / path
        try:
            with file.open("rb") as stream:
                now, status = time.time_ns(), os.fstat(stream.fileno())
                if self._checked is not None and self._checked.has(path, status):
                    return
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            raise TraceError.from_os_error(file, "read", error) from error
        if found != wanted:
            raise TraceError.at(
                file, f"damaged, or of another trace: its SHA-256 begins {found[:12]}, meta.json says {wanted[:12]}"
            )
        if self._checked is not None:
            self._checked.add(path, status, now)
