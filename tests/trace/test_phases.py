"""Phases of a recording: as a table, as time, in traces from before there were any."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from asikit.trace import SIDE_TABLES, PhaseSummary, Trace, instructions_before, rows_at, summarize, total_instructions
from tests.builders import TraceBuilder, small_trace

SAMPLES = sorted((Path(__file__).parents[2] / "src/asikit/data/samples").glob("*.asitrace"))
EARLIER = [sample for sample in SAMPLES if json.loads((sample / "meta.json").read_text())["version"] < 3]


def two_cpus() -> TraceBuilder:
    """Give events on two CPUs whose clocks advance by 10 an event: the time is 10, 20, 30, ..."""
    b = TraceBuilder()
    for number in range(12):
        b.begin("a") if number in {2, 4, 9} else None
        b.entry_syscall(cpu=number % 3 // 2)
        b.end("a") if number in {5, 7} else None
    return b


@pytest.mark.parametrize("rows_per_part", [1, 5, 100])
def test_time(tmp_path: Path, rows_per_part: int) -> None:
    """Time is what all CPUs have retired, wherever the events are cut into parts."""
    trace = two_cpus().write(tmp_path / "t.asitrace", rows_per_part=rows_per_part)
    assert total_instructions(trace) == 120
    assert instructions_before(trace, [0, 1, 5, 12, 99]) == [0, 10, 50, 120, 120]
    assert rows_at(trace, [0, 10, 11, 50, 120, 121]) == [0, 0, 1, 4, 11, 12]


def test_time_of_samples() -> None:
    """With one CPU the time is its clock."""
    for sample in SAMPLES:
        trace = Trace.open(sample)
        clock = pl.concat(trace.events(columns=["clock"]))["clock"]
        rows = [1, clock.len() // 2, clock.len()]
        assert instructions_before(trace, rows) == [clock[row - 1] for row in rows]


def test_summary(tmp_path: Path) -> None:
    """What lies in two phases of one name counts once."""
    trace = two_cpus().begin("empty").end("empty").write(tmp_path / "t.asitrace")
    assert summarize(trace).phases == (
        PhaseSummary("a", times=3, events=9, instructions=90, not_ended=1),
        PhaseSummary("empty", times=1, events=0, instructions=0, not_ended=0),
    )


@pytest.mark.parametrize("sample", EARLIER, ids=lambda path: path.stem)
def test_before_there_were_phases(sample: Path) -> None:
    """A trace of an earlier version has an empty table, and is not taken for incomplete."""
    trace = Trace.open(sample)
    assert trace.table("phases").equals(pl.DataFrame(schema=SIDE_TABLES["phases"]))
    assert trace.rows("phases") == 0
    trace.verify()
    assert summarize(trace).phases == ()


def test_version_decides(tmp_path: Path) -> None:
    """From version 3 on the table is listed, and before it may not be."""
    path = small_trace().write(tmp_path / "t.asitrace").path
    meta = json.loads((path / "meta.json").read_text())
    for version, fault in ((2, "unknown table 'phases'"), (3, None)):
        (path / "meta.json").write_text(json.dumps(meta | {"version": version}))
        if fault is None:
            Trace.open(path).verify()
        else:
            with pytest.raises(Exception, match=fault):
                Trace.open(path)
