"""The induction: that its relation is the model's, its invariant holds where the model goes, and that it proves."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import cvc5
import pytest
import z3

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
from asikit.proofs._table import MoveTable
from asikit.proofs.explore import _Exploration
from asikit.proofs.induction import Induction, _terms
from asikit.proofs.relation import ANYWHERE, GUEST, HANDLER, KERNEL, NO_HANDLER, USER, Command, Place, Relation
from asikit.proofs.smt import Symbolic
from asikit.proofs.threads import OWN_BEHIND, SIBLING_BEHIND, core_of, swapped
from asikit.protocol import HANDLER as HANDLER_FRAME
from asikit.protocol import AsiClass, Happening, Protocol, ProtocolConfig
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF
from tests.proofs.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asikit.proofs import Move

Outcome = tuple[tuple[int, ...], tuple[int, ...], int, tuple[Place, ...], bool, tuple[int, ...], int, bool]
"""CPU, task, shared bits, the place on each level, staleness, each handler's USER_HALF, what is emptied, another mm."""

NESTED_RETURNS = {Happening.NESTED_RETURN, NESTED_RETURN_TO_USER_HALF}


def handlers(thread: Thread) -> list[tuple[Place, int]]:
    """Return the place of each open handler, and its USER_HALF."""
    found: list[tuple[Place, int]] = []
    for frame in thread.state.frames:
        if frame.program == HANDLER_FRAME:
            found.append((HANDLER, frame.pc))
        elif frame.program in NESTED_RETURNS:
            found.append((Place(1, str(frame.program), frame.pc), 0))
        elif found:
            found[-1] = (Place(1, str(frame.program), frame.pc), found[-1][1])
    return found


def places(thread: Thread, levels: int = 1) -> tuple[Place, ...]:
    """Return the places of a thread, on each level."""
    above = [place for place, _ in handlers(thread)]
    base = {Mode.KERNEL: KERNEL, Mode.USER: USER, Mode.GUEST: GUEST}[thread.mode]
    first = thread.state.frames[:1]
    if first and first[0].program not in {HANDLER_FRAME, *NESTED_RETURNS}:
        base = Place(0, str(first[0].program), first[0].pc)
    return (base, *above, *[NO_HANDLER] * (levels - len(above)))


def halves(thread: Thread, levels: int) -> tuple[int, ...]:
    """Return the USER_HALF of each level's handler."""
    found = [half for _, half in handlers(thread)]
    return (*found, *[0] * (levels - len(found)))


@dataclass(frozen=True)
class Reached:
    """What an exploration reached: threads with shared bits, and whole states."""

    world: World

    @cached_property
    def table(self) -> MoveTable:
        """What a thread may come to."""
        table = MoveTable(self.world)
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
        assert isinstance(table, MoveTable)
        for index in random.Random(1).sample(range(self.search.count), count):
            contents, shared, *numbers = self.search._unpack(int(self.search.states[index]))
            yield [table.threads[number] for number in numbers[: self.world.threads]], shared, contents


USERSPACE = frozenset({AsiClass.USERSPACE})
WORLDS = {
    "one thread": world_for(threads=1),
    "two threads": world_for(threads=2, nesting=0),
    "handlers two deep, PTI": replace(
        World(Protocol(ProtocolConfig(pti=True, classes=USERSPACE)), nesting=2),
        kernel_work=(),
        faults=(),
    ),
    "NOFLUSH": replace(
        World(Protocol(ProtocolConfig(noflush=True, classes=USERSPACE))), kernel_work=(Happening.MM_SWITCH,), faults=()
    ),
}
REACHED = {name: Reached(world) for name, world in WORLDS.items()}
LEAKY = {"no shootdown": Reached(replace(WORLDS["NOFLUSH"], shootdown=False))}
BOTH = pytest.mark.parametrize("reached", REACHED.values(), ids=REACHED)
SLOW = {
    "handlers two deep, PTI",
    "handlers three deep",
    "handlers two deep on two threads",
    "PTI on two threads",
    "NOFLUSH on two threads",
    "guests alone, PTI",
    "all of them",
    "no shootdown",
}
LEAKY_TOO = pytest.mark.parametrize(
    "reached",
    [
        pytest.param(each, id=name, marks=[pytest.mark.slow] if name in SLOW else [])
        for name, each in {**REACHED, **LEAKY}.items()
    ],
)


def levels_of(world: World) -> int:
    """Return how many levels of handlers there are places for."""
    return max(world.nesting, 1)


def environment(thread: Thread, shared: int, half: int) -> tuple[int, ...]:
    """Return the environment of a thread's expressions, with the model's own fields."""
    core, _ = core_of(shared)
    behind = (int(bool(shared & OWN_BEHIND)), int(bool(shared & SIBLING_BEHIND)))
    return (*thread.state.cpu, *thread.state.task, *core[0], *core[1], *behind, int(thread.stale), half)


def commanded(relation: Relation, thread: Thread, shared: int) -> Iterator[Outcome]:
    """Yield what the relation's commands lead to, evaluated on numbers."""
    levels = levels_of(relation.world)
    here, saved = places(thread, levels), halves(thread, levels)
    for command in relation.commands:
        level = runs_on(command, here)
        env = environment(thread, shared, saved[level - 1] if level > 0 else 0)
        if level < 0 or not command.guard.compiled()(env):
            continue
        values = list(env)
        for assign in command.sets:
            values[assign.field.index] = assign.value.compiled()(env)
        goes = (
            here
            if command.at == ANYWHERE
            else tuple(command.goes if each == level else place for each, place in enumerate(here))
        )
        half = values[18] if level else 0
        after = tuple(half if each == level - 1 else old for each, old in enumerate(saved))
        shared_after = sum(value << bit for bit, value in enumerate(values[9:17]))
        stale = bool(values[17])
        yield (
            tuple(values[:7]), tuple(values[7:9]), shared_after, goes, stale, after, command.clears, command.folds,
        )  # fmt: skip


def runs_on(command: Command, here: tuple[Place, ...]) -> int:
    """Return the level on which a command runs, or opens a handler, for a thread that is at some places; -1 if none."""
    top = max((level for level, place in enumerate(here) if place != NO_HANDLER), default=0)
    if command.at == ANYWHERE:
        return 0
    if command.opens:
        kernel = here[0] not in {USER, GUEST} if command.at == NO_HANDLER else here[top] == command.at
        return top + 1 if kernel and top + 1 < len(here) else -1
    return top if command.at == here[top] else -1


def moved(world: World, move: Move) -> Outcome:
    """Return what a move of the model's leads to."""
    after, levels = move.after, levels_of(world)
    cpu, task, _ = after.state
    return (
        tuple(cpu), tuple(task), move.shared, places(after, levels), after.stale, halves(after, levels), move.clears,
        move.folds,
    )  # fmt: skip


@LEAKY_TOO
def test_the_relation_is_the_models(reached: Reached) -> None:
    """At every thread that is ever reached, the commands lead to just what the model's moves lead to."""
    relation = Relation(reached.world)
    count = 0
    for thread, shared in reached.threads():
        expected = Counter(moved(reached.world, move) for move in Oracle(reached.world).moves(thread, shared))
        assert Counter(commanded(relation, thread, shared)) == expected
        count += 1
    assert count > 500


def symbols(induction: Induction, threads: list[Thread], shared: int, contents: int) -> Symbolic:
    """Return a state as constants of the solver's."""
    fields, boxes, numbers, levels = [], [], [], levels_of(induction.world)
    for who, thread in enumerate(threads):
        seen = shared if who == 0 else swapped(shared)
        core, _ = core_of(seen)
        saved = {f"user_half{depth}": half for depth, half in enumerate(halves(thread, levels), start=1)}
        cpu, task, _ = thread.state
        fields.append({**cpu._asdict(), **task._asdict(), "stale": int(thread.stale), **saved})
        boxes.append({**core[0]._asdict(), "behind": int(bool(seen & OWN_BEHIND))})
        if len(threads) == 1:
            boxes.append({**core[1]._asdict(), "behind": 0})
        numbers.append(tuple(induction.invariant.regions.number(place) for place in places(thread, levels)))
    size = induction.world.layout.bits
    return Symbolic(
        tuple({name: z3.BitVecVal(value, 8) for name, value in one.items()} for one in fields),
        tuple({name: z3.BitVecVal(value, 8) for name, value in one.items()} for one in boxes),
        tuple(tuple(z3.BitVecVal(number, 16) for number in one) for one in numbers),
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


@LEAKY_TOO
def test_the_solver_steps_as_the_model_does(reached: Reached) -> None:
    """From states all over the exploration, for the first thread: the same states after, structures included."""
    induction = Induction(Relation(reached.world))
    world = reached.world
    for threads, shared, contents in reached.states(25):
        pairs = substitution(induction, symbols(induction, threads, shared, contents))
        stepped = Counter(
            str([z3.simplify(z3.substitute(term, *pairs)) for term in _terms(induction.after(command, 0, level))])
            for command in induction.relation.commands
            for level in induction.levels_of(command)
            if z3.is_true(z3.simplify(z3.substitute(induction.possible(command, 0, level), *pairs)))
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


@pytest.mark.slow
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
    """One line says so, and why."""
    with pytest.raises(VerifyError, match="induction is for ASI: its invariant is about what ASI records"):
        prove(world_for("blanket", threads=1))
    with pytest.raises(VerifyError, match="induction has no idle domains: its invariant has each switch of mm exit"):
        prove(world_for(threads=1), mutant("no-squash"))


OTHERS = {
    "handlers two deep": world_for(threads=1, nesting=2),
    "handlers three deep": world_for(threads=1, nesting=3),
    "handlers two deep on two threads": world_for(threads=2, nesting=2),
    "PTI": World(Protocol(ProtocolConfig(pti=True))),
    "PTI on two threads": World(Protocol(ProtocolConfig(pti=True, smt=True)), threads=2, trusting=True),
    "NOFLUSH": World(Protocol(ProtocolConfig(noflush=True))),
    "NOFLUSH on two threads": World(Protocol(ProtocolConfig(noflush=True, smt=True)), threads=2, trusting=True),
    "guests alone": world_for(threads=1, classes=(AsiClass.KVM,)),
    "guests alone, PTI": World(Protocol(ProtocolConfig(pti=True, classes=frozenset({AsiClass.KVM})))),
    "all of them": World(Protocol(ProtocolConfig(pti=True, noflush=True)), nesting=2),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in OTHERS]
)
def test_proved_too(name: str) -> None:
    """What exploration does or cannot do for its size: page tables of two halves, kept TLB entries, deep handlers."""
    result = prove(OTHERS[name])
    assert (result.verdict, result.reason) == (Verdict.PROVED, "")


def test_stale_translations() -> None:
    """Without the shootdown nothing is proved, and only memory that turns sensitive is to blame."""
    found = Induction(Relation(mutant("no-shootdown").edit(world_for(threads=1)))).run()
    what = "turns sensitive a page whose translation this thread's TLB has at anywhere"
    assert [failure.obligation for failure in found.failures] == [what]
    # Whether the solver's example has the secret in a buffer already is its choice.
    assert found.failures[0].clause.startswith("no-stale-translations")


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
        assert candidate.variant
