"""``meta.json``: what it holds, and how it is checked."""

from __future__ import annotations

import hashlib
import json
import re
from typing import TYPE_CHECKING, Any

import msgspec

from asikit.trace._errors import TraceError, first_line
from asikit.trace._kinds import FORMAT, SVM_EXITS, VERSION
from asikit.trace._schema import SIDE_TABLES, SINCE, TABLES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

META_FILE = "meta.json"
EVENTS_FOLDER = "events"
WRITERS_KEYS = ("format", "version", "tables", "content_hash")
"""The keys that the writer fills in; all others are the recorder's."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_FIRST_BYTE = 0xDC00
"""Of the surrogates that stand for bytes (Python's ``surrogateescape``)."""


class TableFile(msgspec.Struct, frozen=True):
    """One Parquet file of a table: rows, bytes on disk, and the SHA-256 of its bytes in hexadecimal."""

    rows: int
    bytes: int
    sha256: str


class TableFiles(msgspec.Struct, frozen=True):
    """A table's rows in all, and its files by their path in the trace's folder."""

    rows: int
    files: dict[str, TableFile]


_NO_FILES = TableFiles(rows=0, files={})
"""A table that a trace of an earlier version does not have."""


# A msgspec.Struct copies an empty list or dict given as a default.
class _Kernel(msgspec.Struct, frozen=True):
    release: str = ""
    version: str = ""
    command_line: str = ""
    forms: dict[str, str] = {}  # what has had several forms in kernels, and which this one has
    missing: dict[str, str] = {}  # what the kernel does not have, and what the recording lacks by that


class _Machine(msgspec.Struct, frozen=True):
    cpus: int | None = None
    memory_bytes: int | None = None
    threads_per_core: int | None = None
    cpu_model: str | None = None
    emulator: str | None = None


class _Workload(msgspec.Struct, frozen=True):
    command: list[str] = []
    exit_status: int | None = None


class _Marks(msgspec.Struct, frozen=True):
    ends_without_begin: dict[str, int] = {}  # ends of phases that nobody had begun, by name


class RecorderMeta(msgspec.Struct, frozen=True):
    """The recorder's part of ``meta.json``: checked when written and when read; unknown keys are kept."""

    source: str
    kernel: _Kernel = _Kernel()
    machine: _Machine = _Machine()
    workload: _Workload = _Workload()
    clock: dict[str, Any] = {}
    lost: dict[str, int] = {}
    marks: _Marks = _Marks()
    gfp_flags: dict[str, int] = {}
    syscalls: dict[str, str] = {}
    vm_exits: dict[str, str] | None = None  # names of exit codes, by number; None in a trace from before there was this

    @property
    def exit_names(self) -> Mapping[str, str]:
        """Names of VM exit codes, by their number as text.

        A trace that does not say is one of the time when all recorders ran in QEMU's own emulation (TCG), which has
        nested virtualization for SVM only, or a machine's, whose exits had no names.
        """
        if self.vm_exits is not None:
            return self.vm_exits
        in_qemu = "QEMU" in (self.machine.emulator or "")
        return {str(code): name for code, name in SVM_EXITS.items()} if in_qemu else {}


class _WriterMeta(msgspec.Struct, frozen=True):
    format: str
    version: int
    tables: dict[str, TableFiles]
    content_hash: str


class Meta(msgspec.Struct, frozen=True):
    """A checked ``meta.json``: as it was read, and its two parts as values."""

    raw: dict[str, Any]
    recorder: RecorderMeta
    tables: dict[str, TableFiles]
    content_hash: str


def content_hash(tables: Mapping[str, TableFiles]) -> str:
    """Give the hash of a trace's tables.

    It is the SHA-256 of the lines ``SHA256  PATH`` of all the tables' files in the order of their paths: what
    ``sha256sum`` prints.
    """
    files = {path: file.sha256 for table in tables.values() for path, file in table.files.items()}
    lines = "".join(f"{files[path]}  {path}\n" for path in sorted(files))
    return hashlib.sha256(lines.encode()).hexdigest()


def encode(meta: Mapping[str, Any], tables: Mapping[str, TableFiles], file: Path) -> bytes:
    r"""Give the bytes of a ``meta.json``: keys sorted, so that the same content is the same file.

    What a text has of bytes that are no UTF-8 (an argument of the workload may) is written as ``\xff`` is.

    :raises TraceError: The recorder's part has a wrong type somewhere, or something that JSON cannot hold.
    """
    whole = {key: value for key, value in meta.items() if key not in WRITERS_KEYS} | {
        "format": FORMAT,
        "version": VERSION,
        "tables": msgspec.to_builtins(tables),
        "content_hash": content_hash(tables),
    }
    try:
        text = json.dumps(_unicode(whole), sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False)
        data = text.encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise TraceError.at(file, f"meta cannot be written as JSON: {first_line(error)}") from error
    _recorder_part(msgspec.json.decode(data), file)
    return data


def _unicode(value: Any) -> Any:  # noqa: ANN401  (any JSON value, and what the JSON writer refuses)
    """Replace what is no Unicode: in a text from the system, each byte that is not UTF-8 is a lone surrogate."""
    if isinstance(value, str):
        return _SURROGATE.sub(_visible, value)
    if isinstance(value, dict):
        return {_unicode(key): _unicode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_unicode(item) for item in value]
    return value


def _visible(surrogate: re.Match[str]) -> str:
    number = ord(surrogate[0])
    return f"\\x{number - _FIRST_BYTE:02x}" if number - _FIRST_BYTE in range(0x80, 0x100) else f"\\u{number:04x}"


def read(file: Path) -> Meta:
    """Read and check a ``meta.json``.

    :raises TraceError: It is not there, not ours, newer than we know, or does not describe a trace.
    """
    raw = _read_object(file)
    if raw.get("format") != FORMAT:
        raise TraceError.at(file, f"not a trace: its 'format' is not {FORMAT!r}")
    version = raw.get("version")
    if type(version) is not int or version < 1:
        raise TraceError.at(file, f"'version' is {json.dumps(version)}, not a number from 1")
    if version > VERSION:
        raise TraceError.at(
            file, f"trace format version {version} is newer than this asikit reads ({VERSION}): update asikit"
        )
    try:
        ours = msgspec.convert(raw, _WriterMeta)
    except msgspec.ValidationError as error:
        raise TraceError.at(file, _convert_fault(error)) from error
    _check_tables(ours, file)
    tables = {name: ours.tables.get(name, _NO_FILES) for name in TABLES}
    return Meta(raw=raw, recorder=_recorder_part(raw, file), tables=tables, content_hash=ours.content_hash)


def _read_object(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise TraceError.at(file, "missing: the folder is not a trace")
    if not file.is_file():
        raise TraceError.at(file, "not a regular file")
    try:
        raw = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        raise TraceError.from_os_error(file, "read", error) from error
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise TraceError.at(file, f"not valid JSON: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise TraceError.at(file, "not a trace: not a JSON object")
    return raw


def _recorder_part(raw: object, file: Path) -> RecorderMeta:
    try:
        return msgspec.convert(raw, RecorderMeta)
    except msgspec.ValidationError as error:
        raise TraceError.at(file, _convert_fault(error)) from error


def _convert_fault(error: msgspec.ValidationError) -> str:
    # msgspec says "Expected `int`, got `str` - at `$.tables.events.rows`".
    fault, _, place = first_line(error).partition(" - at ")
    return f"{place.strip('`').removeprefix('$.')}: {fault}" if place else fault


def _check_tables(meta: _WriterMeta, file: Path) -> None:
    listed = {name for name in TABLES if SINCE.get(name, 1) <= meta.version}
    for name in sorted(listed - meta.tables.keys()):
        raise TraceError.at(file, f"table {name!r} is not listed")
    for name in sorted(meta.tables.keys() - listed):
        raise TraceError.at(file, f"unknown table {name!r}")
    for name, table in meta.tables.items():
        paths = sorted(table.files)
        wanted = [f"{name}.parquet"] if name in SIDE_TABLES else [part_path(i) for i in range(max(1, len(paths)))]
        if paths != sorted(wanted):
            raise TraceError.at(file, f"table {name!r} lists the files {paths}, not {wanted}")
        total = sum(part.rows for part in table.files.values())
        if total != table.rows or any(part.rows < 0 for part in table.files.values()):
            raise TraceError.at(file, f"table {name!r} has {table.rows} rows but its files have {total}")
    if content_hash(meta.tables) != meta.content_hash:
        raise TraceError.at(file, "'content_hash' does not agree with the files' hashes: it was edited or mixed")


def part_path(number: int) -> str:
    """Give the path, in a trace's folder, of a part of the events. Parts sort by their number up to 99999."""
    return f"{EVENTS_FOLDER}/{number:05d}.parquet"
