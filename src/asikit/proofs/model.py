"""The world around the protocol: what hardware threads run, what may happen to them, and what the attacker then sees.

A core has one or two hardware threads. Each runs untrusted code (a process, or its guest), or the kernel: its ordinary
code, a handler, or a transition of the protocol, micro-operation by micro-operation. The protocol's part of that is
`asikit.protocol`'s own data, read by `asikit.proofs.relation`; this module adds

* when which transition may begin (`asikit.proofs.relation`): any order, NMIs between any two micro-operations;
* what a thread can bring into the core's structures and what it must not find there (`World.view`), from the hardware
  assumptions and the parties of `asikit.threat`;
* core scheduling: no thread goes to untrusted code while the other one has another mm loaded.

The attacker is as strong as can be, and needs no moves of its own: whatever can be brought into a structure is there at
once, and whatever untrusted code could train is trained. Less of either never leaks more, and the kernel's steps do not
depend on it. For the same reason one run with tagged data stands for all pairs of runs that differ in a secret.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, TypeVar

from asikit.proofs.interpreter import Interpreter
from asikit.proofs.relation import Relation
from asikit.proofs.threads import OWN_BEHIND, Mode, Move, Thread, View, in_transition, shared_bits
from asikit.protocol import AsiClass, CoreState, Happening, Role, Space, TaskState
from asikit.threat import (
    ALL_CAPABILITIES,
    EVERYBODY,
    FOLDED,
    NOBODY,
    Capability,
    ContentsLayout,
    Design,
    Party,
    layout_for,
    may_learn,
    may_not_learn,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asikit.protocol.operations import ProgramOp
    from asikit.threat import Owner

_Name = TypeVar("_Name", bound=str)

H = Happening
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


@dataclass(frozen=True)
class World(Design):
    """The model: a design, and what is around it.

    :ivar threads: Hardware threads of the core, 1 or 2.
    :ivar nesting: Handlers that may be open inside one another, on each thread.
    :ivar capabilities: What the attacker can do.
    :ivar gadgets_anywhere: The kernel's entry and exit code can be made to load secrets too, not only its ordinary code
        and its handlers; ASI needs no such trust, the blanket mitigation does.
    :ivar kernel_work: What ordinary kernel code may do.
    :ivar faults: Handlers that ordinary kernel code may cause.
    :ivar trusting: A process and its own guest need no protection from one another. ASI keeps them apart by taints,
        which are each thread's own, so with two threads it cannot.
    """

    threads: int = 1
    nesting: int = 1
    capabilities: Capability = ALL_CAPABILITIES
    gadgets_anywhere: bool = True
    kernel_work: tuple[str, ...] = KERNEL_WORK
    faults: tuple[Happening, ...] = FAULTS
    trusting: bool = False
    layout: ContentsLayout = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Find out which structures the CPU has."""
        object.__setattr__(self, "layout", layout_for(self.config))

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
        return self._interpreter.moves(thread, shared)

    def spins(self, thread: Thread, shared: int) -> bool:
        """Whether a thread waits for another one."""
        return self._interpreter.spins(thread, shared)

    @cached_property
    def _interpreter(self) -> Interpreter:
        return Interpreter(Relation(self))

    @staticmethod
    def gives_up(op: ProgramOp) -> bool:
        """Whether a thread that waits at a micro-operation may give up: it waits before untrusted code."""
        return op.role is Role.RESUME

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
            ops = tuple(replace(op, path="", role=None, exits=None) for op in self.protocol.programs[name].ops)
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
        return may_not_learn(party, self.config, trusting=self.trusting)

    def must_not_learn(self, who: Owner, owner: Owner) -> bool:
        """Tell whether somebody must not learn an owner's data."""
        return not may_learn(who, owner, self.config, trusting=self.trusting)

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


def _labels(parties: Party) -> str:
    return ", ".join(party.label for party in Party if party & parties)
