"""The script: steps still to come, as plain data."""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asikit.proofs.stage.script import Script
from asikit.protocol import Happening, TaskState
from tests.proofs.stage.bench import step

if TYPE_CHECKING:
    from asikit.proofs.story import StoryStep

H = Happening
STEPS = st.lists(
    st.builds(
        step,
        st.integers(0, 1),
        st.sampled_from(["runs", "begins", "interrupted by", "stops waiting", "leaves"]),
        st.sampled_from(["asi_exit.write_cr3", "asi_exit.uncount", H.CONTEXT_SWITCH, H.RETURN_USER]),
    ),
    max_size=12,
)
TASKS = (TaskState(), TaskState(target=1, intr_nest_depth=1))


def left(script: Script) -> list[StoryStep]:
    """Take everything off that is still to come."""
    return [script.take() for _ in range(len(script))]


@given(STEPS)
def test_one_after_the_other(steps: list[StoryStep]) -> None:
    """Each step once, in order; the head is what is taken next; a step is of one thread."""
    script = Script(steps)
    for number, expected in enumerate(steps):
        assert (len(script), script.head) == (len(steps) - number, expected)
        assert script.next_of(expected.thread) is script.head
        assert script.next_of(1 - expected.thread) is None
        assert script.take() == expected
    assert (script.head, script.next_of(0), script.disturbed, script.missed) == (None, None, None, 0)


@given(STEPS, st.data())
def test_left_out_steps_are_counted(steps: list[StoryStep], data: st.DataObject) -> None:
    """However many of them are left out, and whichever."""
    out = data.draw(st.lists(st.booleans(), min_size=len(steps), max_size=len(steps)))
    script = Script(steps)
    for leaves_out in out:
        if leaves_out:
            script.miss()
        else:
            script.take()
    assert (script.missed, len(script)) == (sum(out), 0)


PATHS = ("asi_exit.write_cr3", "asi_exit.uncount", "asi_exit.clear_curr_asi")
PIECES = st.lists(st.builds(step, st.just(0), st.just("runs"), st.sampled_from(PATHS)), max_size=4)


@given(PIECES, STEPS, st.integers(0, 1))
def test_what_has_run_is_ticked_off(piece: list[StoryStep], others: list[StoryStep], thread: int) -> None:
    """The first of its name among the micro-operations that the thread has next; those before it were left out."""
    path, steps = PATHS[1], [*piece, *others]
    names = [each.name for each in takewhile(lambda each: (each.verb, each.thread) == ("runs", thread), steps)]
    script = Script(steps)
    found = script.tick_off(thread, path)
    assert found == (path in names)
    gone = names.index(path) if found else 0
    assert script.missed == gone
    assert left(script) == steps[gone + found :]


@given(STEPS)
def test_who_is_disturbed(steps: list[StoryStep]) -> None:
    """A thread that is to go on at once, if that is what comes next."""
    for verb in ("stops waiting", "interrupted by"):
        assert Script([step(1, verb, "x"), *steps]).disturbed == 1
    for verb in ("runs", "begins", "leaves", "turns sensitive"):
        assert Script([step(1, verb, "x"), *steps]).disturbed is None


@pytest.mark.parametrize(
    "own",
    [
        step(0, "skips", "asi_exit.already_exited"),
        step(1, "breaks a rule in", "asi_exit.write_cr3"),
        step(0, "runs", f"{H.UNMAPPED_TOUCH}.walk"),
    ],
)
def test_what_the_machine_does_by_itself(own: StoryStep) -> None:
    """Steps that nobody has to see to are no part of the script."""
    steps = [step(0, "begins", H.UNMAPPED_TOUCH), step(0, "runs", "asi_exit.write_cr3")]
    assert left(Script([steps[0], own, steps[1]])) == steps


@given(STEPS, st.data())
def test_a_switch_says_first_where_it_goes(steps: list[StoryStep], data: st.DataObject) -> None:
    """The task stands on the last switch that its thread began, and on no other step; nothing else is changed."""
    begun = [number for number, each in enumerate(steps) if each.name == H.CONTEXT_SWITCH]
    ends: dict[int, int] = {}
    for number in begun:
        thread = steps[number].thread
        following = [later for later in begun if later > number and steps[later].thread == thread]
        within = range(number, following[0] if following else len(steps))
        ends[number] = data.draw(st.sampled_from([at for at in within if steps[at].thread == thread]))
    told = list(steps)
    for number, end in ends.items():
        told[end] = replace(told[end], loads=TASKS[number % 2])
    expected = [
        replace(each, loads=TASKS[number % 2] if number in begun else None) for number, each in enumerate(steps)
    ]
    assert left(Script(told)) == expected
