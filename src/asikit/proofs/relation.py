"""The model as guarded commands: the same moves as `asikit.proofs.model`, for all states at once, for a solver.

A command says where a thread must be, the guard over the protocol's fields, what it sets and where the thread is then.
Guards and assignments are the protocol's own expressions (`asikit.protocol.expressions`), taken from its programs.
A thread's place has two levels: what it does, and what the handler does that interrupted it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from asikit.proofs.errors import VerifyError
from asikit.proofs.model import RETURNS, World
from asikit.protocol import AsiClass, Happening, Space
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF, STOP_WAITING
from asikit.protocol.expressions import ALWAYS, And, Const, Field, Guard, Scope
from asikit.protocol.operations import Assign, ProgramOp
from asikit.protocol.vocabulary import CR3, DEPTH, FIELDS, NONE, STUN_IPI, TARGET

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.protocol import TaskState
    from asikit.protocol.operations import Requirement

H = Happening
OWN_BEHIND = Field(Scope.OWN, "behind", len(FIELDS))
SIBLING_BEHIND = Field(Scope.SIBLING, "behind", len(FIELDS) + 1)
"""Who has yet to follow a switch of mm: fields of the model's own, beside the protocol's."""


class Place(NamedTuple):
    """Where a thread is on one level: before a micro-operation of a program, or in one of the resting places."""

    level: int
    program: str
    pc: int = 0


KERNEL, USER, GUEST = (Place(0, name) for name in ("kernel", "user", "guest"))
NO_HANDLER, HANDLER = (Place(1, name) for name in ("no handler", "handler"))
RESTING = (KERNEL, USER, GUEST, NO_HANDLER, HANDLER)


@dataclass(frozen=True, slots=True)
class Command:
    """Something that may happen to a thread at a place.

    Attributes:
        name: what it is, for people.
        at: where the thread must be, on the level that runs.
        goes: where it is then; on level 1 when it starts or goes on in a handler.
        guard: when it may happen.
        sets: what it changes.
        requires: rules of the API that must hold then.
        clears: the mask of what it empties.
        folds: another mm is loaded.
        ends_touch: an access that faulted is tried again: it must not fault.
    """

    name: str
    at: Place
    goes: Place
    guard: Guard = ALWAYS
    sets: tuple[Assign, ...] = ()
    requires: tuple[Requirement, ...] = ()
    clears: int = 0
    folds: bool = False
    ends_touch: bool = False


@dataclass(frozen=True)
class Relation:
    """All commands of a model with handlers one deep."""

    world: World

    def __post_init__(self) -> None:
        """Refuse what is not covered."""
        config = self.world.config
        if not config.asi or config.pti or config.noflush or self.world.nesting > 1 or AsiClass.IDLE in config.classes:
            raise VerifyError("induction is for ASI with handlers one deep, without PTI, NOFLUSH and idle domains")
        if not self.world.shootdown:
            raise VerifyError("induction takes the shootdown for granted (K2): explore what happens without it")

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """All places that are ever reached, by level, each level's in one block."""
        seen = [KERNEL, NO_HANDLER]
        for place in seen:  # grows
            for command in self.commands_at(place):
                if command.goes not in seen:
                    seen.append(command.goes)
        return tuple(sorted(seen, key=lambda place: (place.level, place not in RESTING, place.program, place.pc)))

    @cached_property
    def commands(self) -> tuple[Command, ...]:
        """All commands."""
        return tuple(command for place in self.places for command in self.commands_at(place))

    @cached_property
    def waiting(self) -> tuple[Command, ...]:
        """Where a thread may wait for its sibling, and when it does: commands that go nowhere."""
        ops = ((place, self.op(place)) for place in self.places)
        return tuple(
            Command(f"waits at {op.path}", place, place, op.when & ~op.waits)
            for place, op in ops
            if op is not None and op.waits is not ALWAYS
        )

    def op(self, place: Place) -> ProgramOp | None:
        """Return the micro-operation at a place, None at a resting place."""
        return None if place in RESTING else self.world.protocol.programs[place.program].ops[place.pc]

    def commands_at(self, place: Place) -> Iterator[Command]:
        """Yield what may happen at a place; interrupts of level 0 are commands at NO_HANDLER."""
        world = self.world
        if place == KERNEL:
            yield from self._from_ordinary_code()
        elif place == USER:
            for entry in world.entries_from_user:
                yield from self._begins(USER, entry)
                if entry is not H.SYSCALL_ENTRY:
                    for command in self._begins(USER, entry, STUN_IPI.differs(0)):
                        yield replace(command, sets=(*command.sets, Assign(STUN_IPI, Const(0))))
        elif place == GUEST:
            yield from self._begins(GUEST, H.VM_EXIT)
        elif place == NO_HANDLER:
            for happening in world.nested_happenings if world.nesting else ():
                yield from self._begins(NO_HANDLER, happening)
        elif place == HANDLER:
            yield from self._begins(HANDLER, H.NESTED_RETURN)
            yield from self._begins(HANDLER, H.UNMAPPED_TOUCH)
        else:
            yield from self._steps(place)

    def _from_ordinary_code(self) -> Iterator[Command]:
        world = self.world
        scheduled = OWN_BEHIND.equals(0) & SIBLING_BEHIND.equals(0) if world.core_scheduling else ALWAYS
        yield from self._begins(KERNEL, H.RETURN_USER, scheduled)
        if AsiClass.KVM in world.config.classes:
            yield from self._begins(KERNEL, H.VM_ENTRY, And((scheduled, TARGET.equals(NONE))))
        for name in world.work:
            yield from self._begins(KERNEL, name)
        for fault in world.faults if world.nesting else ():
            for command in self._begins(NO_HANDLER, fault):
                yield replace(command, at=KERNEL)

    def _begins(self, place: Place, name: str, guard: Guard = ALWAYS) -> Iterator[Command]:
        command = Command(f"begins {name}", place, Place(place.level, str(name)), guard)
        if self.world.protocol.programs[name].ops:
            yield command
        else:
            yield from self._ends(command)

    def _steps(self, place: Place) -> Iterator[Command]:
        op = self.op(place)
        assert op is not None  # noqa: S101  (a resting place has none)
        program = self.world.protocol.programs[place.program]
        clears = 0 if op.asks is None else self.world.layout.cleared_by(op.asks.kind)
        runs = Command(
            op.path, place, place._replace(pc=op.goto), op.when & op.waits, op.sets, op.requires, clears=clears
        )
        yield from self._ends(runs) if op.goto == len(program.ops) else (runs,)
        if op.when is not ALWAYS:
            skips = Command(f"skips {op.path}", place, place._replace(pc=place.pc + 1), ~op.when)
            yield from self._ends(skips) if place.pc + 1 == len(program.ops) else (skips,)
        if op.waits is not ALWAYS and op.path.endswith(".resume"):
            stops = Command("stops waiting", place, Place(0, STOP_WAITING), op.when & ~op.waits)
            yield from (stops,) if self.world.protocol.programs[STOP_WAITING].ops else self._ends(stops)

    def _ends(self, command: Command) -> Iterator[Command]:
        """Yield what the end of a program amounts to."""
        level, name = command.goes.level, command.goes.program
        touch = name == H.UNMAPPED_TOUCH
        if level:
            left = name in {H.NESTED_RETURN, NESTED_RETURN_TO_USER_HALF}
            yield replace(command, goes=NO_HANDLER if left else HANDLER, ends_touch=touch)
        elif name in RETURNS:
            yield replace(command, goes=USER if name == H.RETURN_USER else GUEST)
        elif name in {H.CONTEXT_SWITCH, H.MM_SWITCH}:
            for task in self.world.tasks:
                loaded = replace(command, goes=KERNEL, sets=(*command.sets, *_loads(task)))
                yield from self._other_mm(loaded) if name == H.MM_SWITCH else (loaded,)
        else:
            yield replace(command, goes=KERNEL, ends_touch=touch)

    def _other_mm(self, command: Command) -> Iterator[Command]:
        behind = ((SIBLING_BEHIND, Const(1)),) if self.world.threads > 1 else ()
        sets = (*command.sets, *(Assign(field, value) for field, value in behind))
        yield replace(command, guard=command.guard & OWN_BEHIND.equals(0), sets=sets, folds=True)
        if self.world.threads > 1:
            caught_up = (*command.sets, Assign(OWN_BEHIND, Const(0)))
            yield replace(command, guard=command.guard & OWN_BEHIND.differs(0), sets=caught_up)


def _loads(task: TaskState) -> tuple[Assign, ...]:
    return (Assign(TARGET, Const(task.target)), Assign(DEPTH, Const(task.intr_nest_depth)))


FAULTS_AGAIN: Guard = CR3.differs(int(Space.UNRESTRICTED))
"""What must not hold when an access that faulted is tried again."""
