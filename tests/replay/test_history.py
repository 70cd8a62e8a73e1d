"""What happened when: it adds up to what was counted, and each piece of it is where the events have it."""

from __future__ import annotations

from collections import Counter
from importlib.resources import as_file, files
from typing import TYPE_CHECKING

import polars as pl
import pytest

from asikit.cost.measure import measure
from asikit.replay import NO_STEP, History, SelectionError, load_policy, replay
from asikit.replay.causes import LABELS
from asikit.replay.where import Where
from asikit.trace import ENTRY_KINDS, RETURN_KINDS, EventKind, Trace
from tests.builders import TraceBuilder
from tests.replay.running import GFP_USER, policy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAMPLES = ("page-cache", "kvm-guest", "processes", "phases")


@pytest.fixture(params=SAMPLES)
def sample(request: pytest.FixtureRequest) -> Iterator[Trace]:
    """Open each of the recordings that come with the package."""
    with as_file(files("asikit.data") / "samples" / f"{request.param}.asitrace") as path:
        yield Trace.open(path)


@pytest.mark.parametrize("name", ["denylist-2025", "ephmap", "blanket"])
def test_it_adds_up(sample: Trace, name: str) -> None:
    """Round trips, exits by entry and by cause, and effects are those that a replay counts."""
    under = load_policy(name)
    history = History.of(sample, under)
    (counted,) = replay(sample, [under])
    assert history.result().to_dict() == counted.to_dict()
    closed = history.trips.filter(pl.col("end").is_not_null() & pl.col("protected"))
    assert closed.height == counted.round_trips
    entries = closed.group_by("entry").agg(pl.len(), pl.col("exits").sum(), without=(pl.col("exits") == 0).sum())
    assert {entry: (trips, exits, without) for entry, trips, exits, without in entries.iter_rows()} == {
        row.entry: (row.round_trips, row.exits, row.without_exit) for row in counted.by_entry if row.round_trips
    }
    causes = history.exits.group_by(LABELS).len()
    assert {(*map(str, row[:-1]), row[-1]) for row in causes.iter_rows()} == set(counted.cause_table.iter_rows())
    kinds: Counter[str] = Counter()
    for number, marks in history.marks.group_by("step").len().iter_rows():
        if number != NO_STEP:
            kinds.update({effect.kind.value: 0 for effect in history.step(number).effects})
            for effect in history.step(number).effects:
                kinds[effect.kind.value] += marks
    assert {kind: kinds[kind] for kind in counted.flushes} == counted.flushes


def test_times_are_those_that_a_price_rests_on(sample: Trace) -> None:
    """The instructions in the kernel, and of them those after an exit, are what `asi cost` counts by another loop."""
    under = load_policy("denylist-2025")
    _, (measured,) = measure(sample, [under])
    history = History.of(sample, under)
    closed = history.trips.filter(pl.col("end").is_not_null())
    assert closed["instructions"].sum() == measured.walked.kernel_instructions
    assert sample.recorder.machine.cpus == 1  # with one CPU its time is all time
    left = closed.filter(pl.col("left").is_not_null())
    assert (left["end"] - left["left"]).sum() == measured.walked.unrestricted_instructions


def test_rows_are_the_events(sample: Trace) -> None:
    """A round trip begins at an entry and ends at the return that follows it; marks are the events' own."""
    history = History.of(sample, load_policy("denylist-2025"))
    events = pl.concat(sample.events()).with_row_index("row").with_columns(pl.col("row").cast(pl.UInt64))
    joined = history.marks.join(events, on=["row", "cpu", "clock", "kind", "arg", "stack"])
    assert joined.height == history.marks.height
    kind = events["kind"]
    assert set(kind.gather(history.trips["first"])) <= {int(entry) for entry in ENTRY_KINDS}
    closed = history.trips.filter(pl.col("end").is_not_null())
    assert set(kind.gather(closed["last"])) <= {int(back) for back in RETURN_KINDS}
    entries = events.filter(pl.col("kind").is_in([int(entry) for entry in ENTRY_KINDS]))
    assert history.trips["first"].to_list() == entries["row"].to_list()


def test_two_cpus(tmp_path: Path) -> None:
    """Round trips of two CPUs overlap; each has its own exits, task and instructions, and time passes on both."""
    b = TraceBuilder()
    for cpu, comm in enumerate(("cat", "dog")):
        b.task_switch(comm, pid=7 + cpu, cpu=cpu).return_user(cpu=cpu)
    b.entry_syscall(0).entry_syscall(1, cpu=1)
    for cpu in (1, 0):
        b.touch_read(kind="shmem", gfp=GFP_USER, cpu=cpu)
    b.task_switch("eel", pid=9).return_user().return_user(cpu=1).entry_syscall(2, cpu=1)
    history = History.of(b.write(tmp_path / "t.asitrace"), policy())
    trips = history.trips
    assert trips.select("cpu", "comm", "exits").rows() == [(0, "cat", 1), (1, "dog", 1), (1, "dog", 0)]
    assert trips["end"].is_null().to_list() == [False, False, True]
    assert trips["begin"].is_sorted()
    reasons = history.exits.select("trip", pl.col("reason").cast(pl.String)).rows()
    assert reasons == [(2, "page_fault"), (1, "page_fault")]


def test_phases_are_named() -> None:
    """A round trip has the names of all phases that are open at its entry."""
    with as_file(files("asikit.data") / "samples/phases.asitrace") as path:
        trace = Trace.open(path)
        history = History.of(trace, load_policy("denylist-2025"))
    for name, begin, end in trace.table("phases").select("name", "begin", "end").iter_rows():
        inside = history.trips.filter((pl.col("first") >= begin) & (pl.col("first") < end))["trip"]
        assert history.trips.filter(pl.col("phases").list.contains(name))["trip"].to_list() == inside.to_list()
        assert history.chosen(Where.parse(f"phase == '{name}'"))["trip"].to_list() == inside.to_list()


def test_chosen(sample: Trace) -> None:
    """An expression chooses round trips by all that they have, and refuses names that none has."""
    history = History.of(sample, load_policy("denylist-2025"))
    trips = history.trips
    assert (
        history.chosen(Where.parse("exits > 0"))["trip"].to_list()
        == trips.filter(pl.col("exits") > 0)["trip"].to_list()
    )
    assert history.chosen(Where.parse("exits > 0 or not exits > 0")).height == trips.height
    long = trips.filter(pl.col("instructions") >= 1000, pl.col("entry") == "syscall write")
    assert history.chosen(Where.parse("instructions >= 1000 and entry == write")).equals(long)
    assert not history.chosen(Where.parse("exits > 99999999")).height
    with pytest.raises(SelectionError, match="no entry wrote in the recording; the nearest is"):
        history.chosen(Where.parse("entry != wrote"))


def test_before_the_first_entry_is_no_round_trip(tmp_path: Path) -> None:
    """Marks outside round trips are kept, and belong to none."""
    b = TraceBuilder().task_switch("cat", pid=7).return_user().entry_syscall(0).return_user()
    marks = History.of(b.write(tmp_path / "t.asitrace"), policy()).marks
    kinds = [EventKind(kind) for kind in marks["kind"]]
    assert [kinds[row] for row in range(marks.height) if marks["trip"][row] is None][-1] is EventKind.RETURN_USER
    assert marks.filter(pl.col("trip") == 1)["kind"].to_list() == [
        int(EventKind.ENTRY_SYSCALL),
        int(EventKind.RETURN_USER),
    ]
