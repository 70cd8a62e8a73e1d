"""The cost of a recording's parts: they add up to the cost of the whole, and a part is priced as it is in the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asikit.cost import BaseTime, CostError, CostResult, Range, price
from asikit.cost.measure import Base, Measured, Portion, Portions, measure, measure_portions
from asikit.machine.x86 import load_cpu
from asikit.replay import By, ExitOn, Policy, Selection, load_policy
from asikit.trace import Trace
from tests.builders import TraceBuilder
from tests.cost.test_commands import asi
from tests.replay.running import GFP_USER, policy

SAMPLES = sorted((Path(__file__).parents[2] / "src/asikit/data/samples").glob("*.asitrace"))
PHASES = next(sample for sample in SAMPLES if sample.stem == "phases")
MITIGATIONS = ("none", "linux", "blanket", "asi", "ibpb-entry")
WALKED = (
    "kernel_instructions",
    "unrestricted_instructions",
    "switches_out",
    "switches_to_userspace",
    "switches_to_kvm",
    "round_trips",
)


def unfinished() -> TraceBuilder:
    """Give what begins and ends in the middle of round trips, switches in them, enters twice and exits twice."""
    b = TraceBuilder()
    page: dict[str, Any] = {"kind": "shmem", "gfp": GFP_USER, "stack": ("_copy_to_iter",)}
    b.task_switch("a", pid=1, mm=1).task_switch("b", pid=2, mm=2, cpu=1).return_user().return_user(cpu=1)
    for trip in range(6):
        cpu = trip % 2
        b.entry_syscall(0, cpu=cpu).touch_read(label=f"{trip}", cpu=cpu, **page)
        b.task_switch("abc"[trip % 3], pid=trip % 3 + 1, mm=trip % 3 + 1, cpu=cpu).mm_switch(trip % 3 + 1, cpu=cpu)
        b.begin("odd") if trip == 3 else None
        b.nested_interrupt(cpu=cpu).touch_write(label="x", cpu=cpu, **page).nested_return(cpu=cpu)
        b.return_user(cpu=cpu) if trip not in {2, 3} else None
        b.end("odd") if trip == 3 else None
    b.vm_entry().vm_exit().touch_read(label="y", **page)
    return b.entry_syscall(1, cpu=1).touch_read(label="z", cpu=1, **page).task_switch("d", pid=4, mm=1, cpu=1)


def sums(parts: list[Measured] | list[Base], whole: Measured | Base) -> None:
    """Compare what is counted of the parts with the whole."""
    for figure in WALKED:
        assert sum(getattr(part.walked, figure) for part in parts) == getattr(whole.walked, figure), figure


def check(read: Portions, under: list[Policy]) -> None:
    """Check that every count of the parts adds up to the whole's, exactly."""
    parts: list[Portion] = [portion for _, portion in read.parts]
    whole = read.whole
    sums([part.base for part in parts], whole.base)
    assert sum(part.base.instructions for part in parts) == whole.base.instructions
    assert sum(part.events for part in parts) == whole.events
    for happening, count in whole.base.happenings.items():
        assert sum(part.base.happenings[happening] for part in parts) == count, happening
    for number in range(len(under)):
        own = [part.measured[number] for part in parts]
        sums(own, whole.measured[number])
        for effect, count in whole.measured[number].effects.items():
            assert sum(part.effects.get(effect, 0) for part in own) == count, effect
        shares = np.array([part.pageblock_shares for part in own]).sum(axis=0)
        blocks = whole.measured[number].pageblocks
        changed = (blocks.to_sensitive.high > 0, blocks.to_nonsensitive.high > 0)
        assert shares == pytest.approx(np.array(changed, float))
    assert read.chosen.base == whole.base or read.chosen.base.walked.misses == (0, 0)


@pytest.mark.parametrize("by", By)
def test_counts_of_parts_are_the_whole(tmp_path: Path, by: By) -> None:
    """However a recording begins, ends and switches, what is counted of the parts is what is counted of all of it."""
    under = [policy(), policy(exit_on=ExitOn.MM_SWITCH), load_policy("ephmap"), load_policy("blanket")]
    trace = unfinished().write(tmp_path / "t.asitrace", rows_per_part=7)
    read = measure_portions(trace, under, None, by)
    check(read, under)
    base, measured = measure(trace, under)
    assert (read.whole.base, [one.walked for one in read.whole.measured]) == (base, [one.walked for one in measured])
    assert base.walked.unrestricted_instructions == 0 < measured[0].walked.unrestricted_instructions


@pytest.mark.parametrize("by", [By.TASK, By.PHASE])
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_counts_of_samples(sample: Path, by: By) -> None:
    """The counts of a recording's parts are those of the whole."""
    under = [load_policy("denylist-2025"), load_policy("blanket")]
    check(measure_portions(Trace.open(sample), under, None, by), under)


def priced(
    trace: Path,
    *,
    selection: Selection | None = None,
    by: By | None = None,
    smt: bool = False,
    seconds: float | None = None,
) -> CostResult:
    """Price a trace."""
    return price(
        Trace.open(trace),
        [load_cpu("skylake-6600u"), load_cpu("zen2-7452")],
        policies=[load_policy("denylist-2025"), load_policy("ephmap")],
        mitigations=MITIGATIONS,
        base_time=BaseTime(seconds),
        smt=smt,
        selection=selection,
        by=by,
    )


def close(one: Range, other: Range) -> None:
    """Compare two ranges, but for rounding."""
    for end in ("low", "mid", "high"):
        assert getattr(one, end) == pytest.approx(getattr(other, end), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    "options",
    [{}, *(pytest.param(given, marks=pytest.mark.slow) for given in ({"smt": True}, {"seconds": 3.0}))],
    ids=str,
)
@pytest.mark.parametrize("by", By)
@pytest.mark.parametrize(
    "stem", ["phases", *(pytest.param(stem, marks=pytest.mark.slow) for stem in ("kvm-guest", "processes"))]
)
def test_costs_of_parts_are_the_whole(stem: str, by: By, options: dict[str, Any]) -> None:
    """Low, best guess and high of every mitigation add up to the run's."""
    result = priced(PHASES.with_name(f"{stem}.asitrace"), by=by, **options)
    for number, row in enumerate(result.rows):
        parts = [part.rows[number] for part in result.parts]
        assert {(part.mitigation, part.policy, part.cpu) for part in parts} == {(row.mitigation, row.policy, row.cpu)}
        for end in ("low", "mid", "high"):
            total = sum(getattr(part.overhead, end) for part in parts)
            assert total == pytest.approx(getattr(row.overhead, end), rel=1e-9)
            cycles = sum(getattr(part.cycles, end) for part in parts)
            assert cycles == pytest.approx(getattr(row.per_round_trip, end) * result_trips(result), rel=1e-9)
        if row.exits is not None:
            assert sum(part.exits or 0 for part in parts) == row.exits
    assert sum(part.instructions for part in result.parts) == result.instructions


def result_trips(result: CostResult) -> int:
    """Give the round trips of a result."""
    return sum(part.round_trips for part in result.parts)


def test_selected_is_the_part() -> None:
    """What is priced alone costs the cycles that it has in the table; its overhead is a share of its own time."""
    whole = priced(PHASES, by=By.TASK)
    part = next(part for part in whole.parts if part.name == "helper")
    alone = priced(PHASES, selection=Selection(tasks=("helper",)), by=By.PHASE)
    assert (alone.instructions, alone.selection) == (part.instructions, "task helper")
    assert [one.name for one in alone.parts] == ["helped + steady"]
    for row, own, only in zip(alone.rows, part.rows, alone.parts[0].rows, strict=True):
        assert row.per_round_trip.mid * part.round_trips == pytest.approx(own.cycles.mid, rel=1e-9)
        close(only.cycles, own.cycles)
        close(only.overhead, row.overhead)
        ratio = whole.instructions / alone.instructions
        assert row.overhead.mid == pytest.approx(own.overhead.mid * ratio, rel=1e-9)


def test_nothing_there() -> None:
    """What was selected and never ran cannot be priced; the line says what it was."""
    with pytest.raises(CostError, match="task init, phase helped has no instructions"):
        priced(PHASES, selection=Selection(tasks=("init",), phases=("helped",)))


def test_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The table's columns add up; JSON has all parts; `asi compare` tells that two documents are of different parts."""
    words = ["cost", PHASES, "--cpu", "skylake-6600u", "--by", "task"]
    code, out, _ = asi(capsys, *words, "--top", "2")
    assert code == 0
    assert "By task (share of the run's time, best guess)" in out
    assert "... and 3 more tasks" in out
    document = json.loads(asi(capsys, *words, "--json")[1])
    assert document["by"]["key"] == "task"
    assert {part["name"]: part["pids"] for part in document["by"]["parts"]}["helper"] == [81]
    files = []
    for task in ("helper", "phases"):
        files.append(tmp_path / f"{task}.json")
        _, out, _ = asi(capsys, "cost", PHASES, "--cpu", "skylake-6600u", "--task", task, "--json")
        files[-1].write_text(out)
        assert json.loads(out)["selection"] == f"task {task}"
    code, out, _ = asi(capsys, "compare", *files)
    assert code == 0
    assert " ".join(out.split()).startswith("selection: task helper -> task phases")
    code, _, err = asi(capsys, "cost", PHASES, "--cpu", "skylake-6600u", "--task", "hlper")
    assert (code, err) == (2, 'asi: error: --task hlper: no such task in the recording; the nearest is "helper"\n')
