"""Perfetto's TrackEvent: round trips on a track for each CPU and for each task, exits and flushes as instants.

Opens in ui.perfetto.dev. A time of the recording, an instruction that all CPUs have retired, is a nanosecond there. A
flow leads from each exit to the return that loads the restricted address space again. Field numbers are of Perfetto's
``protos/perfetto/trace`` (trace_packet.proto, track_event/*.proto).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from asikit.export._protobuf import fixed64, message, number, text
from asikit.replay import NO_STEP
from asikit.replay.causes import LABELS
from asikit.trace import ENTRY_KINDS, RETURN_KINDS, EventKind

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import polars as pl

    from asikit.replay import History

__all__ = ["perfetto"]

# Trace
_PACKET: Final = 1
# TracePacket
_TIMESTAMP, _SEQUENCE, _TRACK_EVENT, _INTERNED, _SEQUENCE_FLAGS, _TRACK_DESCRIPTOR = 8, 10, 11, 12, 13, 60
_STATE_CLEARED, _NEEDS_STATE = 1, 2
# InternedData: which field has the texts of which kind; EventCategory and the like: iid and name or str
_CATEGORIES, _EVENT_NAMES, _ANNOTATION_NAMES, _STRINGS = 1, 2, 3, 29
_IID, _INTERNED_TEXT = 1, 2
# TrackDescriptor, ProcessDescriptor, ThreadDescriptor
_UUID, _NAME, _PROCESS, _THREAD, _PARENT = 1, 2, 3, 4, 5
_PROCESS_PID, _PROCESS_NAME = 1, 6
_THREAD_PID, _THREAD_TID, _THREAD_NAME = 1, 2, 5
# TrackEvent
_CATEGORY, _ANNOTATION, _TYPE, _EVENT_NAME, _TRACK, _FLOW, _LAST_FLOW = 3, 4, 9, 10, 11, 47, 48
_BEGIN, _END, _INSTANT = 1, 2, 3
# DebugAnnotation
_ANNOTATION_NAME, _UINT, _STRING = 1, 3, 17

_CPU_TRACKS, _PROCESS_TRACKS, _TASK_TRACKS = 1 << 32, 2 << 32, 3 << 32
_RECORDING: Final = 1
_ENTRIES, _RETURNS = frozenset(map(int, ENTRY_KINDS)), frozenset(map(int, RETURN_KINDS))
_TASK_SWITCH = int(EventKind.TASK_SWITCH)


def perfetto(history: History, trips: pl.DataFrame) -> Iterator[bytes]:
    """Give the trace file, piece by piece.

    :param trips: The round trips that it has.
    """
    return _Writer(history, trips).pieces()


class _Mark(NamedTuple):
    """A row of the history's marks."""

    row: int
    time: int
    cpu: int
    kind: int
    task: int | None
    trip: int
    step: int


class _Writer:
    """Writes one recording."""

    def __init__(self, history: History, trips: pl.DataFrame) -> None:
        self._history = history
        self._trips = {row["trip"]: row for row in trips.iter_rows(named=True)}
        self._causes = {row["row"]: row for row in history.exits.iter_rows(named=True)}
        self._tasks = list(history.tables.tasks.select("pid", "tgid", "comm").iter_rows())
        self._effects: dict[int, tuple[str, ...]] = {}
        self._left: dict[int, int] = {}  # by CPU: the flow of its exit
        self._running: dict[int, int | None] = {}  # by CPU
        self._events = _Events()

    def pieces(self) -> Iterator[bytes]:
        yield _packet(
            number(_SEQUENCE_FLAGS, _STATE_CLEARED)
            + _track(_RECORDING, text(_NAME, f"recording under {self._history.policy.name}"))
        )
        marks = self._history.marks
        for cpu in sorted(marks["cpu"].unique().to_list()):
            yield _packet(_track(_CPU_TRACKS + cpu, text(_NAME, f"CPU {cpu}") + number(_PARENT, _RECORDING)))
        yield from self._task_tracks()
        for row in marks.select(_Mark._fields).iter_rows():
            mark = _Mark(*row)
            if mark.trip in self._trips:
                yield from map(_packet, self._mark(mark))
            self._running[mark.cpu] = mark.task

    def _task_tracks(self) -> Iterator[bytes]:
        processes = dict.fromkeys(tgid for _, tgid, _ in self._tasks)
        names = {tgid: comm for pid, tgid, comm in self._tasks if pid == tgid or tgid not in processes}
        for tgid in processes:
            process = number(_PROCESS_PID, tgid) + text(_PROCESS_NAME, names.get(tgid, "?"))
            yield _packet(_track(_PROCESS_TRACKS + tgid, message(_PROCESS, process)))
        for row, (pid, tgid, comm) in enumerate(self._tasks):
            thread = number(_THREAD_PID, tgid) + number(_THREAD_TID, pid) + text(_THREAD_NAME, comm)
            yield _packet(
                _track(_TASK_TRACKS + row, message(_THREAD, thread) + number(_PARENT, _PROCESS_TRACKS + tgid))
            )

    def _mark(self, mark: _Mark) -> Iterator[bytes]:
        trip, time, track = self._trips[mark.trip], mark.time, _CPU_TRACKS + mark.cpu
        if mark.kind in _ENTRIES:
            arguments = {key: trip[key] for key in ("trip", "exits", "instructions", "comm", "pid")}
            yield self._events.event(time, _BEGIN, track, trip["entry"], "round trip", arguments)
            yield from self._of_task(time, _BEGIN, trip["task"], trip["entry"])
        yield from self._exit(mark)
        for effect in self._effects_of(mark.step):
            yield self._events.event(time, _INSTANT, track, effect, "effect")
        if mark.kind == _TASK_SWITCH:  # one task leaves in the middle of a round trip, and another goes on with it
            yield from self._of_task(time, _END, self._running.get(mark.cpu))
            yield from self._of_task(time, _BEGIN, mark.task, trip["entry"])
        if mark.kind in _RETURNS:
            yield from self._return(time, mark.cpu, mark.task)

    def _exit(self, mark: _Mark) -> Iterator[bytes]:
        cause = self._causes.get(mark.row)
        if cause is None:
            return
        track, first = _CPU_TRACKS + mark.cpu, mark.cpu not in self._left
        arguments = {label: str(cause[label]) for label in LABELS if cause[label]}
        flow = fixed64(_FLOW, mark.row) if first else b""
        yield self._events.event(mark.time, _INSTANT, track, f"exit: {cause['reason']}", "exit", arguments, flow)
        if first:
            self._left[mark.cpu] = mark.row
            yield self._events.event(mark.time, _BEGIN, track, "unrestricted", "address space")

    def _return(self, time: int, cpu: int, task: int | None) -> Iterator[bytes]:
        track = _CPU_TRACKS + cpu
        left = self._left.pop(cpu, None)
        if left is not None:
            yield self._events.event(time, _END, track)
        yield self._events.event(time, _END, track)
        yield from self._of_task(time, _END, task)
        if left is not None:
            yield self._events.event(time, _INSTANT, track, "enter", "address space", more=fixed64(_LAST_FLOW, left))

    def _of_task(self, time: int, kind: int, task: int | None, name: str = "") -> Iterator[bytes]:
        if task is not None:
            yield self._events.event(time, kind, _TASK_TRACKS + task, name, "round trip" if name else "")

    def _effects_of(self, step: int) -> tuple[str, ...]:
        if step == NO_STEP:
            return ()
        if step not in self._effects:
            self._effects[step] = tuple(map(str, self._history.step(step).effects))
        return self._effects[step]


def _packet(content: bytes) -> bytes:
    return message(_PACKET, content + number(_SEQUENCE, 1))


def _track(uuid: int, content: bytes) -> bytes:
    return message(_TRACK_DESCRIPTOR, number(_UUID, uuid) + content)


class _Events:
    """Writes events. Each text is written once and has a number from then on: a trace is a fourth as large."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, str], int] = {}
        self._new = b""

    def event(  # noqa: PLR0917  (a table of events is made of these)
        self,
        time: int,
        kind: int,
        track: int,
        name: str = "",
        category: str = "",
        arguments: Mapping[str, str | int | None] | None = None,
        more: bytes = b"",
    ) -> bytes:
        """Return what is in a packet of one event.

        :param more: Fields of the event that few have.
        """
        event = number(_TYPE, kind) + number(_TRACK, track)
        if name:
            event += number(_CATEGORY, self._number(_CATEGORIES, category))
            event += number(_EVENT_NAME, self._number(_EVENT_NAMES, name))
        for key, value in (arguments or {}).items():
            if value is not None:
                about = number(_ANNOTATION_NAME, self._number(_ANNOTATION_NAMES, key))
                shown = (
                    number(_UINT, value) if isinstance(value, int) else number(_STRING, self._number(_STRINGS, value))
                )
                event += message(_ANNOTATION, about + shown)
        new, self._new = self._new, b""
        interned = message(_INTERNED, new) if new else b""
        return (
            number(_TIMESTAMP, time)
            + number(_SEQUENCE_FLAGS, _NEEDS_STATE)
            + interned
            + message(_TRACK_EVENT, event + more)
        )

    def _number(self, kind: int, word: str) -> int:
        found = self._numbers.get((kind, word))
        if found is None:
            found = self._numbers[kind, word] = len(self._numbers) + 1
            self._new += message(kind, number(_IID, found) + text(_INTERNED_TEXT, word))
        return found
