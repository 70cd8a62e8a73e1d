"""The guarded commands on numbers: what may happen next to one hardware thread, for the exploration.

Each place's commands are turned into functions once; what is asked for by the thousand is a lookup and a few calls.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from asikit.proofs.relation import (
    ANYWHERE,
    FAULTS_AGAIN,
    GUEST,
    HANDLER,
    KERNEL,
    NESTED_RETURNS,
    NEVER,
    NO_HANDLER,
    USER,
    Place,
    Relation,
)
from asikit.proofs.threads import SHARED_WORDS, Mode, Move, Thread, shared_of_words
from asikit.protocol import HANDLER as HANDLER_FRAME
from asikit.protocol import CpuState, Effect, Frame, Space, TaskState, ThreadState
from asikit.protocol.expressions import ALWAYS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs.relation import Command
    from asikit.protocol.expressions import Environment, Number, Truth
    from asikit.protocol.operations import Requirement

_TASK = len(CpuState._fields)
_SHARED = _TASK + len(TaskState._fields)
_STALE = _SHARED + len(SHARED_WORDS[0])
_HALF = _STALE + 1
_MODES = {KERNEL: Mode.KERNEL, USER: Mode.USER, GUEST: Mode.GUEST}
_RESTING = {mode: place for place, mode in _MODES.items()}
_FAULTS_AGAIN = FAULTS_AGAIN.compiled()
_FAULTED_AGAIN = "the access that faulted would fault again"


class _Compiled(NamedTuple):
    """A command as functions.

    :ivar guard: None if it always may happen.
    :ivar sets: Index and function of each assignment; the first `own` are its micro-operation's.
    :ivar frames: What is on its level after it, by the handler's USER_HALF.
    :ivar owed: A function, or what it always says.
    """

    command: Command
    guard: Truth | None
    requires: tuple[tuple[Truth, Requirement], ...]
    sets: tuple[tuple[int, Number], ...]
    own: int
    space: Number | None
    mode: Mode
    frames: tuple[tuple[Frame, ...], tuple[Frame, ...]]
    owed: Truth | bool


class _Here(NamedTuple):
    """What may happen at a place.

    :ivar own: At this place.
    :ivar interrupts: If another handler may be open.
    :ivar anywhere: Whatever runs.
    :ivar waits: When a thread waits for its sibling.
    """

    own: tuple[_Compiled, ...]
    interrupts: tuple[_Compiled, ...]
    anywhere: tuple[_Compiled, ...]
    waits: Truth | None


class Interpreter:
    """The commands of a relation, run on threads."""

    def __init__(self, relation: Relation) -> None:
        self._relation = relation
        self._nesting = relation.world.nesting
        self._places: dict[Place, _Here] = {}

    def moves(self, thread: Thread, shared: int) -> Iterator[Move]:
        """Yield what may happen next to a thread, given the shared bits as it sees them."""
        if thread.broken:
            return
        place, below, half = _where(thread)
        here = self._places.get(place) or self._compiled(place)
        state = thread.state
        env = (*state.cpu, *state.task, *SHARED_WORDS[shared], int(thread.stale), half)
        nests = self._may_nest(thread)
        for each in here.own:
            if (each.guard is None or each.guard(env)) and (nests or not each.command.opens):
                yield _moved(each, thread, shared, env, state.frames if each.command.opens else below)
        if nests:
            for each in here.interrupts:
                yield _moved(each, thread, shared, env, state.frames)
        for each in here.anywhere:
            if each.guard is None or each.guard(env):
                yield _moved(each, thread, shared, env, below)

    def spins(self, thread: Thread, shared: int) -> bool:
        """Whether a thread waits for another one."""
        if thread.broken:
            return False
        place, _, half = _where(thread)
        waits = (self._places.get(place) or self._compiled(place)).waits
        if waits is None:
            return False
        return waits((*thread.state.cpu, *thread.state.task, *SHARED_WORDS[shared], int(thread.stale), half))

    def _may_nest(self, thread: Thread) -> bool:
        """Whether one more handler may be open: it counts until its return is through."""
        frames = thread.state.frames
        return sum(name == HANDLER_FRAME or name in NESTED_RETURNS for name, _ in frames) < self._nesting

    def _compiled(self, place: Place) -> _Here:
        relation = self._relation
        waits = relation.waits_at(place)
        here = _Here(
            tuple(map(_compiled, relation.commands_at(place))),
            tuple(map(_compiled, relation.interrupts_at(place))) if place not in {USER, GUEST} else (),
            tuple(_compiled(replace(each, at=place, goes=place)) for each in relation.commands_at(ANYWHERE)),
            None if waits is None else waits.compiled(),
        )
        self._places[place] = here
        return here


def _where(thread: Thread) -> tuple[Place, tuple[Frame, ...], int]:
    """Return a thread's innermost place, the frames of the levels below it, and the handler's USER_HALF."""
    frames = thread.state.frames
    if not frames:
        return _RESTING[thread.mode], (), 0
    name, pc = frames[-1]
    if name == HANDLER_FRAME:
        return HANDLER, frames[:-1], pc
    if name in NESTED_RETURNS:
        return Place(1, name, pc), frames[:-1], 0
    if len(frames) > 1:
        return Place(1, name, pc), frames[:-2], frames[-2].pc
    return Place(0, name, pc), (), 0


def _frames(place: Place, half: int) -> tuple[Frame, ...]:
    """Return the frames of one level."""
    if place in _MODES or place == NO_HANDLER:
        return ()
    body = Frame(HANDLER_FRAME, half)
    if place == HANDLER:
        return (body,)
    frame = Frame(place.program, place.pc)
    return (frame,) if not place.level or place.program in NESTED_RETURNS else (body, frame)


def _compiled(command: Command) -> _Compiled:
    space = None if command.asks is None else command.asks.space
    owed = command.owed
    return _Compiled(
        command,
        None if command.guard is ALWAYS else command.guard.compiled(),
        tuple((requirement.guard.compiled(), requirement) for requirement in command.requires),
        tuple((assign.field.index, assign.value.compiled()) for assign in command.sets),
        0 if command.op is None else len(command.op.sets),
        None if space is None else space.compiled(),
        _MODES.get(command.goes, Mode.KERNEL),
        (_frames(command.goes, 0), _frames(command.goes, 1)),
        owed is ALWAYS if owed is ALWAYS or owed is NEVER else owed.compiled(),
    )


def _moved(each: _Compiled, thread: Thread, shared: int, env: Environment, below: tuple[Frame, ...]) -> Move:
    """Return what a command whose guard is true makes of a thread."""
    command = each.command
    for holds, requirement in each.requires:
        if not holds(env):
            broken = thread._replace(broken=str(requirement.broken(command.name)))
            return Move("breaks a rule in", command.name, broken, shared, owed=True)
    (cpu, task, _), stale, half, changes = thread.state, thread.stale, env[_HALF], False
    if each.sets:
        new = [value(env) for _, value in each.sets]
        changes = any(env[index] != value for (index, _), value in zip(each.sets[: each.own], new, strict=False))
        values = list(env)
        for (index, _), value in zip(each.sets, new, strict=True):
            values[index] = value
        cpu, task = CpuState(*values[:_TASK]), TaskState(*values[_TASK:_SHARED])
        shared = shared_of_words(values[_SHARED:_STALE])
        stale, half = bool(values[_STALE]), values[_HALF]
    after = Thread(ThreadState(cpu, task, below + each.frames[half]), each.mode, stale)
    if command.ends_touch and _FAULTS_AGAIN(cpu):
        after = after._replace(broken=_FAULTED_AGAIN)
    return Move(
        command.verb,
        command.name,
        after,
        shared,
        _effect(each, env),
        command.clears,
        command.folds,
        each.owed if isinstance(each.owed, bool) else each.owed(env),
        changes,
        command.loads,
    )


def _effect(each: _Compiled, env: Environment) -> Effect | None:
    asks = each.command.asks
    if asks is None:
        return None
    space = None if each.space is None else Space(each.space(env))
    return Effect(asks.kind, space, asks.noflush, asks.user_half)
