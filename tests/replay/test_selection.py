"""What is selected, and how it is divided: each event is in one part, the right one, and the parts are the whole."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.replay import (
    ALL_CLASSES,
    By,
    ExitOn,
    Part,
    Policy,
    ReferenceReplay,
    ReplayResult,
    Selection,
    SelectionError,
    load_policy,
    replay,
)
from asikit.replay._chosen import Chosen
from asikit.replay._events import ENTRY_SLOTS
from asikit.replay._tables import SideTables
from asikit.replay._tally import together
from asikit.replay.engine import CompiledReplay
from asikit.replay.grouping import Group, Grouping, Labeller
from asikit.replay.pieces import event_pieces
from asikit.replay.sensitivity import Sensitive, apply_policy
from asikit.replay.where import Where
from asikit.trace import CPUS, Trace
from tests.builders import TraceBuilder
from tests.replay.running import GFP_USER, policy
from tests.replay.test_equivalence import TASKS, events, policies, sensitivities

if TYPE_CHECKING:
    import numpy.typing as npt

    from asikit.replay._tally import Tally

SAMPLES = Path(__file__).parents[2] / "src/asikit/data/samples"
SAMPLE_ROWS = 20_000
SUMMED = (
    "events",
    "round_trips",
    "round_trips_without_exit",
    "exits",
    "cr3_writes",
    "tlb_flushes",
    "stuns",
    "ephmap_operations",
)


@st.composite
def groupings(draw: st.DrawFn) -> Grouping:
    """Any groups of tasks, CPUs and stretches of at most sixty events."""
    by = draw(st.sampled_from([None, By.TASK, By.CPU, By.PHASE]))
    most = 4

    def keys(size: int, own: By) -> list[int]:
        return draw(st.lists(st.integers(0, most if by is own else 1), min_size=size, max_size=size))

    bounds = sorted({0, *draw(st.sets(st.integers(1, 60), max_size=5))})
    cpu_key = np.ones(CPUS, np.int64)
    cpu_key[:3] = keys(3, By.CPU)
    task_key, segment_key = keys(TASKS + 1, By.TASK), keys(len(bounds), By.PHASE)
    groups = tuple(Group(str(number)) for number in range(1 if by is None else most))
    arrays = (np.array(task_key, np.int64), cpu_key, np.array(bounds, np.int64), np.array(segment_key, np.int64))
    return Grouping(Selection(), by, groups, *arrays, draw(st.none() | chosen(len(bounds))))


@st.composite
def chosen(draw: st.DrawFn, segments: int) -> Chosen:
    """Make what an expression of three comparisons means: any bits of any thing."""
    where = Where.parse(
        draw(st.sampled_from(["cpu == 1 and not (cpu == 2 or cpu == 3)", "cpu == 1 or cpu == 2 and cpu == 3"]))
    )
    numbers = np.random.default_rng(draw(st.integers(0, 99)))

    def bits(size: int) -> npt.NDArray[np.uint64]:
        one, other = (numbers.integers(0, 8, size).astype(np.uint64) for _ in range(2))
        return one & other

    return Chosen(where, bits(TASKS + 1), bits(CPUS), bits(segments), bits(ENTRY_SLOTS))


def tallies(
    frame: pl.DataFrame, cut: int, under: Policy, sensitive: Sensitive, tasks: int, grouping: Grouping
) -> tuple[list[Tally], list[Tally], Tally]:
    """Give the counts of each group, compiled and by the reference, and those of the whole."""
    compiled = CompiledReplay(under, ALL_CLASSES, sensitive, tasks, groups=grouping.size)
    plain = CompiledReplay(under, ALL_CLASSES, sensitive, tasks)
    reference = ReferenceReplay(under, ALL_CLASSES, sensitive, tasks, grouping=grouping)
    labeller = Labeller(grouping)
    for chunk in (frame[:cut], frame[cut:]):
        for piece in event_pieces(chunk):
            compiled.feed(piece, labeller.label(*piece[:3]))
            plain.feed(piece)
        reference.feed(chunk.select("cpu", "kind", "arg", "stack").iter_rows())
    numbers = range(grouping.size)
    return [compiled.tally([g]) for g in numbers], [reference.tally([g]) for g in numbers], plain.tally()


@settings(max_examples=100)
@given(events(), st.integers(0, 60), policies(), sensitivities(), groupings())
def test_random(frame: pl.DataFrame, cut: int, under: Policy, sensitive: Sensitive, grouping: Grouping) -> None:
    """On any events and any groups the compiled replay divides as the reference, and the groups are the whole."""
    fast, slow, whole = tallies(frame, cut, under, sensitive, TASKS, grouping)
    for one, other in zip(fast, slow, strict=True):
        assert one.same_as(other)
    assert together(fast).same_as(whole)


@pytest.mark.parametrize("by", [By.TASK, By.PID, By.PHASE])
@pytest.mark.parametrize("sample", ["phases", "kvm-guest"])
def test_recorded(sample: str, by: By) -> None:
    """On the beginning of a recording both divide the same."""
    trace, under = Trace.open(SAMPLES / f"{sample}.asitrace"), load_policy("ephmap")
    tables = SideTables.of(trace)
    first = next(trace.events(chunk_rows=SAMPLE_ROWS))
    grouping = Grouping.of(trace, Selection(), by)
    fast, slow, whole = tallies(first, 777, under, apply_policy(under, tables), tables.tasks.height, grouping)
    for one, other in zip(fast, slow, strict=True):
        assert one.same_as(other)
    assert together(fast).same_as(whole)
    assert fast[0].events == 0


@pytest.mark.parametrize("name", ["denylist-2025", "ephmap", "blanket"])
@pytest.mark.parametrize("sample", sorted(SAMPLES.glob("*.asitrace")), ids=lambda path: path.stem)
def test_parts_are_the_whole(sample: Path, name: str) -> None:
    """By task, process, CPU and phase, every count of a recording's parts adds up to the whole's, exactly."""
    trace, under = Trace.open(sample), load_policy(name)
    (whole,) = replay(trace, [under])
    for by in By:
        (result,) = replay(trace, [under], by=by)
        assert result.by == by.value
        assert result.cause_table.equals(whole.cause_table)
        assert result.by_entry == whole.by_entry
        check_sums(result.parts, whole)


def check_sums(parts: tuple[Part, ...], whole: ReplayResult) -> None:
    """Compare the sums over parts with a whole."""
    for figure in SUMMED:
        assert sum(getattr(part, figure) for part in parts) == getattr(whole, figure), figure
    for what in ("exits_by_reason", "flushes"):
        for key, count in getattr(whole, what).items():
            assert sum(getattr(part, what)[key] for part in parts) == count, key


def test_selected_is_the_part() -> None:
    """Selecting what a row of a table stands for gives the row's counts; the causes of all rows are the whole's."""
    trace, under = Trace.open(SAMPLES / "phases.asitrace"), load_policy("denylist-2025")
    (whole,) = replay(trace, [under], by=By.TASK)
    causes = []
    for part in whole.parts[:-1]:  # the last one is nobody's: what came before the first task switch
        (one,) = replay(trace, [under], selection=Selection(tasks=(part.name,)))
        assert [getattr(one, figure) for figure in SUMMED] == [getattr(part, figure) for figure in SUMMED]
        assert one.selection == f"task {part.name}"
        causes.append(one.cause_table)
    assert whole.parts[-1].exits == 0
    labels = [column for column in causes[0].columns if column != "exits"]
    together_ = pl.concat(causes).group_by(labels).agg(pl.col("exits").sum())
    assert together_.sort(labels).equals(whole.cause_table.select(together_.columns).sort(labels))


def test_stretches_of_time_are_the_whole() -> None:
    """Cut at any times, the stretches are the whole, as shares and as instructions."""
    trace, under = Trace.open(SAMPLES / "phases.asitrace"), load_policy("denylist-2025")
    (whole,) = replay(trace, [under])
    for cuts in (":10%,10%:37.5%,37.5%:", "0%:50%,50%:100%", ":1M,1M:4500k,4500000:", "0:0,0:"):
        parts = [replay(trace, [under], selection=Selection(between=cut))[0] for cut in cuts.split(",")]
        for figure in SUMMED:
            assert sum(getattr(part, figure) for part in parts) == getattr(whole, figure), (cuts, figure)


def test_the_sample_is_what_it_is() -> None:
    """In the sample's phases and tasks are the reads and writes that its program makes there."""
    trace, under = Trace.open(SAMPLES / "phases.asitrace"), load_policy("denylist-2025")

    def reads(selection: Selection) -> tuple[int, int]:
        (result,) = replay(trace, [under], selection=selection)
        rows = {row.entry: row.round_trips for row in result.by_entry}
        return rows.get("syscall pread64", 0), rows.get("syscall write", 0)

    assert reads(Selection(phases=("load",))) == (0, 256)
    assert reads(Selection(phases=("steady",))) == (1024, 0)
    assert reads(Selection(phases=("helped",))) == (256, 0)
    assert reads(Selection(tasks=("helper",))) == (256, 0)
    assert reads(Selection(tasks=("phases",), phases=("steady",))) == (768, 0)
    assert reads(Selection(tasks=("help*", "phases"))) == (1024, 256)
    assert reads(Selection(phases=("none",))) == (0, 0)


def switched() -> TraceBuilder:
    """Give a shell that switches to redis in the kernel, which returns; then redis executes another program."""
    b = TraceBuilder()
    b.task_switch("sh", pid=1, mm=1).mm_switch(1).return_user()
    b.begin("steady").entry_syscall(1)
    b.task_switch("redis", pid=2, mm=2, stack=("schedule",)).mm_switch(2)
    b.touch_read(kind="shmem", gfp=GFP_USER, stack=("_copy_to_iter",)).return_user()
    b.begin("inner").entry_syscall(0).touch_read(kind="shmem", gfp=GFP_USER, stack=("_copy_to_iter",)).return_user()
    b.end("steady").entry_syscall(59).mm_switch(3, stack=("exec_mmap",)).return_user().end("inner")
    return b.entry_syscall(1).return_user()


def counts(result: ReplayResult) -> dict[str, tuple[int, int, int]]:
    """Give round trips, those without an exit, and exits of each part."""
    return {part.name: (part.round_trips, part.round_trips_without_exit, part.exits) for part in result.parts}


def test_who_exits(tmp_path: Path) -> None:
    """A context switch's exit is the leaving task's, an exec's its own; a round trip is the entering task's."""
    trace = switched().write(tmp_path / "t.asitrace")
    (result,) = replay(trace, [policy()], by=By.TASK)
    # The shell's round trip: the switch exits, and what redis touches is mapped then.
    assert counts(result) == {"redis": (3, 1, 2), "sh": (1, 0, 1), "?": (0, 0, 0)}
    # Where the change of mm exits, and not the switch, it is the shell's too, as it comes right after.
    (by_mm,) = replay(trace, [policy(exit_on=ExitOn.MM_SWITCH)], by=By.TASK)
    reasons = {part.name: part.exits_by_reason["switch_mm"] for part in by_mm.parts}
    assert reasons == {"redis": 1, "sh": 1, "?": 0}


def test_open_phases(tmp_path: Path) -> None:
    """A moment belongs to all phases that are open; choosing one of them takes in what lies in others too."""
    trace = switched().write(tmp_path / "t.asitrace")
    (result,) = replay(trace, [policy()], by=By.PHASE)
    assert counts(result) == {
        "inner": (1, 0, 1),
        "inner + steady": (1, 0, 1),
        "none": (1, 1, 0),
        "steady": (1, 0, 1),
    }
    for phase, trips in (("steady", 2), ("inner", 2), ("none", 1), ("*", 3)):
        assert replay(trace, [policy()], selection=Selection(phases=(phase,)))[0].round_trips == trips


def test_processes_and_threads(tmp_path: Path) -> None:
    """A process' number takes all its threads, a thread's only itself; a long name is what Linux keeps of it."""
    b = TraceBuilder()
    for pid, tgid, comm in ((5, 5, "a-long-name-of-"), (6, 5, "worker"), (7, 7, "worker")):
        b.task_switch(comm, pid=pid).entry_syscall(0).return_user()
        b._rows["tasks"][-1]["tgid"] = tgid
    trace = b.write(tmp_path / "t.asitrace")

    def trips(**chosen: tuple[int | str, ...]) -> int:
        return replay(trace, [policy()], selection=Selection(**chosen))[0].round_trips  # type: ignore[arg-type]

    assert [trips(pids=(5,)), trips(pids=(6,)), trips(pids=(7,)), trips(pids=(6, 7))] == [2, 1, 1, 2]
    assert [trips(tasks=("worker",)), trips(tasks=("a-long-name-of-a-program",)), trips(tasks=("a-*",))] == [2, 1, 1]
    assert trips(tasks=("worker",), pids=(5,)) == 1
    (result,) = replay(trace, [policy()], by=By.PID)
    assert {part.name: (part.pids, part.round_trips) for part in result.parts if part.pids} == {
        "a-long-name-of- 5": ((5,), 2),
        "worker 7": ((7,), 1),
    }


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(tasks=("reds",)), '--task reds: no such task in the recording; the nearest is "redis"'),
        (Selection(tasks=("zzz",)), "--task zzz: no such task in the recording; there are redis, sh"),
        (Selection(pids=(9,)), "--pid 9: no such process in the recording; there are 1, 2"),
        (Selection(cpus=(2,)), "no CPU 2 in the recording: it has CPUs 0 to 1"),
        (Selection(phases=("staedy",)), '--phase staedy: no such phase in the recording; the nearest is "steady"'),
        (Selection(phases=("x",)), "--phase x: no such phase in the recording; there are inner, steady"),
        (
            Selection(between="5"),
            "--between 5: write A:B, each as instructions (5000000, 5M) or as a share of the recording (10%)",
        ),
        (Selection(between="9:5"), "--between 9:5: it ends before it begins"),
        (Selection(between="9:101%"), "--between 9:101%: more than 100%"),
    ],
    ids=str,
)
def test_refused(tmp_path: Path, selection: Selection, message: str) -> None:
    """What the recording does not have is wrong usage, and the nearest name is said."""
    trace = switched().write(tmp_path / "t.asitrace")
    with pytest.raises(SelectionError) as caught:
        replay(trace, [policy()], selection=selection)
    assert (str(caught.value), caught.value.exit_code) == (message, 2)
