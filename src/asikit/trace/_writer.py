"""Writing a trace: events as a stream, side tables in pieces, the folder whole or not at all."""

from __future__ import annotations

import copy
import hashlib
import io
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import polars as pl

from asikit.trace import _meta
from asikit.trace._errors import TraceError, TraceExistsError
from asikit.trace._exchange import exchange
from asikit.trace._schema import (
    EVENT_SCHEMA,
    FIRST_KIND,
    LAST_KIND,
    SIDE_TABLES,
    empty_table,
    row_zero_fault,
    schema_fault,
    value_fault,
)
from asikit.trace._scratch import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    import numpy.typing as npt

ROWS_PER_PART: Final = 4 << 20
"""Events in a part: 72 MiB in memory, and few enough files that a long recording's folder stays readable."""

# Level 9 makes a part two per cent smaller and takes three times as long, for which the end of a recording waits.
_ZSTD_LEVEL: Final = 3
# A quarter of a part: readers decode the row groups of a part in parallel.
_ROWS_PER_GROUP: Final = 1 << 20

_EVENT_DTYPES: Final = {
    "cpu": np.dtype(np.uint8),
    "clock": np.dtype(np.uint64),
    "kind": np.dtype(np.uint8),
    "arg": np.dtype(np.uint32),
    "stack": np.dtype(np.uint32),
}


class TraceWriter:
    """Writes a trace; a context manager.

    The trace grows in a hidden sibling folder of ``path``, which is renamed to ``path`` when the block ends. When the
    block ends with an exception (Ctrl-C included), or when what was written is not a trace, nothing is left. What a
    writer leaves that is killed, the next one in the same folder clears away. Nothing is synced to the disk: a trace
    guards against a half recording, not against power failure.

    Memory: one part of events (``rows_per_part`` times 18 bytes) and the side tables. The same input gives the same
    bytes.

    >>> with TraceWriter("a.asitrace", {"source": "example"}) as writer:
    ...     writer.append_events(cpu=cpu, clock=clock, kind=kind, arg=arg, stack=stack)
    ...     writer.append("tasks", tasks)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: Mapping[str, Any],
        *,
        overwrite: bool = False,
        rows_per_part: int = ROWS_PER_PART,
    ) -> None:
        """Prepare; nothing is created before the block begins.

        :param path: The folder to be made.
        :param meta: The recorder's part of ``meta.json``, at least ``source``; copied. The keys ``format``,
            ``version``, ``tables`` and ``content_hash`` are the writer's own and are replaced.
        :param overwrite: Replace a trace that is at ``path``. Anything else there is never replaced.
        :param rows_per_part: Events in each part but the last.
        """
        if rows_per_part < 1:
            raise TraceError.at(Path(path), f"rows_per_part is {rows_per_part}, must be at least 1")
        self.path = Path(path)
        self.meta: dict[str, Any] = copy.deepcopy(dict(meta))
        """The recorder's part of ``meta.json``; may be completed until the block ends."""
        self._overwrite = overwrite
        try:
            parent = self.path.absolute().parent
        except OSError as error:
            raise TraceError.at(self.path, "the current directory is gone: change to another") from error
        self._scratch = ScratchFolder(parent, ".{name}.{token}.partial", name=self.path.name)
        self._folder: Path | None = None
        self._buffer = {name: np.empty(rows_per_part, dtype) for name, dtype in _EVENT_DTYPES.items()}
        self._capacity = rows_per_part
        self._buffered = 0
        self._parts: dict[str, _meta.TableFile] = {}
        self._side: dict[str, list[pl.DataFrame]] = {name: [] for name in SIDE_TABLES}
        self._side_rows = dict.fromkeys(SIDE_TABLES, 0)

    def __enter__(self) -> Self:
        """Create the hidden folder.

        :raises TraceError: ``path`` exists, or its folder does not, or may not be written.
        """
        self._refuse_existing()
        try:
            self._folder = self._scratch.__enter__()
            (self._folder / _meta.EVENTS_FOLDER).mkdir()
        except OSError as error:
            self._discard()
            raise TraceError.from_os_error(self.path, "written", error) from error
        except BaseException:
            self._discard()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Complete the trace and give it its name; after an exception, remove what was written.

        :raises TraceError: The side tables or ``meta`` do not make a trace, or cannot be written.
        """
        try:
            if kind is None:
                self._complete()
        except OSError as failure:
            raise TraceError.from_os_error(self.path, "written", failure) from failure
        finally:
            self._discard()

    def append_events(
        self,
        *,
        cpu: npt.NDArray[np.uint8],
        clock: npt.NDArray[np.uint64],
        kind: npt.NDArray[np.uint8],
        arg: npt.NDArray[np.uint32],
        stack: npt.NDArray[np.uint32],
    ) -> None:
        """Append events in the recording's order: one-dimensional arrays of equal length and of exactly these types.

        The arrays are copied.

        :raises TraceError: A wrong type or shape, a kind that is not in :class:`EventKind`, or the disk is full.
        """
        columns: dict[str, npt.NDArray[Any]] = {"cpu": cpu, "clock": clock, "kind": kind, "arg": arg, "stack": stack}
        self._require_open()
        rows = self._check_events(columns)
        taken = 0
        while taken < rows:
            count = min(rows - taken, self._capacity - self._buffered)
            for name, column in columns.items():
                self._buffer[name][self._buffered : self._buffered + count] = column[taken : taken + count]
            self._buffered += count
            taken += count
            if self._buffered == self._capacity:
                self._flush_part()

    def end_events(self) -> None:
        """Write the last events: no more are to come. What is left to do when the block ends is quickly done.

        :raises TraceError: The disk is full.
        """
        self._require_open()
        if self._buffered or not self._parts:
            self._flush_part()

    def append(self, table: str, frame: pl.DataFrame) -> None:
        """Append rows to a side table, in the order of their ids, with exactly the columns of ``SIDE_TABLES[table]``.

        ``stacks`` and ``symbols`` begin with their reserved rows: the empty stack and the unknown symbol.

        :raises TraceError: No such table, a wrong or missing column, a null or a word where it is not allowed.
        """
        self._require_open()
        if table not in SIDE_TABLES:
            raise self._fault(table, f"no such side table; there are {', '.join(SIDE_TABLES)}")
        first_row = self._side_rows[table]
        fault = schema_fault(table, frame.schema) or value_fault(table, frame, first_row=first_row)
        if fault is None and first_row == 0 and frame.height:
            fault = row_zero_fault(table, frame)
        if fault is not None:
            raise self._fault(table, fault)
        self._side[table].append(frame.select(SIDE_TABLES[table].names()))
        self._side_rows[table] += frame.height

    def rows(self, table: str) -> int:
        """Give the number of rows of a side table so far: the id that its next row gets."""
        return self._side_rows[table]

    def _check_events(self, columns: Mapping[str, npt.NDArray[Any]]) -> int:
        for name, dtype in _EVENT_DTYPES.items():
            column = columns[name]
            if not isinstance(column, np.ndarray):
                raise self._fault("events", f"column {name!r} is a {type(column).__name__}, not a numpy array")
            if column.dtype != dtype:
                raise self._fault("events", f"column {name!r} is {column.dtype}, not {dtype}")
            if column.ndim != 1:
                raise self._fault("events", f"column {name!r} has {column.ndim} dimensions, not 1")
        lengths = {name: len(column) for name, column in columns.items()}
        if len(set(lengths.values())) != 1:
            listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
            raise self._fault("events", f"columns differ in length: {listed}")
        kind = columns["kind"]
        for value in (kind.min(), kind.max()) if len(kind) else ():
            if not FIRST_KIND <= value <= LAST_KIND:
                raise self._fault("events", f"unknown kind {value}")
        return lengths["kind"]

    def _fault(self, table: str, fault: str) -> TraceError:
        return TraceError.at(self.path, f"{table}: {fault}")

    def _require_open(self) -> Path:
        if self._folder is None:
            raise TraceError.at(self.path, "not open for writing: use TraceWriter in a with statement")
        return self._folder

    def _refuse_existing(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self._overwrite:
            raise TraceExistsError.at(self.path, "already exists: choose another name or remove it")
        if self.path.is_symlink() or not _is_trace(self.path):
            raise TraceError.at(self.path, "already exists and is not a trace: it is not overwritten")

    @property
    def unfinished(self) -> Path:
        """The hidden folder that becomes the trace."""
        return self._require_open()

    @property
    def size_bytes(self) -> int:
        """The size of what has been written so far."""
        return sum(part.bytes for part in self._parts.values())

    def _flush_part(self) -> None:
        frame = pl.DataFrame({name: self._buffer[name][: self._buffered] for name in EVENT_SCHEMA})
        path = _meta.part_path(len(self._parts))
        try:
            self._parts[path] = self._write_table(path, frame)
        except OSError as error:
            raise TraceError.from_os_error(self.path, "written", error) from error
        self._buffered = 0

    def _write_table(self, path: str, frame: pl.DataFrame) -> _meta.TableFile:
        # Through memory: a full disk is then Python's OSError, and the hash needs no second reading.
        buffer = io.BytesIO()
        frame.write_parquet(
            buffer,
            compression="zstd",
            compression_level=_ZSTD_LEVEL,
            row_group_size=_ROWS_PER_GROUP,
            statistics=False,
        )
        data = buffer.getbuffer()
        (self._require_open() / path).write_bytes(data)
        return _meta.TableFile(rows=frame.height, bytes=len(data), sha256=hashlib.sha256(data).hexdigest())

    def _complete(self) -> None:
        folder = self._require_open()
        self.end_events()
        tables = {"events": _table(self._parts)}
        for name, frames in self._side.items():
            path = f"{name}.parquet"
            frame = pl.concat(frames) if self._side_rows[name] else empty_table(name)
            tables[name] = _table({path: self._write_table(path, frame)})
        (folder / _meta.META_FILE).write_bytes(_meta.encode(self.meta, tables, self.path / _meta.META_FILE))
        self._rename(folder)

    def _rename(self, folder: Path) -> None:
        self._refuse_existing()
        if not self.path.exists():
            folder.rename(self.path)
        elif not exchange(folder, self.path):  # else what we discard is the old one
            # rename(2) cannot replace a folder that is not empty: the old one steps aside first.
            replaced = folder.with_suffix(".replaced")
            try:
                self.path.rename(replaced)
                folder.rename(self.path)
            except BaseException:
                if replaced.exists() and not self.path.exists():
                    replaced.rename(self.path)
                raise
            shutil.rmtree(replaced, ignore_errors=True)

    def _discard(self) -> None:
        self._folder = None
        self._scratch.__exit__(None, None, None)
        self._buffer = {}
        self._side = {name: [] for name in SIDE_TABLES}


def _table(files: dict[str, _meta.TableFile]) -> _meta.TableFiles:
    return _meta.TableFiles(rows=sum(file.rows for file in files.values()), files=files)


def _is_trace(path: Path) -> bool:
    with suppress(TraceError):
        _meta.read(path / _meta.META_FILE)
        return True
    return False
