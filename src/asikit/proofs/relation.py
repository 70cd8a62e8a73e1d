"""The model as guarded commands, as data: what may happen to a hardware thread, where, when, and what comes of it.

A command says where a thread must be, the guard over the protocol's fields, what it sets and where the thread is then.
Guards and assignments are the protocol's own expressions (`asikit.protocol.expressions`), taken from its programs.
`asikit.proofs.interpreter` runs the commands on numbers for the exploration, `asikit.proofs.induction` reads them as
formulas: there is one definition of what may happen.

A thread's places lie in levels: on level 0 what it does, above it a level for each handler that is open. Handlers of
all depths have the same commands, so a place says only whether it is one of a handler (level 1).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from asikit.protocol import AsiClass, Happening, Space
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF, STOP_WAITING
from asikit.protocol.expressions import ALWAYS, And, Const, Field, Guard, Not, Scope
from asikit.protocol.operations import Assign, ProgramOp
from asikit.protocol.vocabulary import CR3, DEPTH, FIELDS, NONE, STUN_IPI, TARGET, USER_CR3

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs.model import World
    from asikit.protocol import TaskState
    from asikit.protocol.operations import Request, Requirement

H = Happening
RETURNS = {H.RETURN_USER, H.VM_ENTRY}
NESTED_RETURNS = {H.NESTED_RETURN, NESTED_RETURN_TO_USER_HALF}
"""Programs by which a handler ends; its level is gone when they are through."""
NEVER: Guard = Not(ALWAYS)
OWN_BEHIND = Field(Scope.OWN, "behind", len(FIELDS))
SIBLING_BEHIND = Field(Scope.SIBLING, "behind", len(FIELDS) + 1)
"""Who has yet to follow a switch of mm: fields of the model's own, beside the protocol's."""
STALE = Field(Scope.CPU, "stale", len(FIELDS) + 2)
"""The thread's TLB maps, in the restricted address space, a page that has become sensitive since."""
USER_HALF = Field(Scope.CPU, "user_half", len(FIELDS) + 3)
"""The innermost handler has interrupted code on the user half of the page tables (PTI): a field of each handler."""
FAULTS_AGAIN: Guard = CR3.differs(int(Space.UNRESTRICTED))
"""What must not hold when an access that faulted is tried again."""


class Place(NamedTuple):
    """Where a thread is on one level: before a micro-operation of a program, or in one of the resting places."""

    level: int
    program: str
    pc: int = 0


KERNEL, USER, GUEST = (Place(0, name) for name in ("kernel", "user", "guest"))
NO_HANDLER, HANDLER = (Place(1, name) for name in ("no handler", "handler"))
RESTING = (KERNEL, USER, GUEST, NO_HANDLER, HANDLER)
ANYWHERE = Place(0, "anywhere")
"""Whatever a thread is doing, untrusted code too: commands there leave all places as they are."""


@dataclass(frozen=True, slots=True)
class Command:
    """Something that may happen to a thread at a place.

    :ivar verb: As `Move.verb`.
    :ivar name: As `Move.name`: the transition, or the path of the micro-operation.
    :ivar at: Where the thread must be, on the innermost level that is open; NO_HANDLER is anywhere in the kernel.
    :ivar goes: Where it is then; from NO_HANDLER, and from level 0 to level 1, on a new level: a handler's.
    :ivar guard: When it may happen.
    :ivar sets: What it changes, all computed from the state before; of two assignments to a field the later counts.
    :ivar op: The micro-operation that it runs; its own assignments are the first of `sets`.
    :ivar requires: Rules of the API that must hold then.
    :ivar asks: The hardware effect that it asks for.
    :ivar clears: The mask of what that empties.
    :ivar folds: Another mm is loaded.
    :ivar loads: The task that a switch, ending here, goes to.
    :ivar owed: When it happens sooner or later, if nothing else does.
    :ivar ends_touch: An access that faulted is tried again: it must not fault.
    """

    verb: str
    name: str
    at: Place
    goes: Place
    guard: Guard = ALWAYS
    sets: tuple[Assign, ...] = ()
    op: ProgramOp | None = None
    requires: tuple[Requirement, ...] = ()
    asks: Request | None = None
    clears: int = 0
    folds: bool = False
    loads: TaskState | None = None
    owed: Guard = NEVER
    ends_touch: bool = False

    @property
    def opens(self) -> bool:
        """Whether it opens a handler, on a level of its own."""
        return self.at == NO_HANDLER or self.goes.level > self.at.level

    def __str__(self) -> str:
        return self.name if self.verb == "runs" else f"{self.verb} {self.name}"


@dataclass(frozen=True)
class Relation:
    """All commands of a model."""

    world: World

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
        placed = (command for place in self.places for command in self.commands_at(place))
        return (*placed, *self.commands_at(ANYWHERE))

    @cached_property
    def waiting(self) -> tuple[tuple[Place, Guard], ...]:
        """Where a thread may wait for its sibling, and when it does."""
        return tuple((place, guard) for place in self.places if (guard := self.waits_at(place)) is not None)

    def op(self, place: Place) -> ProgramOp | None:
        """Return the micro-operation at a place, None at a resting place."""
        return None if place in {*RESTING, ANYWHERE} else self.world.protocol.programs[place.program].ops[place.pc]

    def waits_at(self, place: Place) -> Guard | None:
        """Return when a thread at a place waits for its sibling, None if it never does."""
        op = self.op(place)
        if op is None or op.waits is ALWAYS:
            return None
        return And((op.when, *(requirement.guard for requirement in op.requires), ~op.waits))

    def commands_at(self, place: Place) -> Iterator[Command]:
        """Yield what may happen at a place; at NO_HANDLER are the interrupts, and ANYWHERE is not each place."""
        world = self.world
        if place == KERNEL:
            yield from self._from_ordinary_code()
        elif place == USER:
            yield from self._from_user()
        elif place == GUEST:  # the interrupt stays pending, for the host to take
            yield from self._begins(GUEST, H.VM_EXIT, owed=STUN_IPI.differs(0))
        elif place == NO_HANDLER:
            for happening in world.nested_happenings if world.nesting else ():
                yield from self._interrupted(NO_HANDLER, happening)
        elif place == ANYWHERE:
            yield from () if world.shootdown else self._turns_sensitive()
        elif place == HANDLER:
            yield from self._leaves()
            yield from self._begins(HANDLER, H.UNMAPPED_TOUCH)
        else:
            yield from self._steps(place)

    def interrupts_at(self, place: Place) -> Iterator[Command]:
        """Yield the interrupts that may come at a place in the kernel, and say when they do sooner or later.

        Kernel code runs with interrupts on but in transitions, and in them while they wait.
        """
        waits = self.waits_at(place)
        pending = STUN_IPI.differs(0)
        owed = pending if place == KERNEL else NEVER if waits is None else pending & waits
        for command in self.commands_at(NO_HANDLER):
            yield replace(command, owed=owed)

    @staticmethod
    def _turns_sensitive() -> Iterator[Command]:
        """Yield that memory turns sensitive whose translation the TLB has, where nobody sees to the TLBs."""
        guard = And((STALE.equals(0), CR3.differs(int(Space.UNRESTRICTED))))
        what = "a page whose translation this thread's TLB has"
        yield Command("turns sensitive", what, ANYWHERE, ANYWHERE, guard, (Assign(STALE, Const(1)),))

    def _from_user(self) -> Iterator[Command]:
        for entry in self.world.entries_from_user:
            yield from self._begins(USER, entry)
            if entry is not H.SYSCALL_ENTRY:
                for command in self._begins(USER, entry, STUN_IPI.differs(0), owed=ALWAYS):
                    yield replace(command, sets=(*command.sets, Assign(STUN_IPI, Const(0))))

    def _from_ordinary_code(self) -> Iterator[Command]:
        world = self.world
        scheduled = OWN_BEHIND.equals(0) & SIBLING_BEHIND.equals(0) if world.core_scheduling else ALWAYS
        yield from self._begins(KERNEL, H.RETURN_USER, scheduled, owed=ALWAYS)
        if AsiClass.KVM in world.config.classes or not world.config.asi:
            yield from self._begins(KERNEL, H.VM_ENTRY, And((scheduled, TARGET.equals(NONE))), owed=ALWAYS)
        for name in world.work:
            yield from self._begins(KERNEL, name, owed=OWN_BEHIND.differs(0) if name == H.MM_SWITCH else NEVER)
        for fault in world.faults if world.nesting else ():
            yield from self._interrupted(KERNEL, fault)

    def _begins(self, place: Place, name: str, guard: Guard = ALWAYS, *, owed: Guard = NEVER) -> Iterator[Command]:
        command = Command("begins", name, place, Place(place.level, str(name)), guard, owed=owed)
        yield from (command,) if self.world.protocol.programs[name].ops else self._ends(command)

    def _interrupted(self, place: Place, happening: Happening) -> Iterator[Command]:
        command = Command("interrupted by", happening, place, Place(1, str(happening)))
        if self.world.config.pti:
            command = replace(command, sets=(Assign(USER_HALF, USER_CR3),))
        yield command if self.world.protocol.programs[happening].ops else replace(command, goes=HANDLER)

    def _leaves(self) -> Iterator[Command]:
        """Yield the ways out of a handler: back to where the page tables' kernel half was loaded, or their user half.

        Those are of two minds about USER_HALF only with PTI.
        """
        ways: list[tuple[str, Guard, tuple[Assign, ...]]] = [(H.NESTED_RETURN, ALWAYS, ())]
        if self.world.config.pti:
            over = (Assign(USER_HALF, Const(0)),)
            ways = [
                (H.NESTED_RETURN, USER_HALF.equals(0), ()),
                (NESTED_RETURN_TO_USER_HALF, USER_HALF.differs(0), over),
            ]
        for name, guard, sets in ways:
            for command in self._begins(HANDLER, name, guard, owed=ALWAYS):
                yield replace(command, verb="leaves", name="its handler", sets=sets)

    def _steps(self, place: Place) -> Iterator[Command]:
        op = self.op(place)
        assert op is not None  # a resting place has none
        end = len(self.world.protocol.programs[place.program].ops)
        runs = self._runs(place, op)
        yield from self._ends(runs) if op.goto == end else (runs,)
        if op.when is not ALWAYS:
            skips = Command("skips", op.path, place, place._replace(pc=place.pc + 1), ~op.when, owed=ALWAYS)
            yield from self._ends(skips) if place.pc + 1 == end else (skips,)
        if op.waits is not ALWAYS and self.world.gives_up(op):
            guard = op.when & ~op.waits
            stops = Command(
                "stops waiting", STOP_WAITING, place, Place(0, STOP_WAITING), guard, owed=OWN_BEHIND.differs(0)
            )
            yield from (stops,) if self.world.protocol.programs[STOP_WAITING].ops else self._ends(stops)

    def _runs(self, place: Place, op: ProgramOp) -> Command:
        clears = 0 if op.asks is None else self.world.layout.cleared_by(op.asks.kind)
        waits = op.waits
        if op.requires and waits is not ALWAYS:  # rules are checked before the wait
            waits = waits | ~And(tuple(requirement.guard for requirement in op.requires))
        return Command(
            "runs",
            op.path,
            place,
            place._replace(pc=op.goto),
            op.when if waits is ALWAYS else op.when & waits,
            (*op.sets, *self._drops(op)),
            op,
            op.requires,
            op.asks,
            clears,
            owed=ALWAYS,
        )

    def _drops(self, op: ProgramOp) -> Iterator[Assign]:
        # Without NOFLUSH a CR3 write drops the PCID's entries (SDM 3A 4.10.4.1).
        if not self.world.shootdown and op.asks is not None and op.asks.space is not None and not op.asks.noflush:
            yield Assign(STALE, Const(0))

    def _ends(self, command: Command) -> Iterator[Command]:
        """Yield what the end of a program amounts to."""
        level, name = command.goes.level, command.goes.program
        touch = name == H.UNMAPPED_TOUCH
        if level:
            yield replace(command, goes=NO_HANDLER if name in NESTED_RETURNS else HANDLER, ends_touch=touch)
        elif name in RETURNS:
            yield replace(command, goes=USER if name == H.RETURN_USER else GUEST)
        elif name in {H.CONTEXT_SWITCH, H.MM_SWITCH}:
            for task in self.world.tasks:
                loaded = replace(command, goes=KERNEL, sets=(*command.sets, *_loads(task)), loads=task)
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
