"""Transitions as data: named sequences of micro-operations.

A micro-operation is what no interrupt can divide. Transitions call one another; `assemble` writes the calls out, so
that a place in a running transition is one number, the whole of what code would keep in local variables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asikit.protocol.classes import Space
from asikit.protocol.effects import Effect, EffectKind, ExitReason
from asikit.protocol.errors import EditError, MisuseError, UnknownNameError
from asikit.protocol.expressions import ALWAYS, Environment, Field, Guard, Not, Number, Term, Truth, fields_of

if TYPE_CHECKING:
    from asikit.protocol.roles import Role

END = "end"
"""As `MicroOp.jump`: return from the transition."""


@dataclass(frozen=True, slots=True)
class Assign:
    """`field := value`. The assignments of one micro-operation all read the state before it."""

    field: Field
    value: Term

    def __str__(self) -> str:
        return f"{self.field} := {self.value}"


@dataclass(frozen=True, slots=True)
class Request:
    """The effect that a micro-operation asks for; `space` is computed from the state before it."""

    kind: EffectKind
    space: Term | None = None
    noflush: bool = False
    user_half: bool = False

    def __str__(self) -> str:
        words = [str(self.space)] if self.space is not None else []
        words += ["user half"] if self.user_half else []
        words += ["noflush"] if self.noflush else []
        return f"{str(self.kind).upper()}({', '.join(words)})" if words else str(self.kind).upper()


@dataclass(frozen=True, slots=True)
class Requirement:
    """What must hold, and the error that says it does not."""

    guard: Guard
    error: type[MisuseError]

    def broken(self, path: str) -> MisuseError:
        """Return the error of a micro-operation whose caller broke the rule."""
        return self.error(f"{path} needs {self.guard}, which is false; {self.error.rule}")


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroOp:
    """One indivisible step of a transition.

    :ivar name: Unique in its transition.
    :ivar why: One line for readers.
    :ivar role: What it is for, if code asks for it.
    :ivar when: Guard; if false the step does nothing.
    :ivar requires: Rules of the API; broken ones raise.
    :ivar waits: Guard; until it is true the thread stays here, with interrupts on.
    :ivar sets: Assignments to the state.
    :ivar asks: The hardware effect.
    :ivar jump: The name of a later step of the same transition (or END) to go on with, when `when` is true.
    :ivar call: The name of a transition to run here; then only `when` and `reason` count besides.
    :ivar reason: Of a call of `asi_exit`: the reason to account it to.
    :ivar leaves: The step that leaves the restricted address space: exits are counted here.
    """

    name: str
    why: str = ""
    role: Role | None = None
    when: Guard = ALWAYS
    requires: tuple[Requirement, ...] = ()
    waits: Guard = ALWAYS
    sets: tuple[Assign, ...] = ()
    asks: Request | None = None
    jump: str = ""
    call: str = ""
    reason: ExitReason | None = None
    leaves: bool = False


@dataclass(frozen=True, slots=True)
class Transition:
    """A named sequence of micro-operations."""

    name: str
    why: str
    ops: tuple[MicroOp, ...]

    def index(self, op_name: str) -> int:
        """Return the place of a micro-operation.

        :raises UnknownNameError: There is none of that name.
        """
        for index, op in enumerate(self.ops):
            if op.name == op_name:
                return index
        raise UnknownNameError(f"micro-operation of {self.name}", op_name, [op.name for op in self.ops])


Transitions = Mapping[str, Transition]


@dataclass(frozen=True, slots=True)
class ProgramOp:
    """A micro-operation at its place in a program, all calls written out.

    If `when` is false the next place is `pc + 1` and nothing happens. Else `requires` is checked, the thread stays
    until `waits` is true, `sets` and `asks` are done, and the next place is `goto`.
    """

    path: str
    when: Guard
    goto: int
    role: Role | None = None
    requires: tuple[Requirement, ...] = ()
    waits: Guard = ALWAYS
    sets: tuple[Assign, ...] = ()
    asks: Request | None = None
    exits: ExitReason | None = None

    @property
    def transition(self) -> str:
        """The name of the transition that has it."""
        return self.path.partition(".")[0]

    @property
    def name(self) -> str:
        """Its name in that transition."""
        return self.path.partition(".")[2]

    @property
    def reads(self) -> frozenset[Field]:
        """The fields that its guards, conditions and values depend on."""
        expressions: list[Guard | Term] = [self.when, self.waits]
        expressions += [requirement.guard for requirement in self.requires]
        expressions += [assign.value for assign in self.sets]
        expressions += [self.asks.space] if self.asks is not None and self.asks.space is not None else []
        return frozenset().union(*(fields_of(expression) for expression in expressions))

    @property
    def writes(self) -> frozenset[Field]:
        """The fields that it changes."""
        return frozenset(assign.field for assign in self.sets)


@dataclass(frozen=True, slots=True)
class Program:
    """A transition with its calls written out; place `len(ops)` is its end."""

    name: str
    ops: tuple[ProgramOp, ...]


def assemble(name: str, transitions: Transitions) -> Program:
    """Write out all calls of a transition.

    :raises UnknownNameError: There is no transition of a name.
    :raises EditError: It makes no sense.
    """
    return Program(name, tuple(_assemble(name, transitions, start=0, reason=None, callers=())))


def _check(name: str, transitions: Transitions, callers: tuple[str, ...]) -> None:
    if name not in transitions:
        raise UnknownNameError("transition", name, transitions)
    if name in callers:
        raise EditError(f"{name} calls itself by way of {' > '.join(callers)}")
    ops = transitions[name].ops
    if len({op.name for op in ops}) < len(ops):
        raise EditError(f"two micro-operations of {name} have the same name")
    for op in ops:
        bare = MicroOp(name=op.name, why=op.why, role=op.role, when=op.when, call=op.call, reason=op.reason)
        if op.call and op != bare:
            raise EditError(f"{name}.{op.name} calls {op.call}, so it can do nothing else; make that a step of its own")


def _assemble(
    name: str, transitions: Transitions, *, start: int, reason: ExitReason | None, callers: tuple[str, ...]
) -> list[ProgramOp]:
    _check(name, transitions, callers)
    ops: list[ProgramOp] = []
    places: dict[str, int] = {}
    jumps: list[tuple[int, str]] = []
    for op in transitions[name].ops:
        here = start + len(ops)
        places[op.name] = here
        path = f"{name}.{op.name}"
        if op.call:
            inner_start = here + (op.when is not ALWAYS)
            inner = _assemble(
                op.call, transitions, start=inner_start, reason=op.reason or reason, callers=(*callers, name)
            )
            if op.when is not ALWAYS and inner:
                ops.append(ProgramOp(path, Not(op.when), inner_start + len(inner), op.role))
            ops += inner
            continue
        if op.jump:
            jumps.append((len(ops), op.jump))
        exits = (reason or ExitReason.MISC) if op.leaves else None
        ops.append(ProgramOp(path, op.when, here + 1, op.role, op.requires, op.waits, op.sets, op.asks, exits))
    places[END] = start + len(ops)
    for index, label in jumps:
        if places.get(label, -1) <= start + index:
            raise EditError(f"{ops[index].path} jumps to {label!r}, which is not a later step of {name}")
        ops[index] = replace(ops[index], goto=places[label])
    return ops


@dataclass(frozen=True, slots=True)
class CompiledOp:
    """A `ProgramOp` with its expressions turned into functions of an `Environment`."""

    op: ProgramOp
    when: Truth
    waits: Truth
    requires: tuple[tuple[Truth, Requirement], ...]
    sets: tuple[tuple[int, Number], ...]
    space: Number | None

    def effect(self, env: Environment) -> Effect | None:
        """Return the effect asked for in the given state."""
        asks = self.op.asks
        if asks is None:
            return None
        space = None if self.space is None else Space(self.space(env))
        return Effect(asks.kind, space, asks.noflush, asks.user_half)


def compile_op(op: ProgramOp) -> CompiledOp:
    """Turn the expressions of a micro-operation into functions."""
    return CompiledOp(
        op,
        op.when.compiled(),
        op.waits.compiled(),
        tuple((requirement.guard.compiled(), requirement) for requirement in op.requires),
        tuple((assign.field.index, assign.value.compiled()) for assign in op.sets),
        op.asks.space.compiled() if op.asks is not None and op.asks.space is not None else None,
    )
