"""The clauses of the invariant: each is false of a state that is wrong in just the way that it speaks of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import z3

from asikit.proofs import world_for
from asikit.proofs.induction import Induction, _terms
from asikit.proofs.relation import HANDLER, KERNEL, USER, Place, Relation
from asikit.proofs.smt import Symbolic
from asikit.protocol import Role, Space, Taint
from asikit.threat import Party

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.proofs.invariant import Clause

ONE = Induction(Relation(world_for(threads=1)))
TWO = Induction(Relation(world_for(threads=2, nesting=0)))
RESTRICTED = int(Space.USERSPACE)
IN_USER = {"cr3": RESTRICTED, "curr_asi": RESTRICTED, "target": RESTRICTED}
"""The fields of a process that runs in its own domain."""


def state(
    induction: Induction,
    fields: Mapping[str, int] | None = None,
    *,
    places: tuple[Place, ...] = (),
    boxes: Mapping[str, int] | None = None,
    contents: int = 0,
) -> Symbolic:
    """Return the state after boot, with some things of the first thread's that are others."""
    start = induction.start()

    def changed(
        words: tuple[dict[str, z3.BitVecRef], ...], by: Mapping[str, int]
    ) -> tuple[dict[str, z3.BitVecRef], ...]:
        assert by.keys() <= words[0].keys()
        return ({**words[0], **{name: z3.BitVecVal(value, 8) for name, value in by.items()}}, *words[1:])

    numbers = [z3.BitVecVal(induction.invariant.regions.number(place), 16) for place in places]
    first = (*numbers, *start.places[0][len(numbers) :])
    held = start.contents | z3.BitVecVal(contents, start.contents.size())
    return Symbolic(
        changed(start.fields, fields or {}), changed(start.boxes, boxes or {}), (first, *start.places[1:]), held
    )


def broken(induction: Induction, at: Symbolic) -> list[str]:
    """Return the clauses that do not hold in a state, by name."""
    pairs = [
        (variable, value)
        for variable, value in zip(_terms(induction.state), _terms(at), strict=True)
        if not variable.eq(value)
    ]

    def holds(clause: Clause) -> bool:
        return z3.is_true(z3.simplify(z3.substitute(clause.formula, *pairs)))

    return list(dict.fromkeys(clause.name for clause in induction.clauses if not holds(clause)))


@pytest.mark.parametrize("induction", [ONE, TWO], ids=["one thread", "two"])
def test_the_start_keeps_all(induction: Induction) -> None:
    """After boot nothing is wrong."""
    assert broken(induction, state(induction)) == []


def before(role: Role) -> Place:
    """Return a place before a micro-operation of a role, on the base level."""
    return next(place for place in ONE.invariant.regions.before(role) if not place.level)


def test_a_space_that_does_not_exist() -> None:
    """Types come first."""
    assert "types" in broken(ONE, state(ONE, {"target": 77}))
    assert "types" in broken(ONE, state(ONE, boxes={"stunned": 2}))


def test_handlers() -> None:
    """One interrupts the kernel only, and is counted just where the task is tense."""
    assert "handlers-interrupt-the-kernel" in broken(ONE, state(ONE, places=(USER, HANDLER)))
    assert broken(ONE, state(ONE, places=(KERNEL, HANDLER))) == []
    assert broken(ONE, state(ONE, {"intr_nest_depth": 1})) == ["depth"]
    # Ordinary code that is tense was entered by an interrupt, which counts.
    assert broken(ONE, state(ONE, {"target": RESTRICTED})) == ["depth"]
    assert broken(ONE, state(ONE, {"target": RESTRICTED, "intr_nest_depth": 1})) == []


def test_page_tables() -> None:
    """Restricted CR3 without curr_asi, or with another one, is no state; nor is unrestricted with nothing tainted."""
    assert "recorded" in broken(ONE, state(ONE, {"cr3": RESTRICTED}))
    assert "settled" in broken(ONE, state(ONE, {"curr_asi": RESTRICTED}))
    assert "unrestricted" in broken(ONE, state(ONE, {"taints": 0}))
    assert "unrestricted" in broken(ONE, state(ONE, {"taints": int(Taint.KERNEL_DATA | Taint.USER_CONTROL)}))


def test_untrusted_code_runs_in_its_own_domain() -> None:
    """With the target set, CR3 and curr_asi its own; else several clauses say that it is not ready."""
    wrong = broken(ONE, state(ONE, places=(USER,)))
    assert {"tense", "target"} & set(wrong)
    assert "ready" in broken(ONE, state(ONE, {"target": RESTRICTED}, places=(USER,)))


def test_training_that_is_feared() -> None:
    """Where `__asi_enter` is about to load its page tables, the predictors have been flushed."""
    about = {"curr_asi": RESTRICTED, "target": RESTRICTED, "taints": int(Taint.KERNEL_DATA | Taint.OTHER_MM_CONTROL)}
    assert "no-feared-training" in broken(ONE, state(ONE, about, places=(before(Role.LOAD_ON_ENTER),)))


def test_secrets_left_behind() -> None:
    """A structure that holds a secret while no taint says so; with the taint it is known, and will be flushed."""
    names = [each.name for each in ONE.world.layout.structures if each.holds == "data"]
    secret = ONE.world.layout.spread("data", Party.KERNEL)
    clean = state(ONE, {**IN_USER, "taints": int(Taint.USER_DATA)}, places=(USER,), contents=secret)
    assert {f"secrets: {name}" for name in names} <= set(broken(ONE, clean))
    tainted = state(ONE, contents=secret)
    assert not [name for name in broken(ONE, tainted) if name.startswith("secrets")]


def test_siblings() -> None:
    """What each clause about two threads forbids is found by the mailbox alone."""
    names = {clause.name for clause in TWO.clauses} - {clause.name for clause in ONE.clauses}
    assert len(names) > 3
    wrong = broken(TWO, state(TWO, {**IN_USER}, places=(USER,), boxes={"untrusted": 0, "stunned": 1}))
    assert names & set(wrong)


def test_clauses_are_told_apart() -> None:
    """Each sentence has one name, and each name one sentence."""
    for induction in (ONE, TWO):
        said = {(clause.name, clause.says) for clause in induction.clauses}
        assert len(said) == len({name for name, _ in said})
