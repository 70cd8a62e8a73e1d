"""What may happen next, said a second time: by `Protocol.step`, with no guarded commands.

The moves of the model as they were written before there were commands; the relation is compared with it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.proofs.threads import (
    OWN_BEHIND,
    OWN_IPI,
    SIBLING_BEHIND,
    Mode,
    Move,
    Thread,
    View,
    core_of,
    in_transition,
    shared_bits,
)
from asikit.protocol import HANDLER, AsiClass, Effect, Happening, MisuseError, Role, Space, Status
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF, STOP_WAITING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs import World
    from asikit.threat import ContentsLayout

H = Happening
RETURNS = {H.RETURN_USER, H.VM_ENTRY}
MASKED = {HANDLER, H.NESTED_RETURN, NESTED_RETURN_TO_USER_HALF}
"""Programs of frames that belong to a nested entry, which counts until its return is through."""


@dataclass(frozen=True)
class Oracle:
    """A model whose moves are found by stepping the protocol."""

    world: World

    @property
    def threads(self) -> int:
        """Hardware threads."""
        return self.world.threads

    @property
    def layout(self) -> ContentsLayout:
        """The structures."""
        return self.world.layout

    def start(self) -> tuple[Thread, int]:
        """Return the thread after boot, and the shared bits."""
        return self.world.start()

    def view(self, thread: Thread, shared: int) -> View:
        """Return what a thread means for the structures."""
        return self.world.view(thread, shared)

    def moves(self, thread: Thread, shared: int) -> Iterator[Move]:
        """Yield what may happen next to a thread, given the shared bits as it sees them."""
        if thread.broken:
            return
        if thread.mode is not Mode.KERNEL:
            yield from self._from_untrusted(thread, shared)
        else:
            if in_transition(thread):
                yield from self._in_transition(thread, shared)
            elif self.world.protocol.in_handler(thread.state):
                yield from self._in_handler(thread, shared)
            else:
                yield from self._in_ordinary_code(thread, shared)
            yield from self._nested(thread, shared)
        if not self.world.shootdown and not thread.stale and thread.state.cpu.cr3 != Space.UNRESTRICTED:
            yield Move(
                "turns sensitive", "a page whose translation this thread's TLB has", thread._replace(stale=True), shared
            )

    def _from_untrusted(self, thread: Thread, shared: int) -> Iterator[Move]:
        asked = bool(shared & OWN_IPI)
        if thread.mode is Mode.GUEST:  # the interrupt stays pending, for the host to take
            yield from self._begin(thread, shared, H.VM_EXIT, owed=asked)
            return
        for entry in self.world.entries_from_user:
            yield from self._begin(thread, shared, entry)
            if asked and entry is not H.SYSCALL_ENTRY:
                yield from self._begin(thread, shared & ~OWN_IPI, entry, owed=True)

    def _in_transition(self, thread: Thread, shared: int) -> Iterator[Move]:
        core, behind = core_of(shared)
        before = thread.state
        try:
            done = self.world.protocol.step(core, before, 0)
        except MisuseError as error:
            yield Move(
                "breaks a rule in", self.world.place(thread), thread._replace(broken=str(error)), shared, owed=True
            )
            return
        if done.status is Status.BLOCKED:
            if self._role(thread) is Role.RESUME:
                stopped = thread._replace(state=self.world.protocol.stop_waiting(before))
                yield Move("stops waiting", STOP_WAITING, stopped, shared, owed=bool(shared & OWN_BEHIND))
            return
        ran = self._hardware(thread._replace(state=done.thread), done.effect)
        move = Move(
            "runs" if done.ran else "skips",
            done.ran or self.world.place(thread),
            ran,
            shared_bits(done.core, behind),
            done.effect,
            self._cleared(done.effect),
            owed=True,
            changes=(done.core, done.thread[:2]) != (core, before[:2]),
        )
        ended = len(done.thread.frames) < len(before.frames)
        yield from self._ended(before.frames[-1].program, move) if ended else (move,)

    def _role(self, thread: Thread) -> Role | None:
        """Return what the micro-operation is for that a thread in a transition runs next."""
        name, pc = thread.state.frames[-1]
        return self.world.protocol.programs[name].ops[pc].role

    def _in_handler(self, thread: Thread, shared: int) -> Iterator[Move]:
        left = thread._replace(state=self.world.protocol.leave(thread.state))
        yield Move("leaves", "its handler", left, shared, owed=True)
        yield from self._begin(thread, shared, H.UNMAPPED_TOUCH)

    def _in_ordinary_code(self, thread: Thread, shared: int) -> Iterator[Move]:
        relaxed = not thread.state.task.target
        behind, other_behind = bool(shared & OWN_BEHIND), bool(shared & SIBLING_BEHIND)
        if not self.world.core_scheduling or not (behind or other_behind):
            yield from self._begin(thread, shared, H.RETURN_USER, owed=True)
            if relaxed and (AsiClass.KVM in self.world.config.classes or not self.world.config.asi):
                yield from self._begin(thread, shared, H.VM_ENTRY, owed=True)
        for transition in self.world.work:
            yield from self._begin(thread, shared, transition, owed=behind and transition == H.MM_SWITCH)
        if self._may_nest(thread):
            for fault in self.world.faults:
                yield self._interrupt(thread, shared, fault)

    def _nested(self, thread: Thread, shared: int) -> Iterator[Move]:
        if self._may_nest(thread):
            pending = bool(shared & OWN_IPI) and self._takes_interrupts(thread, shared)
            for happening in self.world.nested_happenings:
                yield self._interrupt(thread, shared, happening)._replace(owed=pending)

    def _takes_interrupts(self, thread: Thread, shared: int) -> bool:
        """Whether kernel code runs with interrupts on: transitions have them off but while they wait."""
        ordinary = not in_transition(thread) and not self.world.protocol.in_handler(thread.state)
        return ordinary or self.spins(thread, shared)

    def _may_nest(self, thread: Thread) -> bool:
        return sum(frame.program in MASKED for frame in thread.state.frames) < self.world.nesting

    def _begin(self, thread: Thread, shared: int, name: str, *, owed: bool = False) -> Iterator[Move]:
        begun = thread._replace(state=self.world.protocol.begin(thread.state, name), mode=Mode.KERNEL)
        move = Move("begins", name, begun, shared, owed=owed)
        empty = len(begun.state.frames) == len(thread.state.frames)
        yield from self._ended(name, move) if empty else (move,)

    def _interrupt(self, thread: Thread, shared: int, happening: Happening) -> Move:
        entered = thread._replace(state=self.world.protocol.interrupt(thread.state, happening))
        return Move("interrupted by", happening, entered, shared)

    def _ended(self, name: str, move: Move) -> Iterator[Move]:
        """Yield what the end of a transition amounts to."""
        thread = move.after
        if name in RETURNS:
            mode = Mode.USER if name == H.RETURN_USER else Mode.GUEST
            yield move._replace(after=thread._replace(mode=mode))
        elif name in {H.CONTEXT_SWITCH, H.MM_SWITCH}:
            if name == H.MM_SWITCH:
                move = self._other_mm(move)
            for task in self.world.tasks:
                yield move._replace(after=thread._replace(state=thread.state._replace(task=task)), loads=task)
        elif name == H.UNMAPPED_TOUCH and thread.state.cpu.cr3 != Space.UNRESTRICTED:
            yield move._replace(after=thread._replace(broken="the access that faulted would fault again"))
        else:
            yield move

    def _other_mm(self, move: Move) -> Move:
        if move.shared & OWN_BEHIND:
            return move._replace(shared=move.shared & ~OWN_BEHIND)
        behind = SIBLING_BEHIND if self.world.threads > 1 else 0
        return move._replace(shared=move.shared | behind, folds=True)

    def _hardware(self, thread: Thread, effect: Effect | None) -> Thread:
        # Without NOFLUSH a CR3 write drops the PCID's entries (SDM 3A 4.10.4.1).
        flushed = effect is not None and effect.space is not None and not effect.noflush
        return thread._replace(stale=False) if flushed else thread

    def _cleared(self, effect: Effect | None) -> int:
        return 0 if effect is None else self.world.layout.cleared_by(effect.kind)

    def spins(self, thread: Thread, shared: int) -> bool:
        """Whether a thread waits for another one."""
        if thread.broken or not in_transition(thread):
            return False
        core, _ = core_of(shared)
        try:
            return self.world.protocol.step(core, thread.state, 0).status is Status.BLOCKED
        except MisuseError:
            return False
