"""A timeline as Perfetto's own message classes read it: what nests, what it holds, and what leads where."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import Trace as PerfettoTrace
from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TrackEvent

from asikit.export.perfetto import perfetto
from asikit.replay import History
from tests.builders import TraceBuilder
from tests.replay.running import GFP_USER, policy

if TYPE_CHECKING:
    from pathlib import Path


class Read:
    """What a trace file says, its numbers resolved as in Perfetto's `InternedData`."""

    def __init__(self, content: bytes) -> None:
        trace = PerfettoTrace()
        trace.ParseFromString(content)
        trace.DiscardUnknownFields()
        assert trace.ByteSize() == len(content)  # there is no field that Perfetto does not know
        self.tracks: dict[int, Any] = {}
        self.events: list[tuple[int, Any, str, dict[str, Any]]] = []
        names: dict[str, dict[int, str]] = defaultdict(dict)
        for packet in trace.packet:
            if packet.HasField("track_descriptor"):
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
                continue
            assert packet.sequence_flags & 2  # the numbers' meaning is in earlier packets
            data = packet.interned_data
            for kind in ("event_names", "event_categories", "debug_annotation_names"):
                names[kind].update({each.iid: each.name for each in getattr(data, kind)})
            names["strings"].update({each.iid: each.str.decode() for each in data.debug_annotation_string_values})
            event = packet.track_event
            arguments = {
                names["debug_annotation_names"][each.name_iid]: names["strings"][each.string_value_iid]
                if each.string_value_iid
                else each.uint_value
                for each in event.debug_annotations
            }
            self.events.append((packet.timestamp, event, names["event_names"].get(event.name_iid, ""), arguments))


def slices(read: Read) -> list[tuple[int, int, int, str, int]]:
    """Give the closed slices: track, begin, end, name and depth; each end ends the innermost."""
    open_now: dict[int, list[tuple[int, str]]] = defaultdict(list)
    found = []
    for time, event, name, _ in read.events:
        stack = open_now[event.track_uuid]
        if event.type == TrackEvent.TYPE_SLICE_BEGIN:
            stack.append((time, name))
        elif event.type == TrackEvent.TYPE_SLICE_END:
            begin, begun = stack.pop()
            found.append((event.track_uuid, begin, time, begun, len(stack)))
    return found


@pytest.fixture(scope="module")
def read(history: History) -> Read:
    """Export a recording and read it."""
    return Read(b"".join(perfetto(history, history.trips)))


def track_of(read: Read, name: str) -> int:
    """Give the track that is called so."""
    (found,) = [uuid for uuid, track in read.tracks.items() if track.name == name]
    return found


def test_round_trips_are_slices(history: History, read: Read) -> None:
    """A CPU's track has its round trips, with their times, and inside of them what ran unrestricted."""
    for cpu in history.trips["cpu"].unique().to_list():
        track = track_of(read, f"CPU {cpu}")
        closed = history.trips.filter(pl.col("end").is_not_null(), cpu=cpu)
        mine = [each for each in slices(read) if each[0] == track]
        assert [each[1:4] for each in mine if each[4] == 0] == closed.select("begin", "end", "entry").rows()
        left = closed.filter(pl.col("left").is_not_null()).select("left", "end").rows()
        assert [each[1:3] for each in mine if each[3] == "unrestricted"] == left


def test_tasks_have_tracks(history: History, read: Read) -> None:
    """A task's track has the time that it spends in the kernel, no more than its CPU's and never two at once."""
    threads = {uuid: track.thread for uuid, track in read.tracks.items() if track.HasField("thread")}
    assert Counter((thread.tid, thread.thread_name) for thread in threads.values()) == Counter(
        history.tables.tasks.select("pid", "comm").iter_rows()
    )
    assert {read.tracks[uuid].parent_uuid for uuid in threads} <= set(read.tracks)
    found = [each for each in slices(read) if each[0] in threads]
    assert all(depth == 0 for *_, depth in found)
    closed = history.trips.filter(pl.col("end").is_not_null() & pl.col("task").is_not_null())
    assert sum(end - begin for _, begin, end, _, _ in found) == (closed["end"] - closed["begin"]).sum()


def test_exits_and_flows(history: History, read: Read) -> None:
    """Each exit is an instant with its cause, and a flow leads from it to the return that enters again."""
    exits = [(time, arguments, event) for time, event, name, arguments in read.events if name.startswith("exit: ")]
    inside = history.exits.filter(pl.col("trip").is_not_null())
    assert [(time, a["function"], a["reason"]) for time, a, _ in exits] == [
        (time, function, reason) for time, function, reason in inside.select("time", "function", "reason").iter_rows()
    ]
    begins = Counter(flow for *_, event in exits for flow in event.flow_ids)
    ends = Counter(flow for _, event, _, _ in read.events for flow in event.terminating_flow_ids)
    assert set(begins.values()) == {1}
    closed = history.trips.filter(pl.col("end").is_not_null() & pl.col("left").is_not_null())
    assert len(ends) == closed.height
    assert not ends - begins


def test_effects(history: History, read: Read) -> None:
    """What the protocol asks for stands in it as often as it is counted."""
    names = Counter(name for _, _, name, _ in read.events)
    for kind, times in history.result().flushes.items():
        assert names[kind] == times


def test_some(history: History) -> None:
    """Round trips that are not chosen leave nothing behind."""
    some = history.trips.filter(pl.col("entry") == history.trips["entry"][3])
    read = Read(b"".join(perfetto(history, some)))
    closed = some.filter(pl.col("end").is_not_null())
    tracks = {uuid for uuid, track in read.tracks.items() if track.name.startswith("CPU")}
    found = [each for each in slices(read) if each[4] == 0 and each[0] in tracks]
    assert [each[1:4] for each in found] == closed.select("begin", "end", "entry").rows()


def test_hostile_names_and_two_cpus(tmp_path: Path) -> None:
    """Names are bytes that come through as they are, and the CPUs' round trips stay apart."""
    name = "a;\n<b>\u2028é"
    b = TraceBuilder().task_switch(name, pid=7).return_user().task_switch("dog", pid=8, cpu=1).return_user(cpu=1)
    b.entry_syscall(0).entry_syscall(1, cpu=1).touch_read(kind="shmem", gfp=GFP_USER, cpu=1)
    b.task_switch("dog", pid=8).return_user().return_user(cpu=1)
    history = History.of(b.write(tmp_path / "t.asitrace"), policy())
    read = Read(b"".join(perfetto(history, history.trips)))
    assert name in {track.thread.thread_name for track in read.tracks.values()}
    assert {(each[0] & 0xFF, each[3]) for each in slices(read) if each[0] >> 32 == 1} >= {(1, "unrestricted")}
