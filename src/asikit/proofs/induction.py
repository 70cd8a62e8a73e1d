"""Induction: the invariant holds at the start, every command keeps it, and it implies the properties.

For schedules of any length: nothing is unrolled. Each command of the relation is one question to the solver, whether
the invariant can hold before it and not after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import z3  # type: ignore[import-untyped]  # ships none

from asikit.proofs.errors import VerifyError
from asikit.proofs.hardware import Party
from asikit.proofs.invariant import Clause, InductiveInvariant
from asikit.proofs.relation import (
    FAULTS_AGAIN,
    GUEST,
    KERNEL,
    NO_HANDLER,
    OWN_BEHIND,
    RESTING,
    SIBLING_BEHIND,
    USER,
    Command,
    Place,
)
from asikit.proofs.smt import WIDTH, Symbolic, number, truth
from asikit.proofs.threads import OWN_BEHIND as BEHIND_BIT
from asikit.proofs.threads import Mode, Thread, core_of
from asikit.protocol import AsiClass, Space
from asikit.protocol.expressions import Field, Scope
from asikit.protocol.vocabulary import CR3, FIELDS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from asikit.proofs.model import World
    from asikit.proofs.relation import Relation
    from asikit.proofs.threads import View
    from asikit.protocol.expressions import Guard


@dataclass(frozen=True, slots=True)
class Failure:
    """An obligation that does not hold: which command breaks which clause, and an example."""

    obligation: str
    clause: str
    example: str


@dataclass(frozen=True, slots=True)
class Induced:
    """The result of an induction.

    Attributes:
        clauses: the invariant: name and sentence of each clause.
        obligations: questions that were put to the solver.
        failures: those that it did not answer as hoped.
        commands: commands of the relation.
    """

    clauses: tuple[tuple[str, str], ...]
    obligations: int
    failures: tuple[Failure, ...]
    commands: int


@dataclass(frozen=True, slots=True)
class Obligation:
    """A question to the solver: whether what is given can be true and one of the wanted clauses false.

    Attributes:
        name: where it comes from.
        given: formulas, besides the invariant.
        wanted: clauses, which must follow. None: what is given must be possible (the invariant is not vacuous).
        assumes: the invariant is given.
    """

    name: str
    given: tuple[Any, ...]
    wanted: tuple[Clause, ...] | None
    assumes: bool = True


class Induction:
    """The obligations of a relation and its invariant."""

    def __init__(self, relation: Relation) -> None:
        _check(relation.world)
        self.relation, self.world = relation, relation.world
        self.invariant = InductiveInvariant(relation)
        written = {assign.field for command in relation.commands for assign in command.sets}
        self.state = self._variables({one.name for one in written})
        self.clauses = self.invariant.clauses(self.state)

    def _variables(self, written: set[str]) -> Symbolic:
        thread, _ = self.world.start()
        initial = {**thread.state.cpu._asdict(), **thread.state.task._asdict()}

        def variable(name: str, value: int) -> Any:  # noqa: ANN401
            plain = name.partition(".")[2]
            return z3.BitVec(name, WIDTH) if plain in written else z3.BitVecVal(value, WIDTH)

        threads = range(self.world.threads)
        _, shared = self.world.start()
        core, _ = core_of(shared)
        boxes = [{**box._asdict(), "behind": 0} for box in core]
        return Symbolic(
            tuple({name: variable(f"t{who}.{name}", value) for name, value in initial.items()} for who in threads),
            tuple({name: variable(f"t{who}.{name}", value) for name, value in boxes[who].items()} for who in (0, 1)),
            tuple((z3.BitVec(f"t{who}.base", 16), z3.BitVec(f"t{who}.handler", 16)) for who in threads),
            z3.BitVec("contents", self.world.layout.bits),
        )

    # The relation.

    def env(self, who: int) -> Mapping[Field, Any]:
        """Return the environment of a thread's expressions."""
        own, sibling = self.state.boxes[who], self.state.boxes[1 - who]
        values: dict[Field, Any] = {OWN_BEHIND: own["behind"], SIBLING_BEHIND: sibling["behind"]}
        for one in FIELDS:
            if one.scope in {Scope.CPU, Scope.TASK}:
                values[one] = self.state.fields[who][one.name]
            else:
                values[one] = (own if one.scope is Scope.OWN else sibling)[one.name]
        return values

    def possible(self, command: Command, who: int) -> Any:  # noqa: ANN401
        """Return when a command may happen to a thread."""
        base, handler = self.state.places[who]
        here = (base, handler)[command.at.level] == self.invariant.regions.number(command.at)
        calm = handler == self.invariant.regions.number(NO_HANDLER)
        if command.at == NO_HANDLER:
            untrusted = z3.Or(
                [base == self.invariant.regions.number(p) for p in (USER, GUEST) if p in self.relation.places]
            )
            here = z3.And(calm, z3.Not(untrusted))
        elif command.at.level == 0:
            here = z3.And(here, calm)
        return z3.And(here, truth(command.guard, self.env(who)))

    def _waits(self, waiting: tuple[Place, Guard], who: int) -> Any:  # noqa: ANN401
        place, guard = waiting
        return self.possible(Command("waits", "", place, place, guard), who)

    def after(self, command: Command, who: int) -> Symbolic:
        """Return the state after a command of a thread."""
        state, env = self.state, self.env(who)
        fields = [dict(one) for one in state.fields]
        boxes = [dict(one) for one in state.boxes]
        for assign in command.sets:
            value = number(assign.value, env)
            scope, name = assign.field.scope, assign.field.name
            if scope in {Scope.CPU, Scope.TASK}:
                fields[who][name] = value
            else:
                boxes[who if scope is Scope.OWN else 1 - who][name] = value
        places = list(state.places)
        number_ = z3.BitVecVal(self.invariant.regions.number(command.goes), 16)
        places[who] = (number_, places[who][1]) if command.goes.level == 0 else (places[who][0], number_)
        size = self.world.layout.bits
        contents = state.contents & ~z3.BitVecVal(command.clears, size)
        if self.world.threads > 1:
            contents |= self._adds(state, 1 - who)
        if command.folds:
            contents = self._folded(contents)
        moved = Symbolic(tuple(fields), tuple(boxes), tuple(places), contents)
        return moved._replace(contents=contents | self._adds(moved, who))

    def _folded(self, contents: Any) -> Any:  # noqa: ANN401
        other, size = self.world.layout.other, self.world.layout.bits
        stays = contents & ~z3.BitVecVal(other * 6, size)
        return stays | ((z3.LShR(contents, 1) | z3.LShR(contents, 2)) & z3.BitVecVal(other, size))

    def _adds(self, state: Symbolic, who: int) -> Any:  # noqa: ANN401
        return self._viewed(state, who, lambda view: z3.BitVecVal(view.adds, self.world.layout.bits))

    def _viewed(self, state: Symbolic, who: int, value: Any) -> Any:  # noqa: ANN401
        """Return a value of the model's `view`, asked for each mode, space and whether the thread is behind."""
        base, _ = state.places[who]
        found = None
        for mode, place in ((Mode.KERNEL, KERNEL), (Mode.USER, USER), (Mode.GUEST, GUEST)):
            if mode is not Mode.KERNEL and place not in self.relation.places:
                continue
            for space in Space:
                for behind in (0, 1) if self.world.threads > 1 else (0,):
                    this = value(self._view(mode, space, behind))
                    here = [state.fields[who]["cr3"] == int(space), state.boxes[who]["behind"] == behind]
                    if mode is not Mode.KERNEL:
                        here.append(base == self.invariant.regions.number(place))
                    found = this if found is None else z3.If(z3.And(here), this, found)
        return found

    def _view(self, mode: Mode, space: Space, behind: int) -> View:
        thread, shared = self.world.start()
        cpu = thread.state.cpu._replace(cr3=int(space))
        return self.world.view(Thread(thread.state._replace(cpu=cpu), mode), shared | BEHIND_BIT * behind)

    # The obligations.

    def start(self) -> Symbolic:
        """Return the state after boot."""
        thread, shared = self.world.start()
        core, _ = core_of(shared)

        def constants(values: Mapping[str, int]) -> dict[str, Any]:
            return {name: z3.BitVecVal(value, WIDTH) for name, value in values.items()}

        fields = constants({**thread.state.cpu._asdict(), **thread.state.task._asdict()})
        places = tuple(z3.BitVecVal(self.invariant.regions.number(place), 16) for place in (KERNEL, NO_HANDLER))
        threads = self.world.threads
        contents = self.world.view(thread, shared).adds
        return Symbolic(
            (fields,) * threads,
            tuple(constants({**box._asdict(), "behind": 0}) for box in core),
            ((places[0], places[1]),) * threads,
            z3.BitVecVal(contents, self.world.layout.bits),
        )

    def leaks(self) -> Any:  # noqa: ANN401
        """Return the formula that some thread leaks."""
        size = self.world.layout.bits
        found = []
        for who in range(self.world.threads):
            forbids = self._viewed(self.state, who, lambda view: z3.BitVecVal(view.forbids, size))
            found.append(self.state.contents & forbids != 0)
            found.append(self._viewed(self.state, who, lambda view: z3.BoolVal(bool(view.leak))))
        return z3.Or(found)

    def obligations(self) -> Iterator[Obligation]:
        """Yield all that must be asked."""
        yield Obligation(
            "the start satisfies the invariant", (), tuple(self.invariant.clauses(self.start())), assumes=False
        )
        yield Obligation("the invariant implies T1", (), (Clause("T1", "nothing leaks", z3.Not(self.leaks())),))
        if self.relation.waiting:
            one, other = (z3.Or([self._waits(each, who) for each in self.relation.waiting]) for who in (0, 1))
            yield Obligation("one thread waits", (one,), (Clause("no deadlock", "the other does not", z3.Not(other)),))
        for name, formula in self._interesting():
            yield Obligation(f"the invariant allows {name}", (formula,), None)
        for command in self.relation.commands:
            given = (self.possible(command, 0),)
            yield Obligation(f"{command} at {_text(command.at)}", given, tuple(self._wanted(command)))

    def _wanted(self, command: Command) -> Iterator[Clause]:
        """Yield the clauses after a command that are not the same as before it, and what it must not break."""
        after = self.after(command, 0)
        changed = [(old, new) for old, new in zip(_terms(self.state), _terms(after), strict=True) if not old.eq(new)]
        for clause in self.clauses:
            formula = z3.substitute(clause.formula, *changed)
            if not formula.eq(clause.formula):
                yield Clause(clause.name, clause.says, formula)
        if command.ends_touch:
            again = truth(FAULTS_AGAIN, {CR3: after.fields[0]["cr3"]})
            yield Clause("retry", "an access that faulted does not fault again", z3.Not(again))
        for requirement in command.requires:
            yield Clause("rule", str(requirement.guard), truth(requirement.guard, self.env(0)))

    def _interesting(self) -> Iterator[tuple[str, Any]]:
        """Yield states that must be possible, else the invariant says nothing."""
        base, handler = self.state.places[0]
        secret = self.world.layout.spread("data", Party.KERNEL | Party.OTHER)
        calm = handler == self.invariant.regions.number(NO_HANDLER)
        yield "untrusted code", z3.And(calm, base == self.invariant.regions.number(USER))
        secrets = self.state.contents & z3.BitVecVal(secret, self.world.layout.bits) == secret
        yield "secrets in all structures", z3.And(base == self.invariant.regions.number(KERNEL), secrets)

    def run(self) -> Induced:
        """Ask everything."""
        failures = []
        count = 0
        for obligation in self.obligations():
            count += 1
            failed = self._ask(obligation)
            if failed is not None:
                failures.append(failed)
        clauses = tuple(dict.fromkeys((clause.name, clause.says) for clause in self.clauses))
        return Induced(clauses, count, tuple(failures), len(self.relation.commands))

    def smtlib(self) -> Iterator[str]:
        """Yield all questions as one SMT-LIB 2 script, in pieces; each says which answer is hoped for."""
        start, *others = self.obligations()
        yield from ("(set-logic QF_BV)\n", *self._script(start))
        invariant = z3.Solver()
        invariant.add([clause.formula for clause in self.clauses])
        yield f"; the invariant: {', '.join(dict.fromkeys(clause.name for clause in self.clauses))}\n"
        yield _assertions(invariant.to_smt2())
        for obligation in others:
            yield from self._script(obligation)

    def _script(self, obligation: Obligation) -> Iterator[str]:
        hoped = "sat" if obligation.wanted is None else "unsat"
        question = self._question(obligation).sexpr()
        yield f"; {obligation.name}\n(push 1)\n(assert {question})\n(set-info :status {hoped})\n(check-sat)\n(pop 1)\n"

    def _question(self, obligation: Obligation) -> Any:  # noqa: ANN401
        wanted = obligation.wanted
        hoped = [] if wanted is None else [z3.Not(z3.And([clause.formula for clause in wanted]))]
        return z3.And([*obligation.given, *hoped])

    @cached_property
    def _assuming(self) -> Any:  # noqa: ANN401
        """A solver that has the invariant: it is worked into it once."""
        solver = z3.Solver()
        solver.add([clause.formula for clause in self.clauses])
        return solver

    def _ask(self, obligation: Obligation) -> Failure | None:
        solver = self._assuming if obligation.assumes else z3.Solver()
        solver.push()
        solver.add(self._question(obligation))
        failure = self._answer(obligation, solver)
        solver.pop()
        return failure

    def _answer(self, obligation: Obligation, solver: Any) -> Failure | None:  # noqa: ANN401
        answer = solver.check()
        if obligation.wanted is None:
            return None if answer == z3.sat else Failure(obligation.name, "not vacuous", str(answer))
        if answer == z3.unsat:
            return None
        if answer != z3.sat:
            return Failure(obligation.name, "?", solver.reason_unknown())
        model = solver.model()
        broken = [
            one.name for one in obligation.wanted if not z3.is_true(model.eval(one.formula, model_completion=True))
        ]
        return Failure(obligation.name, ", ".join(dict.fromkeys(broken)), self._example(model))

    def _example(self, model: Any) -> str:  # noqa: ANN401
        """Return a state of the model's as text."""

        def value(variable: Any) -> int:  # noqa: ANN401
            return int(model.eval(variable, model_completion=True).as_long())

        words = []
        for who, places in enumerate(self.state.places):
            for level, place in zip(self.invariant.regions.levels, places, strict=True):
                at = level[value(place) % len(level)]
                words.append(f"{_text(at)} ({self.invariant.regions.path(at)})" if at not in RESTING else _text(at))
            named = {**self.state.fields[who], **self.state.boxes[who]}
            words += [f"{name} {value(variable)}" for name, variable in named.items() if z3.is_const(variable)]
        return ", ".join([*words, f"contents {value(self.state.contents):#x}"])


def _check(world: World) -> None:
    """Refuse what is not covered."""
    config = world.config
    if not config.asi or config.pti or config.noflush or world.nesting > 1 or AsiClass.IDLE in config.classes:
        raise VerifyError("induction is for ASI with handlers one deep, without PTI, NOFLUSH and idle domains")
    if not world.shootdown:
        raise VerifyError("induction takes the shootdown for granted (K2): explore what happens without it")


def _terms(state: Symbolic) -> list[Any]:
    fields = [value for thread in state.fields for value in thread.values()]
    boxes = [value for box in state.boxes for value in box.values()]
    return [*fields, *boxes, *(place for thread in state.places for place in thread), state.contents]


def _assertions(script: str) -> str:
    """Return the declarations and assertions of a script of z3's, without what it says about itself and asks."""
    return "".join(f"{line}\n" for line in script.splitlines() if not line.startswith((";", "(set-info", "(check-sat")))


def _text(place: Place) -> str:
    return place.program if place in RESTING else f"{place.program}+{place.pc}"
