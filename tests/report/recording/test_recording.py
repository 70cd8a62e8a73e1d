"""The page about recordings: its pictures are made of the figures that the commands give."""

from __future__ import annotations

from collections import Counter
from importlib.resources import as_file, files
from math import prod
from typing import TYPE_CHECKING, Any

import polars as pl
import pytest

from asikit.cli import main
from asikit.cost import Unit, step_cycles
from asikit.cost.pricing import unit_of
from asikit.machine.x86 import load_cpu
from asikit.protocol import PRIMITIVES, FlushSide
from asikit.replay import By, Selection, load_policy, replay
from asikit.report.html import Lead, page_text
from asikit.report.recording import Asked, PolicyView, look, recording_page
from asikit.report.recording.flame import ROOM, exits_apart, flame
from asikit.report.recording.timeline import timeline
from asikit.report.recording.trips import chosen_trips
from asikit.report.trips import trip_table
from asikit.report.view import Row
from asikit.trace import Stacks, Trace
from tests.builders import TraceBuilder
from tests.replay.running import GFP_USER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SAMPLES = ("page-cache", "kvm-guest", "processes", "phases")
ASKED = Asked((load_policy("denylist-2025"),), (load_cpu("skylake-6600u"),))
MOST_BYTES = 1_500_000


@pytest.fixture(params=SAMPLES, scope="module")
def side(request: pytest.FixtureRequest) -> Iterator[PolicyView]:
    """Look at each of the recordings that come with the package."""
    with as_file(files("asikit.data") / "samples" / f"{request.param}.asitrace") as path:
        (recording,) = look([Trace.open(path)], ASKED)
        yield recording.sides[0]


def test_the_flame_has_all_exits(side: PolicyView) -> None:
    """All of them, each in the task and the phases in which a replay counts it, and below its own stack."""
    picture = flame([side])
    rows = picture.rows
    assert sum(rows.exits) == side.result.exits
    for by, names, numbers in ((By.TASK, picture.tasks, rows.task), (By.PHASE, picture.phases, rows.phase)):
        (counted,) = replay(side.trace, ASKED.policies, by=by)
        found: Counter[str] = Counter()
        for number, exits in zip(numbers, rows.exits, strict=True):
            found[names[number]] += exits
        assert found == Counter({part.name: part.exits for part in counted.parts if part.exits})
    stacks = Stacks(side.trace)
    wanted: Counter[tuple[str, ...]] = Counter()
    for stack in side.history.exits["stack"].to_list():
        wanted[stacks.names(stack)] += 1
    drawn: Counter[tuple[str, ...]] = Counter()
    for leaf, exits in zip(rows.node, rows.exits, strict=True):
        drawn[path(picture, leaf)] += exits
    assert drawn == wanted


@pytest.mark.parametrize(
    "selection",
    [
        Selection(tasks=("phases",)),
        Selection(phases=("steady",)),
        Selection(between="20%:70%"),
        Selection(cpus=(0,), where="entry == pread64 or entry ~ 'exception*'"),
        Selection(tasks=("init",)),
    ],
    ids=lambda selection: selection.text,
)
def test_a_part_of_a_recording(selection: Selection) -> None:
    """The pictures have the exits that a replay of that part counts, and open round trips that have one of them."""
    with as_file(files("asikit.data") / "samples" / "phases.asitrace") as path:
        asked = Asked(ASKED.policies, ASKED.cpus, selection, By.TASK)
        (recording,) = look([Trace.open(path)], asked)
        (side,) = recording.sides
        (counted,) = replay(side.trace, asked.policies, selection=selection, by=By.TASK)
        assert counted.exits < side.history.exits.height
        picture = flame([side])
        assert sum(picture.rows.exits) == counted.exits == side.result.exits
        found: Counter[str] = Counter()
        for number, exits in zip(picture.rows.task, picture.rows.exits, strict=True):
            found[picture.tasks[number]] += exits
        assert found == Counter({part.name: part.exits for part in counted.parts if part.exits})
        assert sum(sum(cpu.exits) for cpu in timeline(side).cpus) == counted.exits
        opened = set(chosen_trips(side).values())
        assert bool(opened) == bool(counted.exits)
        assert opened <= set(side.exits["trip"].to_list())
        page = recording_page([recording])
    assert f"Only a part of the recording counts: {selection.text}." in page_text(page)


def test_a_phase_begins_at_an_exit(tmp_path: Path) -> None:
    """An exit that is the first event of a phase is in it; one that follows its last is not."""
    b = TraceBuilder()
    b.task_switch("cat", pid=7).return_user()
    for name in ("before", "in it", "after"):
        b.entry_syscall(0)
        if name == "in it":
            b.begin("phase")
        elif name == "after":
            b.end("phase")
        b.touch_read(kind="shmem", gfp=GFP_USER, label=name, stack=(name,)).return_user()
    (recording,) = look([b.write(tmp_path / "t.asitrace")], ASKED)
    stacks = Stacks(recording.trace)
    found = {stacks.names(stack)[0]: phase for stack, _, phase, _, _ in exits_apart(recording.sides[0]).iter_rows()}
    assert found == {"before": "none", "in it": "phase", "after": "none"}
    (counted,) = replay(recording.trace, ASKED.policies, by=By.PHASE)
    assert {part.name: part.exits for part in counted.parts} == Counter(found.values())


def path(picture: Any, node: int) -> tuple[str, ...]:  # noqa: ANN401  (a picture)
    """Return the functions from a node outwards, without their modules."""
    names = []
    while node:
        assert picture.parent[node] < node
        names.append(picture.names[picture.name[node]].split(" [")[0])
        node = picture.parent[node]
    return () if names == ["(no stack)"] else tuple(names)


def test_cycles_are_those_of_the_price(side: PolicyView) -> None:
    """The steps' cycles add up to the price of all exits and entries; the flame graph's are a part of them."""
    row = side.row
    price = step_cycles(side.history, row)
    steps = side.history.marks["step"].to_list()
    total = sum(price.get(step, 0.0) for step in steps)
    middle = {name: parameter.range.mid for name, parameter in row.parameters.items()}
    wanted = sum(
        term.count
        * prod(middle[name] for name in term.price)
        * (middle["frequency"] if unit_of(term, row.parameters) is Unit.NANOSECONDS else 1)
        for term in row.terms
        if term.source.value not in {"pageblocks", "ephmap"}
    )
    # The first load of an address space in a recording is taken for a switch by the one, for none by the other.
    assert total == pytest.approx(wanted, abs=max(price.values()))
    by_row = dict(zip(side.history.marks["row"].to_list(), steps, strict=True))
    returns = side.history.trips.filter(pl.col("end").is_not_null() & (pl.col("exits") > 0))["last"].to_list()
    rows = [*side.history.exits["row"].to_list(), *returns]
    assert exits_apart(side)["cycles"].sum() == pytest.approx(sum(price.get(by_row[row], 0.0) for row in rows))


def test_the_timeline_adds_up(side: PolicyView) -> None:
    """Its counts are the replay's on that processor, its shares the time in the kernel before and after an exit."""
    picture = timeline(side)
    counted = side.history.result()
    assert sum(sum(cpu.exits) for cpu in picture.cpus) == counted.exits
    assert sum(sum(cpu.stuns) for cpu in picture.cpus) == counted.stuns
    for tracks, wanted in (("predictor", FlushSide.CONTROL), ("buffer", FlushSide.DATA)):
        kinds = [each.kind.value for each in PRIMITIVES if each.side is wanted]
        flushes = max((counted.flushes.get(kind, 0) for kind in kinds), default=0)
        assert sum(sum(getattr(cpu, tracks)) for cpu in picture.cpus) == flushes
    width = picture.instructions / picture.bins
    for cpu in picture.cpus:
        trips = side.history.trips.filter(cpu=cpu.cpu, protected=True)
        ends = trips["end"].fill_null(picture.instructions)
        left = (
            trips["left"].fill_null(ends)
            if trips["left"].null_count() == 0
            else trips["left"].zip_with(trips["left"].is_not_null(), ends)
        )
        assert sum(cpu.unrestricted) * width / 1000 == pytest.approx(
            (ends - left).sum(), abs=picture.bins * width / 900
        )
        assert sum(cpu.restricted) * width / 1000 == pytest.approx(
            (left - trips["begin"]).sum(), abs=picture.bins * width / 900
        )
        assert max(one + other for one, other in zip(cpu.restricted, cpu.unrestricted, strict=True)) <= 1001


def test_round_trips_are_opened(side: PolicyView) -> None:
    """A typical one and one with as many exits as any; each begins with its entry and ends with its return."""
    trips = side.history.trips
    chosen = chosen_trips(side)
    assert chosen
    assert max(trips["exits"][trip - 1] for trip in chosen.values()) == trips["exits"].max()
    for trip in chosen.values():
        table, more = trip_table(side.history, trip, 100_000)
        rows = [row.cells for row in table.rows if isinstance(row, Row)]
        assert more == 0
        assert rows[0] == ("0", trips["entry"][trip - 1])
        assert {row[0] for row in rows[-3:]} >= {f"{trips['instructions'][trip - 1]:,}"}
        assert sum("EXIT: " in row[1] for row in rows) == trips["exits"][trip - 1]
    fewer, more = trip_table(side.history, trip, 3)
    assert more == len(rows) - 3
    assert next(row.cells for row in fewer.rows if isinstance(row, Row)) == rows[0]
    assert any("EXIT: " in row.cells[1] for row in fewer.rows if isinstance(row, Row))


def many(tmp_path: Path, *, name: str = "many", stacks: int = 9_000) -> Trace:
    """Write a recording of so many exits, each with a stack of its own of names that are long."""
    b = TraceBuilder()
    b.task_switch("cat", pid=7).return_user()
    for number in range(stacks):
        b.entry_syscall(0)
        b.touch_read(kind="shmem", gfp=GFP_USER, stack=(f"{number:0100}", "entry_SYSCALL_64")).return_user()
    return b.write(tmp_path / f"{name}.asitrace")


def test_a_page_stays_small(tmp_path: Path) -> None:
    """However many stacks a recording has, the page has room for them; no exit is lost."""
    recordings = look([many(tmp_path)], ASKED)
    picture = flame(recordings[0].sides)
    assert sum(picture.rows.exits) == 9_000
    assert "(rarer stacks)" in picture.names
    assert sum(map(len, picture.names)) < ROOM
    assert len(page_text(recording_page(recordings)).encode()) < MOST_BYTES


def test_two_recordings(tmp_path: Path) -> None:
    """They are told apart, and stand in one picture each."""
    one, other = many(tmp_path, name="one", stacks=3), many(tmp_path, name="other", stacks=5)
    page = recording_page(look([one, other], ASKED))
    (lead,) = [part for part in page.parts if isinstance(part, Lead)]
    assert page.title == "one and other under address space isolation"
    firsts = [note.text for note in lead.notes[::2][:2]]
    assert firsts[0].startswith("one: under denylist-2025, 3 of 3 round trips into the kernel (100.0%)")
    assert firsts[1].startswith("other: under denylist-2025, 5 of 5 round trips into the kernel (100.0%)")
    assert [value for name, value in page.made if name == "recording"] == [
        f"one, SHA-256 {one.content_hash}",
        f"other, SHA-256 {other.content_hash}",
    ]
    picture = flame([side for recording in look([one, other], ASKED) for side in recording.sides])
    assert picture.sides == ("one", "other")


def test_without_asi(tmp_path: Path) -> None:
    """A policy that is not ASI's has no exits to show, and the page says so."""
    asked = Asked((load_policy("blanket"),), ASKED.cpus)
    page = recording_page(look([many(tmp_path, stacks=3)], asked))
    (lead,) = [part for part in page.parts if isinstance(part, Lead)]
    assert lead.notes[0].text.startswith("None of these policies is ASI's")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere: does not exist"),
        (["TRACE", "--policy", "denylist"], 'no policy "denylist"'),
        (["TRACE", "-o", "missing/report.html"], "missing/report.html: No such file or directory"),
        (["TRACE", "--where", "exits > 2"], "--where"),
        (["TRACE", "--phase", "load"], "--phase load: "),
        ([], "missing argument 'TRACE...' (see asi report --help)"),
    ],
)
def test_refusals(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What a user can cause ends in one line."""
    monkeypatch.chdir(tmp_path)
    many(tmp_path, name="TRACE", stacks=1).path.rename("TRACE")
    with pytest.raises(SystemExit) as end:
        main(["report", *words])
    out, err = capsys.readouterr()
    assert end.value.code in {1, 2}
    assert out == ""
    assert err.startswith(f"asi: error: {message}")
    assert err.count("\n") == 1


def test_a_demo_is_one_thing(capsys: pytest.CaptureFixture[str]) -> None:
    """The samples' page, their figures as JSON and their copy are asked for one at a time."""
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--html", "--json"])
    assert "--json, --html and --copy each do another thing" in capsys.readouterr().err
