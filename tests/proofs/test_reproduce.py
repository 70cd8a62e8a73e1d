"""Counterexamples on the machine: the mutant's leaks, the protocol as it is under the same schedule does not."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING

import pytest

from asikit.proofs import (
    Counterexample,
    Verdict,
    mutant,
    reproduce,
    verify,
    verify_mutants,
    world_for,
)
from asikit.proofs.stage import ATTACKER, VICTIM
from asikit.proofs.story import StoryStep
from asikit.protocol import Happening, TaskState
from tests.proofs.test_mutants import NEEDS_GUESTS, ONE_THREAD, TWO_THREADS, WITH_HANDLERS

if TYPE_CHECKING:
    from asikit.proofs import Reproduction, World

H = Happening


def found_in(world: World, name: str) -> Counterexample:
    """Return a mutant's counterexample."""
    found = verify(world, mutant(name)).counterexample
    assert found is not None
    return found


def tried(world: World, name: str) -> Reproduction:
    """Run a mutant's counterexample."""
    return reproduce(world, mutant(name), found_in(world, name))


FIRST = {(mutant(name).family, ends): name for name, (ends, _) in reversed(ONE_THREAD.items())}
"""One mutant of each family for each end that it comes to; `make test-all` takes all."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in FIRST.values() else pytest.mark.slow) for name in ONE_THREAD],
)
def test_one_thread(name: str) -> None:
    """Every step of every counterexample can be followed, and ends on the machine as in the model."""
    tried_ = tried(world_for(threads=1), name)
    assert (tried_.leaks, tried_.kind, tried_.missed) == (True, ONE_THREAD[name][0], 0)


@pytest.mark.parametrize("name", TWO_THREADS)
def test_two_threads(name: str) -> None:
    """The stun's family: the siblings are switched where the story says."""
    tried_ = tried(world_for(threads=2, nesting=0), name)
    assert (tried_.leaks, tried_.kind, tried_.missed) == (True, TWO_THREADS[name], 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", WITH_HANDLERS)
def test_two_threads_with_handlers(name: str) -> None:
    """What takes all of the model to find."""
    tried_ = tried(world_for(threads=2), name)
    assert (tried_.leaks, tried_.kind, tried_.missed) == (True, WITH_HANDLERS[name], 0)


def step(thread: int, verb: str, name: str, loads: TaskState | None = None) -> StoryStep:
    """Return a step of a story of our own."""
    return StoryStep(thread, verb, name, "", loads)


def story(*steps: StoryStep) -> Counterexample:
    """Return a story of our own."""
    return Counterexample("leak", steps, (), "")


def test_deadlock_of_two_handlers() -> None:
    """Two siblings whose NMIs come before their entries' first step: each waits for the other's acknowledgement.

    A schedule of our own, with system calls.
    """
    enter = [step(0, "begins", H.RETURN_USER), step(0, "runs", "__asi_enter.release_sibling")]
    both = [*enter, *(replace(one, thread=1) for one in enter)]
    go = [step(who, "runs", "return_user.resume") for who in (0, 1)]
    entries = [
        one
        for who in (0, 1)
        for one in (
            step(who, "begins", H.SYSCALL_ENTRY),
            step(who, "interrupted by", H.NESTED_NMI),
            step(who, "runs", "asi_intr_enter.count"),
        )
    ]
    touch = [
        step(0, "begins", H.UNMAPPED_TOUCH),
        step(0, "runs", "asi_exit.interrupt_sibling"),
        step(1, "begins", H.UNMAPPED_TOUCH),
    ]
    tried_ = reproduce(
        world_for(threads=2), mutant("untrusted-kept-in-nested-entries"), story(*both, *go, *entries, *touch)
    )
    assert (tried_.leaks, tried_.kind) == (True, "deadlock")
    assert "wait_for_sibling" in tried_.says


def test_guest_that_goes_on_training() -> None:
    """A switch from guest to VMM has flushed the predictors; the sibling's guest trains, and an NMI exits.

    A schedule of our own.
    """
    steps = story(
        step(0, "begins", H.VM_ENTRY),
        step(0, "runs", "vm_entry.refresh_host_cr3"),
        step(0, "stops waiting", "stop_waiting"),
        step(0, "runs", "stop_waiting.relax"),
        step(1, "begins", H.VM_ENTRY),
        step(1, "runs", "vm_entry.refresh_host_cr3"),
        step(0, "begins", H.RETURN_USER),
        step(0, "runs", "maybe_flush_control_for_enter.ibpb"),
        step(1, "runs", "vm_entry.resume"),
        step(1, "begins", H.VM_EXIT),
        step(1, "runs", "vm_exit.leave_untrusted"),
        step(0, "runs", "maybe_flush_control_for_enter.clear_taints"),
        step(0, "interrupted by", H.NESTED_NMI),
        step(0, "runs", "asi_intr_enter.count"),
        step(0, "begins", H.UNMAPPED_TOUCH),
        step(0, "runs", "asi_exit.write_cr3"),
    )
    tried_ = reproduce(world_for(threads=2), mutant(NEEDS_GUESTS), steps)
    assert (tried_.leaks, tried_.kind, tried_.missed) == (True, "leak", 0)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("no-reentry", "leak"),
        ("reentry-before-uncount", "leak"),
        ("no-interrupt-end-on-return", "leak"),
        ("no-interrupt-depth", "broken rule"),
    ],
)
def test_interrupt_that_touches_a_secret(name: str, kind: str) -> None:
    """What the shortest stories assume of a task, that an interrupt took it from user mode, done by an interrupt."""
    steps = story(
        step(0, "begins", H.RETURN_USER),
        step(0, "begins", H.INTERRUPT_ENTRY),
        step(0, "begins", H.UNMAPPED_TOUCH),
        step(0, "begins", H.RETURN_USER),
    )
    tried_ = reproduce(world_for(threads=1), mutant(name), steps)
    assert (tried_.leaks, tried_.kind, tried_.missed) == (True, kind, 0)


def test_memory_that_turns_sensitive_beside_two_threads() -> None:
    """A third CPU turns it, so that both of the story's follow it to its end; with the protocol as it is none leaks."""
    world = world_for(threads=2)
    turns = story(
        *(step(1, "begins", H.VM_ENTRY), step(1, "runs", "asi_enter_kvm.set_target")),
        step(1, "runs", "__asi_enter.write_cr3"),
        step(1, "turns sensitive", "a page whose translation this thread's TLB has"),
        step(1, "runs", "__asi_enter.release_sibling"),
        *(step(0, "begins", H.VM_ENTRY), step(0, "runs", "vm_entry.resume")),
    )
    tried_ = reproduce(world, mutant("no-shootdown"), turns)
    assert (tried_.leaks, tried_.kind) == (True, "leak")
    tried_ = reproduce(world, None, turns)
    assert (tried_.leaks, tried_.kind) == (False, "")


def test_the_protocol_as_it_is_leaks_under_no_story() -> None:
    """What the control is for: no mutant, and each of the stories."""
    world = world_for(threads=1)
    for name in ("no-verw", "data-flush-before-cr3", "no-reentry", "no-shootdown", "curr-asi-before-cr3-on-exit"):
        tried_ = reproduce(world, None, found_in(world, name))
        assert (tried_.leaks, tried_.kind) == (False, "")


def test_blanket() -> None:
    """The blanket mitigation's own hole: an NMI between its flush and the return."""
    world = world_for("blanket", threads=1)
    tried_ = verify(world, on_machine=True).machine
    assert tried_ is not None
    assert (tried_.leaks, tried_.kind, tried_.missed) == (True, "leak", 0)


def test_a_mutant_that_does_no_harm_there() -> None:
    """A story that ends before anything went wrong does not leak, and says so."""
    world = world_for(threads=1)
    found = found_in(world, "no-kernel-data-taint")
    cut = replace(found, steps=found.steps[:-20])
    tried_ = reproduce(world, mutant("no-kernel-data-taint"), cut)
    assert (tried_.leaks, tried_.kind) == (False, "")


def test_a_leak_that_the_mutant_has_nothing_to_do_with() -> None:
    """If the protocol as it is goes wrong under the story too, nothing is said of the mutant."""
    world = mutant("no-verw").edit(world_for(threads=1))
    tried_ = reproduce(world, mutant("no-l1d-flush"), found_in(world, "no-l1d-flush"))
    assert tried_.leaks is None
    assert tried_.says.startswith("the unchanged protocol does so too: ")


def test_two_runs_that_differ_in_nothing_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Non-interference: with secrets of the same bytes nothing is a leak, whatever the mutant."""
    world = world_for(threads=1)
    found = found_in(world, "no-data-flush")
    assert reproduce(world, mutant("no-data-flush"), found).leaks
    module = import_module("asikit.proofs.stage.contents")
    monkeypatch.setattr(module, "_CHANGED", b"K")
    monkeypatch.setattr(module, "_CONTENT", dict.fromkeys(module._CONTENT, b"K"))
    assert reproduce(world, mutant("no-data-flush"), found).leaks is False


def test_who_must_not_learn_what() -> None:
    """As in the model: the guest not its own process' data either, unless the two trust one another."""
    one, two = world_for(threads=1), world_for(threads=2)
    assert not one.must_not_learn(ATTACKER, ATTACKER)
    assert one.must_not_learn(ATTACKER, VICTIM)
    assert one.must_not_learn(ATTACKER.guest, ATTACKER)
    assert not two.must_not_learn(ATTACKER.guest, ATTACKER)
    assert not one.must_not_learn(ATTACKER, ATTACKER.guest)
    assert one.must_not_learn(VICTIM, ATTACKER.guest)
    assert one.must_not_learn(VICTIM.guest, ATTACKER.guest)
    assert two.must_not_learn(ATTACKER.guest, VICTIM)


def test_rows() -> None:
    """A row of the catalogue has it, if it was asked for."""
    (row,) = verify_mutants(["no-verw"], threads=1, on_machine=True)
    document = row.to_dict()
    assert row.verdict is Verdict.REFUTED
    assert document["leaks_on_machine"] is True
    assert document["on_machine"]["kind"] == "leak"
    assert "fill buffers" in document["on_machine"]["says"]
