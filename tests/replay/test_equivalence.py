"""The compiled replay and the reference count the same, on any sequence of events."""

from __future__ import annotations

from dataclasses import replace as changed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asikit.protocol import AsiClass, Happening, Space
from asikit.replay import ALL_CLASSES, ExitOn, MechanismKind, Policy, load_policy, shipped_policies
from asikit.replay._steps import Stepper
from asikit.replay._transitions import TransitionTable
from asikit.replay.sensitivity import Sensitive
from asikit.trace import EVENT_SCHEMA, EventKind, TlbFlush, Trace
from tests.builders import small_trace
from tests.replay.running import both_tallies, policy, tallies_of

if TYPE_CHECKING:
    from asikit.replay._tally import Tally

PLACES, STACKS, TASKS = 6, 3, 4
SAMPLES = sorted((Path(__file__).parents[2] / "src/asikit/data/samples").glob("*.asitrace"))
"""Recorded traces; there are none in a checkout whose samples have not been recorded."""


@st.composite
def events(draw: st.DrawFn) -> pl.DataFrame:
    """Any events whatsoever, possible or not, whose args are rows that exist."""
    limits = {EventKind.TASK_SWITCH: TASKS, EventKind.TLB_FLUSH: len(TlbFlush)}
    limits |= dict.fromkeys((EventKind.TOUCH_READ, EventKind.TOUCH_WRITE, EventKind.TOUCH_FETCH), PLACES)
    rows = []
    for kind in draw(st.lists(st.sampled_from(EventKind), max_size=60)):
        usual = st.sampled_from([0, 1, 8, 14, 236, 5000, 0xFFFF_FFFF])
        arg = draw(st.integers(0, limits[kind] - 1) if kind in limits else usual)
        rows.append((draw(st.integers(0, 2)), 0, int(kind), arg, draw(st.integers(0, STACKS - 1))))
    return pl.DataFrame(rows, schema=EVENT_SCHEMA, orient="row")


@st.composite
def policies(draw: st.DrawFn) -> Policy:
    """Any mechanism that is not a contradiction."""
    kind = draw(st.sampled_from(MechanismKind))
    mechanism = changed(
        load_policy("off").mechanism,
        kind=kind,
        exit_on=draw(st.sampled_from(ExitOn)),
        exit_on_tlb_flush=tuple(draw(st.sets(st.sampled_from(TlbFlush)))),
        kvm_exit_on_user_return=draw(st.booleans()),
        kvm_protects_user_data=draw(st.booleans()),
        pti=draw(st.booleans()),
        noflush=draw(st.booleans()),
        smt=kind is not MechanismKind.BLANKET and draw(st.booleans()),
    )
    return Policy("any", mechanism=mechanism)


@st.composite
def sensitivities(draw: st.DrawFn) -> Sensitive:
    """Any bits for the places and stacks."""
    places = draw(st.lists(st.integers(0, 255), min_size=PLACES, max_size=PLACES))
    stacks = draw(st.lists(st.booleans(), min_size=STACKS, max_size=STACKS))
    return Sensitive(np.zeros(1, np.bool_), np.array(places, np.uint8), np.array(stacks))


CLASSES = st.frozensets(st.sampled_from(sorted(ALL_CLASSES)), min_size=1)


def conserved(tally: Tally) -> None:
    """Check what must hold of any counts."""
    exits = tally.reasons.total()
    assert tally.sites["exits"].sum() == exits
    assert sum(counts.exits for counts in tally.entries.values()) == exits
    for counts in tally.entries.values():
        assert 0 <= counts.without_exit <= counts.round_trips
        assert counts.round_trips - counts.without_exit <= counts.exits


@settings(max_examples=300)
@given(events(), policies(), sensitivities(), CLASSES)
def test_random(frame: pl.DataFrame, under: Policy, sensitive: Sensitive, classes: frozenset[AsiClass]) -> None:
    """On random events, most of them impossible, both count the same, and neither fails."""
    compiled, reference = tallies_of([frame], under, sensitive, TASKS, classes)
    assert compiled.same_as(reference)
    conserved(compiled)
    if under.mechanism.kind is not MechanismKind.ASI:
        assert not compiled.reasons


@given(events(), policies(), sensitivities(), st.integers(1, 59))
def test_chunks(frame: pl.DataFrame, under: Policy, sensitive: Sensitive, cut: int) -> None:
    """Where the events are cut into chunks makes no difference."""
    whole, _ = tallies_of([frame], under, sensitive, TASKS, ALL_CLASSES)
    parts, _ = tallies_of([frame[:cut], frame[cut:]], under, sensitive, TASKS, ALL_CLASSES)
    assert whole.same_as(parts)


@given(events(), sensitivities(), st.lists(st.integers(0, 63), min_size=PLACES, max_size=PLACES))
def test_monotone(frame: pl.DataFrame, sensitive: Sensitive, more: list[int]) -> None:
    """Making more memory sensitive never makes more round trips run without an exit."""
    plain = changed(sensitive, places=sensitive.places & np.uint8(0x3F))
    greater = changed(plain, places=plain.places | np.array(more, np.uint8))
    less, _ = tallies_of([frame], policy(), plain, TASKS, ALL_CLASSES)
    most, _ = tallies_of([frame], policy(), greater, TASKS, ALL_CLASSES)
    without = [sum(counts.without_exit for counts in tally.entries.values()) for tally in (less, most)]
    assert without[1] <= without[0]


@pytest.mark.parametrize("name", shipped_policies())
def test_small_trace(name: str, tmp_path: Path) -> None:
    """On a trace with a bit of everything both count the same under each shipped policy."""
    compiled, reference = both_tallies(small_trace().write(tmp_path / "t.asitrace"), load_policy(name))
    assert compiled.same_as(reference)
    conserved(compiled)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", ["denylist-2025", "ephmap", "allowlist-2022"])
@pytest.mark.parametrize("rows", [40_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_recorded(sample: Path, name: str, rows: int) -> None:
    """On recordings of a real kernel both count the same."""
    trace = Trace.open(sample)
    # Importing here keeps the list of what the random tests need short.
    from asikit.replay._tables import SideTables  # noqa: PLC0415
    from asikit.replay.sensitivity import apply_policy  # noqa: PLC0415

    tables, under = SideTables.of(trace), load_policy(name)
    first = next(trace.events(chunk_rows=rows))
    compiled, reference = tallies_of([first], under, apply_policy(under, tables), tables.tasks.height, ALL_CLASSES)
    assert compiled.same_as(reference)
    conserved(compiled)


@pytest.mark.parametrize("name", ["denylist-2025", "blanket", "off"])
def test_closed_table(name: str) -> None:
    """The table is finite and total, and each entry is the protocol's answer."""
    under = load_policy(name)
    stepper = Stepper(under, ALL_CLASSES)
    table = TransitionTable(stepper)
    table.close()
    assert len(table.steps) == table.states * table.next_state.shape[1]
    assert (table.next_state[: table.states] >= 0).all()
    assert (table.next_state[: table.states] < table.states).all()
    assert table.states < 1000


def test_restricted_means_guarded() -> None:
    """In every state that can be reached, a touch of missing memory leaves the restricted address space."""
    stepper = Stepper(policy(), ALL_CLASSES)
    table = TransitionTable(stepper)
    table.close()
    for (_, event), step in table.steps.items():
        if event == 12:
            assert stepper.space(step.state) is Space.UNRESTRICTED


def test_amended_steps() -> None:
    """What the protocol refuses has a meaning: a touch in the critical section is in a kernel entered unseen."""
    stepper = Stepper(policy(), ALL_CLASSES)
    running = stepper.step(stepper.initial(), Happening.RETURN_USER).state
    assert running.in_critical_section
    touched = stepper.step(running, Happening.UNMAPPED_TOUCH)
    assert touched.amended
    assert touched.exit_reason is not None
    again = stepper.step(running, Happening.RETURN_USER)
    assert again.amended
    assert again.effects == ()
