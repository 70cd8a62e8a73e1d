"""Induction: the invariant holds at the start, every command keeps it, and it implies the properties.

For schedules of any length: nothing is unrolled. Each command of the relation is one question to the solver, whether
the invariant can hold before it and not after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, TypeVar

import z3

from asikit.proofs.errors import VerifyError
from asikit.proofs.invariant import Clause, InductiveInvariant
from asikit.proofs.relation import (
    ANYWHERE,
    FAULTS_AGAIN,
    GUEST,
    HANDLER,
    KERNEL,
    NO_HANDLER,
    OWN_BEHIND,
    RESTING,
    SIBLING_BEHIND,
    STALE,
    USER,
    USER_HALF,
    Command,
    Place,
)
from asikit.proofs.smt import WIDTH, Symbolic, number, truth
from asikit.proofs.threads import OWN_BEHIND as BEHIND_BIT
from asikit.proofs.threads import Mode, Thread, core_of
from asikit.protocol import AsiClass, Space
from asikit.protocol.expressions import Field, Scope
from asikit.protocol.vocabulary import CR3, FIELDS, USER_CR3
from asikit.threat import FOLDED, Party

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from asikit.proofs.model import World
    from asikit.proofs.relation import Relation
    from asikit.proofs.threads import View

_Expr = TypeVar("_Expr", bound=z3.ExprRef)


@dataclass(frozen=True, slots=True)
class Failure:
    """An obligation that does not hold: which command breaks which clause, and an example."""

    obligation: str
    clause: str
    example: str


@dataclass(frozen=True, slots=True)
class Induced:
    """The result of an induction.

    :ivar clauses: The invariant: name and sentence of each clause.
    :ivar obligations: Questions that were put to the solver.
    :ivar failures: Those that it did not answer as hoped.
    :ivar commands: Commands of the relation.
    """

    clauses: tuple[tuple[str, str], ...]
    obligations: int
    failures: tuple[Failure, ...]
    commands: int


@dataclass(frozen=True, slots=True)
class Obligation:
    """A question to the solver: whether what is given can be true and one of the wanted clauses false.

    :ivar name: Where it comes from.
    :ivar given: Formulas, besides the invariant.
    :ivar wanted: Clauses, which must follow. None: what is given must be possible (the invariant is not vacuous).
    :ivar assumes: The invariant is given.
    """

    name: str
    given: tuple[z3.BoolRef, ...]
    wanted: tuple[Clause, ...] | None
    assumes: bool = True


class Induction:
    """The obligations of a relation and its invariant."""

    def __init__(self, relation: Relation) -> None:
        _check(relation.world)
        self.relation, self.world = relation, relation.world
        self.invariant = InductiveInvariant(relation)
        self.levels = max(self.world.nesting, 1)
        self.written = {assign.field.name for command in relation.commands for assign in command.sets}
        self.state = self._variables()
        self.clauses = self.invariant.clauses(self.state)

    def _initial(self) -> dict[str, int]:
        """Return the fields of a thread that has just booted."""
        thread, _ = self.world.start()
        halves = dict.fromkeys(map(_half, range(1, self.levels + 1)), 0)
        return {**thread.state.cpu._asdict(), **thread.state.task._asdict(), STALE.name: 0, **halves}

    def _variables(self) -> Symbolic:
        initial = self._initial()

        def variable(name: str, value: int) -> z3.BitVecRef:
            plain = name.partition(".")[2]
            field = USER_HALF.name if plain.startswith(USER_HALF.name) else plain
            return z3.BitVec(name, WIDTH) if field in self.written else z3.BitVecVal(value, WIDTH)

        threads = range(self.world.threads)
        levels = ["base", "handler", *(f"handler{depth}" for depth in range(2, self.levels + 1))]
        _, shared = self.world.start()
        core, _ = core_of(shared)
        boxes = [{**box._asdict(), "behind": 0} for box in core]
        return Symbolic(
            tuple({name: variable(f"t{who}.{name}", value) for name, value in initial.items()} for who in threads),
            tuple({name: variable(f"t{who}.{name}", value) for name, value in boxes[who].items()} for who in (0, 1)),
            tuple(tuple(z3.BitVec(f"t{who}.{level}", 16) for level in levels) for who in threads),
            z3.BitVec("contents", self.world.layout.bits),
        )

    # The relation.

    def env(self, who: int, level: int) -> Mapping[Field, z3.BitVecRef]:
        """Return the environment of a thread's expressions, on a level."""
        own, sibling = self.state.boxes[who], self.state.boxes[1 - who]
        values: dict[Field, z3.BitVecRef] = {OWN_BEHIND: own["behind"], SIBLING_BEHIND: sibling["behind"]}
        values[STALE] = self.state.fields[who][STALE.name]
        if level:
            values[USER_HALF] = self.state.fields[who][_half(level)]
        for one in FIELDS:
            if one.scope in {Scope.CPU, Scope.TASK}:
                values[one] = self.state.fields[who][one.name]
            else:
                values[one] = (own if one.scope is Scope.OWN else sibling)[one.name]
        return values

    def levels_of(self, command: Command) -> range:
        """Return the levels on which a command may run; of one that opens a handler, the handler's."""
        if command.at.level:
            return range(1, self.levels + 1)
        return range(1, 2) if command.opens else range(1)

    def possible(self, command: Command, who: int, level: int) -> z3.BoolRef:
        """Return when a command may happen to a thread, on a level."""
        places = self.state.places[who]
        guard = truth(command.guard, self.env(who, level))
        if command.at == ANYWHERE:
            return guard
        runs = level - 1 if command.opens else level
        calm = [self._is(place, NO_HANDLER) for place in places[runs + 1 : runs + 2]]
        if command.at != NO_HANDLER:
            here = self._is(places[runs], command.at)
        elif runs:
            here = z3.Not(self._is(places[runs], NO_HANDLER))
        else:
            untrusted = [place for place in (USER, GUEST) if place in self.relation.places]
            here = z3.Not(z3.Or([self._is(places[0], place) for place in untrusted]))
        return z3.And(here, *calm, guard)

    def _is(self, variable: z3.BitVecRef, place: Place) -> z3.BoolRef:
        return variable == self.invariant.regions.number(place)

    def _waits(self, who: int) -> z3.BoolRef:
        """Return when a thread waits for its sibling."""
        commands = [Command("waits", "", place, place, guard) for place, guard in self.relation.waiting]
        return z3.Or([self.possible(each, who, level) for each in commands for level in self.levels_of(each)])

    def after(self, command: Command, who: int, level: int) -> Symbolic:
        """Return the state after a command of a thread, on a level."""
        state, env = self.state, self.env(who, level)
        fields = [dict(one) for one in state.fields]
        boxes = [dict(one) for one in state.boxes]
        for assign in command.sets:
            value = number(assign.value, env)
            scope, name = assign.field.scope, assign.field.name
            if assign.field == USER_HALF:
                fields[who][_half(level)] = value
            elif scope in {Scope.CPU, Scope.TASK}:
                fields[who][name] = value
            else:
                boxes[who if scope is Scope.OWN else 1 - who][name] = value
        places = [list(one) for one in state.places]
        if command.goes != ANYWHERE:
            places[who][level] = z3.BitVecVal(self.invariant.regions.number(command.goes), 16)
        size = self.world.layout.bits
        contents = state.contents & ~z3.BitVecVal(command.clears, size)
        if self.world.threads > 1:
            contents |= self._adds(state, 1 - who)
        if command.folds:
            contents = self._folded(contents)
        moved = Symbolic(tuple(fields), tuple(boxes), tuple(map(tuple, places)), contents)
        return moved._replace(contents=contents | self._adds(moved, who))

    def _folded(self, contents: z3.BitVecRef) -> z3.BitVecRef:
        other, size = self.world.layout.other, self.world.layout.bits
        stays = contents & ~z3.BitVecVal(other * int(FOLDED), size)
        return stays | ((z3.LShR(contents, 1) | z3.LShR(contents, 2)) & z3.BitVecVal(other, size))

    def _adds(self, state: Symbolic, who: int) -> z3.BitVecRef:
        return self._viewed(state, who, lambda view: z3.BitVecVal(view.adds, self.world.layout.bits))

    def _viewed(self, state: Symbolic, who: int, value: Callable[[View], _Expr]) -> _Expr:
        """Return a value of the model's `view`, asked for each mode and all else that it depends on."""
        fields = {**state.fields[who], **state.boxes[who]}
        asked = {name: (0, 1) if name in self.written else (0,) for name in ("behind", USER_CR3.name, STALE.name)}
        cases: list[tuple[list[z3.BoolRef], _Expr]] = []
        for mode, place in ((Mode.KERNEL, KERNEL), (Mode.USER, USER), (Mode.GUEST, GUEST)):
            if mode is not Mode.KERNEL and place not in self.relation.places:
                continue
            for space, *bits in product(Space, *asked.values()):
                these = dict(zip(asked, bits, strict=True))
                here = [fields[name] == bit for name, bit in {CR3.name: int(space), **these}.items()]
                if mode is not Mode.KERNEL:
                    here.append(self._is(state.places[who][0], place))
                cases.append((here, value(self._view(mode, Space(space), these))))
        (_, found), *others = cases
        for here, this in others:
            found = z3.If(z3.And(here), this, found)
        return found

    def _view(self, mode: Mode, space: Space, bits: Mapping[str, int]) -> View:
        thread, shared = self.world.start()
        cpu = thread.state.cpu._replace(cr3=int(space), user_cr3=bits[USER_CR3.name])
        there = Thread(thread.state._replace(cpu=cpu), mode, stale=bool(bits[STALE.name]))
        return self.world.view(there, shared | BEHIND_BIT * bits["behind"])

    # The obligations.

    def start(self) -> Symbolic:
        """Return the state after boot."""
        thread, shared = self.world.start()
        core, _ = core_of(shared)

        def constants(values: Mapping[str, int]) -> dict[str, z3.BitVecRef]:
            return {name: z3.BitVecVal(value, WIDTH) for name, value in values.items()}

        fields = constants(self._initial())
        resting = [KERNEL, *[NO_HANDLER] * self.levels]
        places = tuple(z3.BitVecVal(self.invariant.regions.number(place), 16) for place in resting)
        threads = self.world.threads
        contents = self.world.view(thread, shared).adds
        return Symbolic(
            (fields,) * threads,
            tuple(constants({**box._asdict(), "behind": 0}) for box in core),
            (places,) * threads,
            z3.BitVecVal(contents, self.world.layout.bits),
        )

    def leaks(self) -> z3.BoolRef:
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
            one, other = map(self._waits, (0, 1))
            yield Obligation("one thread waits", (one,), (Clause("no deadlock", "the other does not", z3.Not(other)),))
        for name, formula in self._interesting():
            yield Obligation(f"the invariant allows {name}", (formula,), None)
        for command in self.relation.commands:
            for level in self.levels_of(command):
                given = (self.possible(command, 0, level),)
                deep = f", {level} deep" if level > 1 else ""
                yield Obligation(f"{command} at {_text(command.at)}{deep}", given, tuple(self._wanted(command, level)))

    def _wanted(self, command: Command, level: int) -> Iterator[Clause]:
        """Yield the clauses after a command that are not the same as before it, and what it must not break."""
        after = self.after(command, 0, level)
        changed = [(old, new) for old, new in zip(_terms(self.state), _terms(after), strict=True) if not old.eq(new)]
        for clause in self.clauses:
            formula = z3.substitute(clause.formula, *changed)
            if not formula.eq(clause.formula):
                yield Clause(clause.name, clause.says, formula)
        if command.ends_touch:
            again = truth(FAULTS_AGAIN, {CR3: after.fields[0]["cr3"]})
            yield Clause("retry", "an access that faulted does not fault again", z3.Not(again))
        for requirement in command.requires:
            yield Clause("rule", str(requirement.guard), truth(requirement.guard, self.env(0, level)))

    def _interesting(self) -> Iterator[tuple[str, z3.BoolRef]]:
        """Yield states that must be possible, else the invariant says nothing."""
        base, *handlers = self.state.places[0]
        secret = self.world.layout.spread("data", Party.KERNEL | Party.OTHER)
        for mode in self.invariant.regions.untrusted:
            yield f"untrusted code, {mode.program}", z3.And(self._is(handlers[0], NO_HANDLER), self._is(base, mode))
        secrets = self.state.contents & z3.BitVecVal(secret, self.world.layout.bits) == secret
        yield "secrets in all structures", z3.And(self._is(base, KERNEL), secrets)
        if self.world.nesting > 1:
            yield "as many handlers as there may be", z3.And([self._is(each, HANDLER) for each in handlers])

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

    def _question(self, obligation: Obligation) -> z3.BoolRef:
        wanted = obligation.wanted
        hoped = [] if wanted is None else [z3.Not(z3.And([clause.formula for clause in wanted]))]
        return z3.And([*obligation.given, *hoped])

    @cached_property
    def _assuming(self) -> z3.Solver:
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

    def _answer(self, obligation: Obligation, solver: z3.Solver) -> Failure | None:
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

    def _example(self, model: z3.ModelRef) -> str:
        """Return a state of the model's as text."""

        def value(variable: z3.BitVecRef) -> int:
            return int(model.eval(variable, model_completion=True).as_long())

        words = []
        for who, places in enumerate(self.state.places):
            for depth, place in enumerate(places):
                level = self.invariant.regions.levels[min(depth, 1)]
                at = level[value(place) % len(level)]
                words.append(f"{_text(at)} ({self.invariant.regions.path(at)})" if at not in RESTING else _text(at))
            named = {**self.state.fields[who], **self.state.boxes[who]}
            words += [f"{name} {value(variable)}" for name, variable in named.items() if z3.is_const(variable)]
        return ", ".join([*words, f"contents {value(self.state.contents):#x}"])


def _check(world: World) -> None:
    """Refuse what is not covered, each for a reason."""
    if not world.config.asi:
        raise VerifyError("induction is for ASI: its invariant is about what ASI records; explore the others")
    if AsiClass.IDLE in world.config.classes:
        raise VerifyError("induction has no idle domains: its invariant has each switch of mm exit; explore them")


def _half(level: int) -> str:
    """Return the name of a handler's own USER_HALF."""
    return f"{USER_HALF.name}{level}"


def _terms(state: Symbolic) -> list[z3.BitVecRef]:
    fields = [value for thread in state.fields for value in thread.values()]
    boxes = [value for box in state.boxes for value in box.values()]
    return [*fields, *boxes, *(place for thread in state.places for place in thread), state.contents]


def _assertions(script: str) -> str:
    """Return the declarations and assertions of a script of z3's, without what it says about itself and asks."""
    return "".join(f"{line}\n" for line in script.splitlines() if not line.startswith((";", "(set-info", "(check-sat")))


def _text(place: Place) -> str:
    return place.program if place in {*RESTING, ANYWHERE} else f"{place.program}+{place.pc}"
