"""The plugin's stream of records: events go into the trace as they come, rows of the side tables are kept."""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Final

import numpy as np

from asikit.record._marks import MarkReader, phases_of
from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from asikit.trace import TraceWriter

    Records = npt.NDArray[np.void]

__all__ = ["RECORD", "RecordType", "StreamReader"]

RECORD: Final = np.dtype(
    [
        ("type", "u1"),
        ("cpu", "u1"),
        ("aux", "<u2"),
        ("arg", "<u4"),
        ("stack", "<u4"),
        ("x", "<u4"),
        ("clock", "<u8"),
        ("addr", "<u8"),
    ]
)
"""``struct record`` of plugin/recorder.h."""


class RecordType(IntEnum):
    """``enum record_type`` of plugin/recorder.h, from where the trace's own event kinds end."""

    STACK = 64
    PLACE = 65
    PAGE = 66
    ALLOCATION = 67
    TASK = 68
    TASK_MM = 69
    NAME = 70
    AREA = 71
    MARK = 72
    CONFIGURE = 73
    LOST = 74
    COUNTS = 75
    END = 76


_FIRST_ROW: Final = min(RecordType)
_ROW_TYPES: Final = tuple(kind for kind in RecordType if kind <= RecordType.AREA)
_LAST_ROW: Final = RecordType.MARK

_LOST_NAMES: Final = ("entries_of_unknown_kind", "allocations", "returns_of_unknown_kind")
"""``enum lost`` of plugin/recorder.h."""

_CHUNK_RECORDS: Final = 1 << 17


class StreamReader:
    """Reads the stream to its end.

    :param read: Gives up to so many bytes of the stream, none at its end.
    :param writer: The trace that the events are appended to.
    :param configure: Called when the guest is ready to be recorded and waits for its layout.

    :ivar ended: Whether the recorder brought the recording to its end.
    :ivar events: Their number.
    :ivar clock: The last one's clock, in instructions of its CPU.
    :ivar lost: What the recorder could not record, by kind.
    :ivar instructions: By CPU: instructions since the recording began, and those of them in the kernel.
    """

    def __init__(self, read: Callable[[int], bytes], writer: TraceWriter, configure: Callable[[], None]) -> None:
        self._read = read
        self._writer = writer
        self._configure = configure
        self._rows: dict[RecordType, list[Records]] = {kind: [] for kind in _ROW_TYPES}
        self._marks = MarkReader()
        self.ended = False
        self.events = 0
        self.clock = 0
        self.lost: dict[str, int] = {}
        self.instructions: dict[int, tuple[int, int]] = {}

    def run(self) -> None:
        """Read until QEMU closes the stream.

        :raises RecordError: It is not a stream of this version's recorder.
        :raises TraceError: The trace cannot be written.
        """
        rest = b""
        while data := self._read(_CHUNK_RECORDS * RECORD.itemsize):
            data = rest + data if rest else data
            whole = len(data) - len(data) % RECORD.itemsize
            rest = data[whole:]
            self._take(np.frombuffer(data[:whole], RECORD))
        self._write_phases()

    def rows(self, kind: RecordType) -> Records:
        """Give all rows of one type, in the order of the stream."""
        parts = self._rows[kind]
        return np.concatenate(parts) if parts else np.empty(0, RECORD)

    def _write_phases(self) -> None:
        phases, strays = phases_of(self._marks.marks, self.events)
        self._writer.append("phases", phases)
        self._writer.meta["marks"] = {"ends_without_begin": strays}

    def _take(self, records: Records) -> None:
        is_event = records["type"] < _FIRST_ROW
        self._take_marks(records, is_event)
        events, others = (records, records[:0]) if is_event.all() else (records[is_event], records[~is_event])
        if len(events):
            self.events += len(events)
            self.clock = int(events["clock"][-1])
            self._writer.append_events(
                cpu=events["cpu"],
                clock=events["clock"],
                kind=events["type"],
                arg=events["arg"],
                stack=events["stack"],
            )
        kinds = others["type"]
        for kind, parts in self._rows.items():
            rows = others[kinds == kind]
            if len(rows):
                parts.append(rows)
        for record in others[kinds > _LAST_ROW]:
            self._control(record)

    def _take_marks(self, records: Records, is_event: npt.NDArray[np.bool_]) -> None:
        at = np.flatnonzero(records["type"] == RecordType.MARK)
        if at.size:
            self._marks.take(records[at], self.events + np.cumsum(is_event, dtype=np.int64)[at])

    def _control(self, record: np.void) -> None:
        kind, arg, clock = int(record["type"]), int(record["arg"]), int(record["clock"])
        if kind == RecordType.CONFIGURE:
            self._configure()
        elif kind == RecordType.LOST and arg < len(_LOST_NAMES):
            self.lost[_LOST_NAMES[arg]] = clock
        elif kind == RecordType.COUNTS:
            self.instructions[int(record["cpu"])] = (clock, int(record["addr"]))
        elif kind == RecordType.END:
            self._writer.end_events()  # while the guest shuts down
            self.ended = True
        else:
            raise RecordError(
                f"the recorder's stream has a record of unknown type {kind}; "
                "remove asikit's compiled programs from the cache (~/.cache/asikit/programs)"
            )
