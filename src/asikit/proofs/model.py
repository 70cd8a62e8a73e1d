"""The world around the protocol: what hardware threads run, what may happen to them, and what the attacker then sees.

A core has one or two hardware threads. Each runs untrusted code (a process, or its guest), or the kernel: its ordinary
code, a handler, or a transition of the protocol, micro-operation by micro-operation. The protocol's part of that is
`asikit.protocol`'s own data, stepped by `Protocol.step`; this module adds

* when which transition may begin (`World.moves`): any order, NMIs between any two micro-operations;
* what a thread can bring into the core's structures and what it must not find there (`World.view`), from the hardware
  assumptions of `asikit.proofs.hardware`;
* core scheduling: no thread goes to untrusted code while the other one has another mm loaded.

The attacker is as strong as can be, and needs no moves of its own: whatever can be brought into a structure is there at
once, and whatever untrusted code could train is trained. Less of either never leaks more, and the kernel's steps do not
depend on it. For the same reason one run with tagged data stands for all pairs of runs that differ in a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from asikit.proofs.hardware import (
    ALL_CAPABILITIES,
    EVERYBODY,
    FOLDED,
    NOBODY,
    Capability,
    Layout,
    Party,
    layout_for,
    may_not_learn,
)
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
from asikit.protocol import (
    HANDLER,
    AsiClass,
    CoreState,
    Effect,
    Happening,
    MisuseError,
    Protocol,
    Space,
    Status,
    TaskState,
)
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF, STOP_WAITING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asikit.protocol import ProtocolConfig

_Name = TypeVar("_Name", bound=str)

H = Happening
RETURNS = {H.RETURN_USER, H.VM_ENTRY}
KERNEL_WORK: tuple[str, ...] = (
    H.UNMAPPED_TOUCH,
    H.EXPLICIT_EXIT,
    H.CONTEXT_SWITCH,
    H.TLB_FLUSH_USER,
    H.TLB_FLUSH_KERNEL,
    H.TLB_FLUSH_USER_RANGE,
    H.TLB_FLUSH_KERNEL_RANGE,
    H.MM_SWITCH,
)
"""What the kernel's ordinary code does besides returning to untrusted code."""
NESTED: tuple[Happening, ...] = (H.NESTED_NMI, H.NESTED_INTERRUPT, H.NESTED_EXCEPTION)
"""What may come between any two micro-operations in the kernel."""
FAULTS: tuple[Happening, ...] = (H.NESTED_PAGE_FAULT, H.DOUBLE_FAULT)
"""What only the kernel's ordinary code causes."""
USER_ENTRIES = (H.SYSCALL_ENTRY, H.INTERRUPT_ENTRY, H.EXCEPTION_ENTRY, H.NMI_ENTRY)
MASKED = {HANDLER, H.NESTED_RETURN, NESTED_RETURN_TO_USER_HALF}
"""Programs of frames that belong to a nested entry, which counts until its return is through."""


@dataclass(frozen=True)
class World:
    """The model: a protocol, and what is around it.

    Attributes:
        protocol: the mechanism, or a mutant of it.
        threads: hardware threads of the core, 1 or 2.
        nesting: handlers that may be open inside one another, on each thread.
        capabilities: what the attacker can do.
        gadgets_anywhere: the kernel's entry and exit code can be made to load secrets too, not only its ordinary code
            and its handlers; ASI needs no such trust, the blanket mitigation does.
        kernel_work: what ordinary kernel code may do.
        faults: handlers that ordinary kernel code may cause.
        unmapped: the restricted address spaces lack sensitive memory.
        shootdown: memory that turns sensitive is flushed from all TLBs before secrets come into it.
        boot_tainted: what booting left in the structures is recorded as KERNEL_DATA.
        core_scheduling: siblings run untrusted code only of the same mm.
        trusting: a process and its own guest need no protection from one another. ASI keeps them apart by taints, which
            are each thread's own, so with two threads it cannot.
    """

    protocol: Protocol
    threads: int = 1
    nesting: int = 1
    capabilities: Capability = ALL_CAPABILITIES
    gadgets_anywhere: bool = True
    kernel_work: tuple[str, ...] = KERNEL_WORK
    faults: tuple[Happening, ...] = FAULTS
    unmapped: bool = True
    shootdown: bool = True
    boot_tainted: bool = True
    core_scheduling: bool = True
    trusting: bool = False
    layout: Layout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find out which structures the CPU has."""
        object.__setattr__(self, "layout", layout_for(self.config))

    @property
    def config(self) -> ProtocolConfig:
        """The protocol's configuration."""
        return self.protocol.config

    # Where it begins.

    def start(self) -> tuple[Thread, int]:
        """Return a thread that has just booted, the same for all, and the shared bits."""
        own, sibling = self.protocol.initial_core()
        if self.threads == 1:  # nobody is there to release it
            own = own._replace(stunned=0)
        booted = self.protocol.initial_thread()
        if not self.boot_tainted:
            booted = booted._replace(cpu=booted.cpu._replace(taints=0))
        return Thread(booted), shared_bits(CoreState(own, sibling), 0)

    # What may happen.

    def moves(self, thread: Thread, shared: int) -> Iterator[Move]:
        """Yield what may happen next to a thread, given the shared bits as it sees them."""
        if thread.broken:
            return
        if thread.mode is not Mode.KERNEL:
            yield from self._from_untrusted(thread, shared)
        else:
            if in_transition(thread):
                yield from self._in_transition(thread, shared)
            elif self.protocol.in_handler(thread.state):
                yield from self._in_handler(thread, shared)
            else:
                yield from self._in_ordinary_code(thread, shared)
            yield from self._nested(thread, shared)
        if not self.shootdown and not thread.stale and thread.state.cpu.cr3 != Space.UNRESTRICTED:
            yield Move(
                "turns sensitive", "a page whose translation this thread's TLB has", thread._replace(stale=True), shared
            )

    def _from_untrusted(self, thread: Thread, shared: int) -> Iterator[Move]:
        asked = bool(shared & OWN_IPI)
        if thread.mode is Mode.GUEST:  # the interrupt stays pending, for the host to take
            yield from self._begin(thread, shared, H.VM_EXIT, owed=asked)
            return
        for entry in self.entries_from_user:
            yield from self._begin(thread, shared, entry)
            if asked and entry is not H.SYSCALL_ENTRY:
                yield from self._begin(thread, shared & ~OWN_IPI, entry, owed=True)

    def _in_transition(self, thread: Thread, shared: int) -> Iterator[Move]:
        core, behind = core_of(shared)
        before = thread.state
        try:
            done = self.protocol.step(core, before, 0)
        except MisuseError as error:
            yield Move("breaks a rule in", self.place(thread), thread._replace(broken=str(error)), shared, owed=True)
            return
        if done.status is Status.BLOCKED:
            if self.gives_up(thread):
                stopped = thread._replace(state=self.protocol.stop_waiting(before))
                yield Move("stops waiting", STOP_WAITING, stopped, shared, owed=bool(shared & OWN_BEHIND))
            return
        ran = self._hardware(thread._replace(state=done.thread), done.effect)
        move = Move(
            "runs" if done.ran else "skips",
            done.ran or self.place(thread),
            ran,
            shared_bits(done.core, behind),
            done.effect,
            self._cleared(done.effect),
            owed=True,
            changes=(done.core, done.thread[:2]) != (core, before[:2]),
        )
        ended = len(done.thread.frames) < len(before.frames)
        yield from self._ended(before.frames[-1].program, move) if ended else (move,)

    def _in_handler(self, thread: Thread, shared: int) -> Iterator[Move]:
        left = thread._replace(state=self.protocol.leave(thread.state))
        yield Move("leaves", "its handler", left, shared, owed=True)
        yield from self._begin(thread, shared, H.UNMAPPED_TOUCH)

    def _in_ordinary_code(self, thread: Thread, shared: int) -> Iterator[Move]:
        relaxed = not thread.state.task.target
        behind, other_behind = bool(shared & OWN_BEHIND), bool(shared & SIBLING_BEHIND)
        if not self.core_scheduling or not (behind or other_behind):
            yield from self._begin(thread, shared, H.RETURN_USER, owed=True)
            if relaxed and (AsiClass.KVM in self.config.classes or not self.config.asi):
                yield from self._begin(thread, shared, H.VM_ENTRY, owed=True)
        for transition in self.work:
            yield from self._begin(thread, shared, transition, owed=behind and transition == H.MM_SWITCH)
        if self._may_nest(thread):
            for fault in self.faults:
                yield self._interrupt(thread, shared, fault)

    def _nested(self, thread: Thread, shared: int) -> Iterator[Move]:
        if self._may_nest(thread):
            pending = bool(shared & OWN_IPI) and self._takes_interrupts(thread, shared)
            for happening in self.nested_happenings:
                yield self._interrupt(thread, shared, happening)._replace(owed=pending)

    def _takes_interrupts(self, thread: Thread, shared: int) -> bool:
        """Whether kernel code runs with interrupts on: transitions have them off but while they wait."""
        ordinary = not in_transition(thread) and not self.protocol.in_handler(thread.state)
        return ordinary or self.spins(thread, shared)

    def _may_nest(self, thread: Thread) -> bool:
        return sum(frame.program in MASKED for frame in thread.state.frames) < self.nesting

    def _begin(self, thread: Thread, shared: int, name: str, *, owed: bool = False) -> Iterator[Move]:
        begun = thread._replace(state=self.protocol.begin(thread.state, name), mode=Mode.KERNEL)
        move = Move("begins", name, begun, shared, owed=owed)
        empty = len(begun.state.frames) == len(thread.state.frames)
        yield from self._ended(name, move) if empty else (move,)

    def _interrupt(self, thread: Thread, shared: int, happening: Happening) -> Move:
        entered = thread._replace(state=self.protocol.interrupt(thread.state, happening))
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
            for task in self.tasks:
                yield move._replace(after=thread._replace(state=thread.state._replace(task=task)), loads=task)
        elif name == H.UNMAPPED_TOUCH and thread.state.cpu.cr3 != Space.UNRESTRICTED:
            yield move._replace(after=thread._replace(broken="the access that faulted would fault again"))
        else:
            yield move

    def _other_mm(self, move: Move) -> Move:
        if move.shared & OWN_BEHIND:
            return move._replace(shared=move.shared & ~OWN_BEHIND)
        behind = SIBLING_BEHIND if self.threads > 1 else 0
        return move._replace(shared=move.shared | behind, folds=True)

    def _hardware(self, thread: Thread, effect: Effect | None) -> Thread:
        # Without NOFLUSH a CR3 write drops the PCID's entries (SDM 3A 4.10.4.1).
        flushed = effect is not None and effect.space is not None and not effect.noflush
        return thread._replace(stale=False) if flushed else thread

    def _cleared(self, effect: Effect | None) -> int:
        return 0 if effect is None else self.layout.cleared_by(effect.kind)

    def gives_up(self, thread: Thread) -> bool:
        """Whether a waiting thread is one that has something better to do: it waits before untrusted code."""
        return self.place(thread).endswith(".resume")

    def place(self, thread: Thread) -> str:
        """Return the path of the micro-operation that a thread in a transition runs next."""
        name, pc = thread.state.frames[-1]
        return self.protocol.programs[name].ops[pc].path

    @cached_property
    def entries_from_user(self) -> tuple[Happening, ...]:
        """How user mode enters the kernel, one of several that run the same program."""
        return tuple(self._distinct(USER_ENTRIES))

    @cached_property
    def nested_happenings(self) -> tuple[Happening, ...]:
        """What may come between any two micro-operations, one of several that run the same program."""
        return tuple(self._distinct(NESTED))

    @cached_property
    def work(self) -> tuple[str, ...]:
        """What ordinary kernel code may do, one of several that run the same program."""
        return tuple(self._distinct(self.kernel_work))

    @cached_property
    def tasks(self) -> tuple[TaskState, ...]:
        """The tasks that may be switched to: one inside a system call, one that an interrupt took from user mode."""
        if not self.config.asi or AsiClass.USERSPACE not in self.config.classes:
            return (TaskState(),)
        return (TaskState(), TaskState(target=int(Space.USERSPACE), intr_nest_depth=1))

    def _distinct(self, names: Iterable[_Name]) -> Iterator[_Name]:
        """Yield names of transitions, one of several that run the very same micro-operations and end alike."""
        seen = set()
        for name in names:
            ops = tuple(replace(op, path="", exits=None) for op in self.protocol.programs[name].ops)
            key = (ops, name if name in {H.CONTEXT_SWITCH, H.MM_SWITCH, H.UNMAPPED_TOUCH} else "")
            if key not in seen and (ops or key[1]):
                seen.add(key)
                yield name

    # What it means for the core's structures.

    def view(self, thread: Thread, shared: int) -> View:
        """Return what a thread brings into the core's structures, and must not find there."""
        if thread.broken:
            return View()
        mapped = self.mapped(thread, shared)
        if thread.mode is Mode.KERNEL or self._trusts(thread.mode):
            reach = mapped if self.gadgets_anywhere or not in_transition(thread) else NOBODY
            return View(self._data(reach), self._training(self._may_not_steer(reach)))
        party = Party.OTHER if shared & OWN_BEHIND else thread.mode.party
        hidden = self._may_not_learn(party) & ~party  # its own mm's data are no secret of another's
        leak = ""
        if Capability.DEFERRED in self.capabilities and mapped & hidden:
            leak = f"untrusted code reads what its page tables map: {_labels(mapped & hidden)}"
        samples = self._data(hidden) if Capability.SAMPLE in self.capabilities else 0
        trains = self._training(party) if Capability.TRAIN in self.capabilities else 0
        steers = self._training(self._may_not_steer(party) & ~party)
        return View(self._data(party) | trains, samples | steers, leak)

    def _trusts(self, mode: Mode) -> bool:
        """Whether a mode's code is as good as the kernel's: no class is there to protect from it."""
        space = Space.USERSPACE if mode is Mode.USER else Space.KVM
        return self.config.asi and space.asi_class not in self.config.classes

    def mapped(self, thread: Thread, shared: int) -> Party:
        """Return whose sensitive data the present page tables map."""
        behind = bool(shared & OWN_BEHIND)
        own = Party.OTHER if behind else Party.USER
        cpu = thread.state.cpu
        if thread.mode is Mode.GUEST:  # the guest's own page tables, over the nested ones
            return Party.OTHER if behind else Party.GUEST
        if cpu.cr3 == Space.UNRESTRICTED:
            return own if cpu.user_cr3 else EVERYBODY
        if not self.unmapped:
            return EVERYBODY
        restricted = own if cpu.cr3 == Space.USERSPACE else NOBODY
        return restricted | (Party.KERNEL if thread.stale else NOBODY)

    def _may_not_learn(self, party: Party) -> Party:
        hidden = may_not_learn(party, self.config)
        return hidden & ~FOLDED if self.trusting and party in FOLDED else hidden

    def _may_not_steer(self, reach: Party) -> Party:
        """Return who must not have trained the predictors of code that has the given data in reach."""
        trainers = (Party.OTHER, Party.USER, Party.GUEST)
        return Party(sum(party for party in trainers if self._may_not_learn(party) & reach))

    def _data(self, parties: Party) -> int:
        return self.layout.spread("data", self._merged(parties))

    def _training(self, parties: Party) -> int:
        return self.layout.spread("training", self._merged(parties))

    def _merged(self, parties: Party) -> Party:
        """Return parties with one standing for those between whom the threat model makes no difference.

        Where a process and its guest trust one another, both must not see the kernel's data and not see other mm's, and
        nobody who must not see the one's may see the other's: two tags are enough. Unless another mm's code runs beside
        them, which may see its own data.
        """
        if not self.trusting or not self.core_scheduling:
            return parties
        own = Party.USER if parties & FOLDED else NOBODY
        return own | (Party.OTHER if parties & ~FOLDED else NOBODY)

    # Who waits.

    def spins(self, thread: Thread, shared: int) -> bool:
        """Whether a thread waits for another one."""
        if thread.broken or not in_transition(thread):
            return False
        core, _ = core_of(shared)
        try:
            return self.protocol.step(core, thread.state, 0).status is Status.BLOCKED
        except MisuseError:
            return False


def _labels(parties: Party) -> str:
    return ", ".join(party.label for party in Party if party & parties)
