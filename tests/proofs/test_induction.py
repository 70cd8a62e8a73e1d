"""The induction: that its relation is the model's, its invariant holds where the model goes, and that it proves."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cvc5
import pytest
import z3  # type: ignore[import-untyped]  # ships none

from asikit.proofs import (
    CATALOGUE,
    Mode,
    Thread,
    Verdict,
    VerifyError,
    World,
    has_element,
    mutant,
    prove,
    world_for,
)
from asikit.proofs._table import Table
from asikit.proofs.explore import _Exploration
from asikit.proofs.induction import Induction, _terms
from asikit.proofs.relation import GUEST, HANDLER, KERNEL, NO_HANDLER, USER, Command, Place, Relation
from asikit.proofs.smt import Symbolic
from asikit.proofs.threads import OWN_BEHIND, SIBLING_BEHIND, core_of, swapped
from asikit.protocol import HANDLER as HANDLER_FRAME
from asikit.protocol import AsiClass, Happening
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF
from tests.proofs.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asikit.proofs import Move

Outcome = tuple[tuple[int, ...], tuple[int, ...], int, Place, Place, int, bool]
"""CPU, task, shared bits, both places, what is emptied, whether another mm is loaded."""


def places(thread: Thread) -> tuple[Place, Place]:
    """Return the two places of a thread."""
    frames = thread.state.frames
    nested = {Happening.NESTED_RETURN, NESTED_RETURN_TO_USER_HALF}
    handlers = [index for index, frame in enumerate(frames) if frame.program in {HANDLER_FRAME, *nested}]
    split = handlers[0] if handlers else len(frames)
    base = {Mode.KERNEL: KERNEL, Mode.USER: USER, Mode.GUEST: GUEST}[thread.mode]
    if split:
        base = Place(0, str(frames[split - 1].program), frames[split - 1].pc)
    if split == len(frames):
        return base, NO_HANDLER
    top = frames[-1]
    return base, HANDLER if top.program == HANDLER_FRAME else Place(1, str(top.program), top.pc)


@dataclass(frozen=True)
class Reached:
    """What an exploration reached: threads with shared bits, and whole states."""

    world: World

    @cached_property
    def table(self) -> Table:
        """What a thread may come to."""
        table = Table(self.world)
        table.close()
        return table

    @cached_property
    def search(self) -> _Exploration:
        """The exploration, run to its end."""
        search = _Exploration(self.world, reduced=False, limit=3_000_000)
        search.run(lambda _: None)
        return search

    def threads(self) -> Iterator[tuple[Thread, int]]:
        """Yield each thread with each value of the shared bits that it meets."""
        numbers, seen = (self.table.row_of >= 0).nonzero()
        for number, shared in zip(numbers.tolist(), seen.tolist(), strict=True):
            yield self.table.threads[number], shared

    def states(self, count: int) -> Iterator[tuple[list[Thread], int, int]]:
        """Yield some whole states: threads, shared bits as the first sees them, contents."""
        table = self.search.table
        assert isinstance(table, Table)
        for index in random.Random(1).sample(range(self.search.count), count):  # noqa: S311  (not for secrets)
            contents, shared, *numbers = self.search._unpack(int(self.search.states[index]))
            yield [table.threads[number] for number in numbers[: self.world.threads]], shared, contents


ONE = Reached(world_for(threads=1))
TWO = Reached(world_for(threads=2, nesting=0))
BOTH = pytest.mark.parametrize("reached", [ONE, TWO], ids=["one thread", "two threads"])


def environment(thread: Thread, shared: int) -> tuple[int, ...]:
    """Return the environment of a thread's expressions, with who is behind."""
    core, _ = core_of(shared)
    behind = (int(bool(shared & OWN_BEHIND)), int(bool(shared & SIBLING_BEHIND)))
    return (*thread.state.cpu, *thread.state.task, *core[0], *core[1], *behind)


def commanded(relation: Relation, thread: Thread, shared: int) -> Iterator[Outcome]:
    """Yield what the relation's commands lead to, evaluated on numbers."""
    base, handler = places(thread)
    env = environment(thread, shared)
    for command in relation.commands:
        if not applies(command, base, handler) or not command.guard.compiled()(env):
            continue
        values = list(env)
        for assign in command.sets:
            values[assign.field.index] = assign.value.compiled()(env)
        goes = (command.goes, handler) if command.goes.level == 0 else (base, command.goes)
        shared_after = sum(value << bit for bit, value in enumerate(values[9:17]))
        yield tuple(values[:7]), tuple(values[7:9]), shared_after, *goes, command.clears, command.folds


def applies(command: Command, base: Place, handler: Place) -> bool:
    """Whether a thread is where a command wants it."""
    if command.at == NO_HANDLER:
        return handler == NO_HANDLER and base not in {USER, GUEST}
    return command.at == handler if command.at.level else (command.at == base and handler == NO_HANDLER)


def moved(move: Move) -> Outcome:
    """Return what a move of the model's leads to."""
    state = move.after.state
    return tuple(state.cpu), tuple(state.task), move.shared, *places(move.after), move.clears, move.folds


@BOTH
def test_the_relation_is_the_models(reached: Reached) -> None:
    """At every thread that is ever reached, the commands lead to just what the model's moves lead to."""
    relation = Relation(reached.world)
    count = 0
    for thread, shared in reached.threads():
        expected = Counter(moved(move) for move in Oracle(reached.world).moves(thread, shared))
        assert Counter(commanded(relation, thread, shared)) == expected
        count += 1
    assert count > 500


def symbols(induction: Induction, threads: list[Thread], shared: int, contents: int) -> Symbolic:
    """Return a state as constants of the solver's."""
    fields, boxes, numbers = [], [], []
    for who, thread in enumerate(threads):
        seen = shared if who == 0 else swapped(shared)
        core, _ = core_of(seen)
        fields.append({**thread.state.cpu._asdict(), **thread.state.task._asdict()})
        boxes.append({**core[0]._asdict(), "behind": int(bool(seen & OWN_BEHIND))})
        if len(threads) == 1:
            boxes.append({**core[1]._asdict(), "behind": 0})
        numbers.append(tuple(induction.invariant.regions.number(place) for place in places(thread)))
    size = induction.world.layout.bits
    return Symbolic(
        tuple({name: z3.BitVecVal(value, 8) for name, value in one.items()} for one in fields),
        tuple({name: z3.BitVecVal(value, 8) for name, value in one.items()} for one in boxes),
        tuple((z3.BitVecVal(base, 16), z3.BitVecVal(handler, 16)) for base, handler in numbers),
        z3.BitVecVal(contents, size),
    )


def substitution(induction: Induction, state: Symbolic) -> list[tuple[Any, Any]]:
    """Return the pairs that put a state's values in the place of the variables."""
    pairs = zip(_terms(induction.state), _terms(state), strict=True)
    return [(variable, value) for variable, value in pairs if not variable.eq(value)]


@BOTH
def test_the_invariant_holds_wherever_the_model_goes(reached: Reached) -> None:
    """Every clause, in states from all over the exploration."""
    induction = Induction(Relation(reached.world))
    for threads, shared, contents in reached.states(60):
        pairs = substitution(induction, symbols(induction, threads, shared, contents))
        for clause in induction.clauses:
            assert z3.is_true(z3.simplify(z3.substitute(clause.formula, *pairs))), clause.name


@BOTH
def test_the_solver_steps_as_the_model_does(reached: Reached) -> None:
    """From states all over the exploration, for the first thread: the same states after, structures included."""
    induction = Induction(Relation(reached.world))
    world = reached.world
    for threads, shared, contents in reached.states(25):
        pairs = substitution(induction, symbols(induction, threads, shared, contents))
        here = places(threads[0])
        stepped = Counter(
            str([z3.simplify(z3.substitute(term, *pairs)) for term in _terms(induction.after(command, 0))])
            for command in induction.relation.commands
            if applies(command, *here)
            and z3.is_true(z3.simplify(z3.substitute(induction.possible(command, 0), *pairs)))
        )
        others = world.view(threads[1], swapped(shared)).adds if len(threads) > 1 else 0
        expected: Counter[str] = Counter()
        for move in Oracle(world).moves(threads[0], shared):
            held = contents & ~move.clears | others
            held = world.layout.fold(held) if move.folds else held
            held |= world.view(move.after, move.shared).adds
            expected[str(_terms(symbols(induction, [move.after, *threads[1:]], move.shared, held)))] += 1
        assert stepped == expected


@pytest.mark.parametrize("threads", [1, 2])
def test_proved(threads: int) -> None:
    """Schedules of any length; and the invariant is not vacuous, which is among the questions."""
    result = prove(world_for(threads=threads))
    assert (result.verdict, result.reason) == (Verdict.PROVED, "")
    assert result.obligations > 250
    assert len(result.invariant) > 25
    assert {item.name: item.holds for item in result.properties} == {
        "T1": True,
        "no deadlock": True,
        "retry ends": True,
    }


def test_two_classes_on_two_threads() -> None:
    """A thread's taints cannot say what its sibling trains: an exit that asks them is not proved."""
    world = world_for(threads=2, classes=(AsiClass.USERSPACE, AsiClass.KVM))
    assert prove(world).verdict is Verdict.PROVED
    assert prove(replace(world, nesting=0), mutant("exit-asks-own-taints")).verdict is Verdict.UNKNOWN


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no-release", "no-stun-interrupt", "untrusted-kept-in-nested-entries"])
def test_deadlocks_are_not_proved(name: str) -> None:
    """Without what ends a wait, the invariant that says so is not kept."""
    result = prove(world_for(threads=2), mutant(name))
    assert result.verdict is Verdict.UNKNOWN
    assert {item.name: item.holds for item in result.properties}["no deadlock"] is None


MUTANTS = {
    # what does not keep which clause
    "no-ibpb": ("maybe_flush_control_for_exit.clear_taints", "trained: branch target buffer"),
    "no-verw": ("maybe_flush_data.clear_taints", "secrets: fill and store buffers"),
    "data-flush-before-cr3": ("maybe_flush_control_for_enter.clean", "cr3-written"),
    "no-reentry": ("asi_intr_exit.uncount", "ready"),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_not_proved(name: str) -> None:
    """The first question that fails points at what is wrong; the verdict is UNKNOWN, as induction refutes nothing."""
    result = prove(world_for(threads=1), mutant(name))
    assert result.verdict is Verdict.UNKNOWN
    assert result.counterexample is None
    command, clause = MUTANTS[name]
    assert command in result.reason
    assert clause in result.reason


@pytest.mark.slow
@pytest.mark.parametrize("world", [world_for(threads=1), world_for(threads=2, nesting=0)], ids=["one", "two"])
def test_another_solver_agrees(world: World, tmp_path: Path) -> None:
    """cvc5 reads the script, and answers each of the questions as hoped."""
    file = tmp_path / "questions.smt2"
    with file.open("w", encoding="utf-8") as script:
        result = prove(world, smtlib=script)
    assert result.verdict is Verdict.PROVED
    asked = list(answers(file))
    assert len(asked) == result.obligations
    assert [question for question in asked if question[0] != question[1]] == []
    assert {hoped for hoped, _ in asked} == {"sat", "unsat"}


def answers(file: Path) -> Iterator[tuple[str, str]]:
    """Yield of each question the answer that is hoped for, and cvc5's."""
    terms = cvc5.TermManager()
    solver, symbols = cvc5.Solver(terms), cvc5.SymbolManager(terms)
    solver.setOption("incremental", "true")
    parser = cvc5.InputParser(solver, symbols)
    parser.setFileInput(cvc5.InputLanguage.SMT_LIB_2_6, str(file))
    hoped = ""
    while not (command := parser.nextCommand()).isNull():
        words = str(command).strip("()").split()
        hoped = words[2] if words[:2] == ["set-info", ":status"] else hoped
        answer = command.invoke(solver, symbols).strip()
        if answer:
            yield hoped, answer


def test_what_is_not_covered() -> None:
    """One line says so."""
    with pytest.raises(VerifyError, match="induction is for ASI with handlers one deep"):
        prove(world_for(threads=1, nesting=2))
    with pytest.raises(VerifyError, match="induction is for ASI"):
        prove(world_for("blanket", threads=1))
    with pytest.raises(VerifyError, match="takes the shootdown for granted"):
        prove(world_for(threads=1), mutant("no-shootdown"))


@pytest.mark.slow
@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE])
def test_no_mutant_is_proved(name: str) -> None:
    """What one thread refutes by exploring, or what does not even exist without SMT, induction does not prove."""
    world, candidate = world_for(threads=1), mutant(name)
    if not has_element(world, candidate) or candidate.family == "stun":
        world = world_for(threads=2)
    try:
        assert prove(world, candidate).verdict is Verdict.UNKNOWN
    except VerifyError:
        assert candidate.variant or name == "no-shootdown"
