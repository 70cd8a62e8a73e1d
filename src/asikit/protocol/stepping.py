"""One micro-operation at a time: what a hardware thread does next, given what its core shares.

Everything is in the arguments and in the result; a checker may keep, compare and repeat any of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from asikit.protocol.operations import CompiledOp
from asikit.protocol.state import CoreState, CpuState, Frame, Mailbox, TaskState, ThreadState

if TYPE_CHECKING:
    from asikit.protocol.effects import Effect, ExitReason
    from asikit.protocol.roles import Role

HANDLER = "handler"
"""The program of a frame in which a handler's own code runs: whoever drives the thread says what it does."""

_TASK = len(CpuState._fields)
_OWN = _TASK + len(TaskState._fields)
_SIBLING = _OWN + len(Mailbox._fields)

Programs = Mapping[str, tuple[CompiledOp, ...]]


class Status(StrEnum):
    """What became of a step."""

    RAN = "ran"
    """A micro-operation ran, or its guard was false."""
    BLOCKED = "blocked"
    """The thread spins, with interrupts on, until another thread changes something; the states are as before."""
    IDLE = "idle"
    """No transition is in progress: ordinary code runs here. The states are as before."""


class Step(NamedTuple):
    """The result of a step.

    `ran` is the path of the micro-operation (`asi_exit.write_cr3`), empty if there was none or its guard was false;
    `role` is what that one is for, if it has a role.
    """

    status: Status
    core: CoreState
    thread: ThreadState
    ran: str = ""
    effect: Effect | None = None
    exit_reason: ExitReason | None = None
    role: Role | None = None


def step(programs: Programs, core: CoreState, thread: ThreadState, who: int) -> Step:
    """Run the next micro-operation of hardware thread `who` (0 or 1) of a core.

    :raises MisuseError: The micro-operation's caller broke a rule; it is that rule's.
    """
    if not thread.frames or thread.frames[-1].program == HANDLER:
        return Step(Status.IDLE, core, thread)
    name, pc = thread.frames[-1]
    program = programs[name]
    compiled = program[pc]
    env = (*thread.cpu, *thread.task, *core[who], *core[1 - who])
    if not compiled.when(env):
        skipped = _advance(thread.frames, pc + 1, len(program))
        return Step(Status.RAN, core, ThreadState(thread.cpu, thread.task, skipped))
    for holds, requirement in compiled.requires:
        if not holds(env):
            raise requirement.broken(compiled.op.path)
    if not compiled.waits(env):
        return Step(Status.BLOCKED, core, thread)
    effect = compiled.effect(env)
    frames = _advance(thread.frames, compiled.op.goto, len(program))
    if compiled.sets:
        values = list(env)
        for index, value in compiled.sets:
            values[index] = value(env)
        core = _core(who, values)
        thread = ThreadState(CpuState(*values[:_TASK]), TaskState(*values[_TASK:_OWN]), frames)
    else:
        thread = ThreadState(thread.cpu, thread.task, frames)
    return Step(Status.RAN, core, thread, compiled.op.path, effect, compiled.op.exits, compiled.op.role)


def _advance(frames: tuple[Frame, ...], pc: int, end: int) -> tuple[Frame, ...]:
    return frames[:-1] if pc == end else (*frames[:-1], Frame(frames[-1].program, pc))


def _core(who: int, values: list[int]) -> CoreState:
    own, sibling = Mailbox(*values[_OWN:_SIBLING]), Mailbox(*values[_SIBLING:])
    return CoreState(own, sibling) if who == 0 else CoreState(sibling, own)
