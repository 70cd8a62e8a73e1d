"""Counterexamples told: lines that people read, of steps that a scheduler follows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.proofs import mutant, verify, world_for
from asikit.proofs.explore import Happened, Path
from asikit.proofs.story import StoryStep, tell
from asikit.proofs.threads import Mode, Move, shared_bits
from asikit.protocol import CoreState, Frame, Happening, Mailbox, TaskState
from asikit.threat import Party

if TYPE_CHECKING:
    from asikit.proofs import Counterexample, Thread, World

H = Happening
ONE, TWO = world_for(threads=1), world_for(threads=2)
KERNEL, SHARED = ONE.start()
USER = KERNEL._replace(mode=Mode.USER)


def happened(
    verb: str,
    name: str,
    after: Thread = KERNEL,
    *,
    thread: int = 0,
    before: int = 0,
    now: int = 0,
    changes: bool = True,
) -> Happened:
    """Return a step of a path."""
    return Happened(thread, Move(verb, name, after, SHARED, changes=changes), before, now)


def told(*steps: Happened, world: World = ONE, kind: str = "deadlock") -> Counterexample:
    """Tell a path; of a deadlock in which nobody waits, as only the lines matter."""
    return tell(world, kind, Path(steps, (KERNEL,) * world.threads, SHARED, 0))


def test_a_piece_is_a_line() -> None:
    """What begins and the micro-operations after it, by their names within the transition."""
    lines = told(
        happened("begins", H.UNMAPPED_TOUCH),
        happened("runs", "unmapped_touch.walk", changes=False),
        happened("runs", "asi_exit.write_cr3"),
        happened("skips", "asi_exit.stun_sibling"),
        happened("runs", "asi_exit.clear_curr_asi"),
        happened("begins", H.SYSCALL_ENTRY),
    ).story
    assert lines == ("touches sensitive memory: write_cr3, clear_curr_asi", "makes a system call")


def test_who_does_it() -> None:
    """With two threads each line says which; a piece that the other interrupts goes on in a line of its own."""
    lines = told(
        happened("begins", H.EXPLICIT_EXIT),
        happened("begins", H.NESTED_NMI, thread=1),
        happened("runs", "asi_exit.write_cr3"),
        happened("runs", "asi_intr_enter.count", thread=1, changes=False),
        world=TWO,
    ).story
    assert lines == ("thread 0 exits explicitly", "thread 1 gets an NMI", "thread 0 goes on: write_cr3")


def test_where_untrusted_code_runs() -> None:
    """The last micro-operation of a return says what runs then."""
    guest = KERNEL._replace(mode=Mode.GUEST)
    assert told(happened("runs", "return_user.resume", USER)).story == ("goes on: resume; user mode runs",)
    assert told(happened("runs", "vm_entry.resume", guest)).story == ("goes on: resume; the guest runs",)


@pytest.mark.parametrize(
    ("verb", "line"),
    [
        ("stops waiting", "stops waiting"),
        ("turns sensitive", "keeps the translation of a page that becomes sensitive"),
        ("leaves", "leaves its handler"),
        ("begins", "begins its handler"),
    ],
)
def test_what_is_no_transition(verb: str, line: str) -> None:
    """Each in words of its own."""
    assert told(happened(verb, "its handler")).story == (line,)


def test_what_the_structures_hold_since() -> None:
    """Only what is new, and to be feared: others' data, and anybody's training."""
    layout = ONE.layout
    data = layout.spread("data", Party.KERNEL)
    own = layout.spread("data", Party.USER)
    trained = layout.spread("training", Party.USER)
    line = told(happened("begins", H.UNMAPPED_TOUCH, before=own, now=own | data)).story[0]
    assert line.endswith(": data of the kernel]")
    assert all(each.name in line for each in layout.structures if each.holds == "data")
    (line,) = told(happened("begins", H.UNMAPPED_TOUCH, before=data, now=data | own)).story
    assert line == "touches sensitive memory"
    line = told(happened("begins", H.SYSCALL_ENTRY, before=data, now=data | trained)).story[0]
    assert line.endswith(": trained by the process]")


def test_conclusions() -> None:
    """A rule is quoted; who waits is named, with where."""
    broken = Path((), (KERNEL._replace(broken="a rule was broken"),), SHARED, 0)
    assert tell(ONE, "broken rule", broken).conclusion == "a rule was broken"
    waiting = KERNEL._replace(state=KERNEL.state._replace(frames=(Frame("asi_exit", 0),)))
    shared = shared_bits(CoreState(Mailbox(0, 0, 0), Mailbox(1, 1, 1)), 0)
    ops = TWO.protocol.programs[H.EXPLICIT_EXIT].ops
    place = next(number for number, op in enumerate(ops) if op.path == "asi_exit.wait_for_sibling")
    waiting = KERNEL._replace(state=KERNEL.state._replace(frames=(Frame(H.EXPLICIT_EXIT, place),)))
    assert TWO.spins(waiting, shared)
    said = tell(TWO, "deadlock", Path((), (waiting, KERNEL), shared, 0)).conclusion
    assert said == "thread 0 at asi_exit.wait_for_sibling waits for ever"


def test_a_leak_that_is_none() -> None:
    """A path to where nothing leaks is a bug, not a story."""
    with pytest.raises(AssertionError, match="ends where nothing leaks"):
        told(kind="leak")


def test_steps_as_json() -> None:
    """What is empty is null; the task of a switch is spelt out."""
    step = StoryStep(1, "begins", "mm_switch")
    assert step.to_dict() == {"thread": 1, "verb": "begins", "name": "mm_switch", "effect": None, "loads": None}
    task = replace(step, loads=TaskState(target=1, intr_nest_depth=2)).to_dict()["loads"]
    assert task == {"target": 1, "intr_nest_depth": 2}


@pytest.mark.parametrize("name", ["no-verw", "no-reentry", "no-shootdown", "no-class-taints"])
def test_a_mutants_story(name: str) -> None:
    """It has a line for each piece at most, and its steps are the path's, in order, whatever is told of them."""
    found = verify(ONE, mutant(name)).counterexample
    assert found is not None
    begins = [step for step in found.steps if step.verb not in {"runs", "skips"}]
    assert 0 < len(found.story) <= len(begins)
    assert found.conclusion
    document = found.to_dict()
    assert [step["name"] for step in document["steps"]] == [step.name for step in found.steps]
    assert document["story"] == list(found.story)
