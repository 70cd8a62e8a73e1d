"""What each restricted stretch of a recording needs of memory in order to go on restricted.

A *stretch* is what a CPU does from one entry into a restricted address space to the next. It has one exit or none:
after an exit the address space stays unrestricted until it is entered again, and where that is does not depend on what
the policy says of memory. So one pass over the events says for every policy with one mechanism how often it exits.

Two copies of each CPU's protocol state are run side by side. One has only the exits that no declaration of memory can
avoid. The other is what becomes of it if the stretch has had its exit: where that one is restricted again, the next
stretch begins.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from asikit.protocol import Happening, Space
from asikit.replay._events import event_class
from asikit.replay._steps import Stepper, check_policy
from asikit.replay._tables import SideTables
from asikit.replay.declaring import MemorySites
from asikit.replay.errors import ReplayError
from asikit.replay.one_pass import ALL_CLASSES
from asikit.replay.pieces import read_ahead
from asikit.replay.policy import ACCESSES
from asikit.replay.sensitivity import PlaceBits, apply_policy, missing_bit
from asikit.trace import TOUCH_KINDS, EventKind

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import numpy.typing as npt

    from asikit.protocol import AsiClass, State, TaskState
    from asikit.replay._events import EventClass
    from asikit.replay.declaring import MemorySite
    from asikit.replay.pieces import Piece
    from asikit.replay.policy import Policy
    from asikit.trace import Trace

    Numbers = npt.NDArray[np.int64]

__all__ = ["Stretches"]

_SPACES = (Space.UNRESTRICTED, Space.USERSPACE, Space.KVM)
_BY_ARG = (EventKind.NESTED_EXCEPTION, EventKind.TLB_FLUSH)
"""What the protocol makes of these events depends on their ``arg``."""
_SITE_BITS = 20


@dataclass(frozen=True)
class Stretches:
    """The stretches of one recording under one mechanism.

    :ivar tables: The recording's side tables.
    :ivar sites: What can be declared.
    :ivar forced: How many stretches have an exit whatever is declared.
    :ivar needs: For each set of sites, as positions in ascending order: how many other stretches touch just these.
        Positions beyond the sites are those of ``functions``.
    :ivar functions: What could use an ephemeral mapping, where that was asked for: a touch that the mapping serves
        needs its function instead of its site, which is taken to be sensitive.
    """

    tables: SideTables
    sites: MemorySites
    forced: int
    needs: Mapping[tuple[int, ...], int]
    functions: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        trace: Trace,
        policy: Policy,
        classes: frozenset[AsiClass] = ALL_CLASSES,
        *,
        functions: bool = False,
    ) -> Stretches:
        """Find them in a recording.

        Memory: the side tables, three parts of the events at a time, and 16 bytes for each site that a stretch needs.

        :param policy: Its mechanism, regions and ephemeral mappings count; what it says of memory does not.
        :param classes: The classes of untrusted domains to protect from.
        :param functions: The functions of the policy's ephemeral mappings are to be chosen, whichever it names.
        :raises PolicyError: The mechanism contradicts itself.
        :raises ReplayError: The trace's tables contradict each other.
        :raises TraceError: A part of the trace is damaged.
        """
        check_policy(policy, classes)
        tables = SideTables.of(trace)
        sites = MemorySites.of(tables)
        reader = _Reader(policy, classes, tables, sites, functions=functions)
        with read_ahead(trace, clock=False) as pieces:
            for piece in pieces:
                reader.feed(piece)
        forced, needs = reader.found()
        return cls(tables, sites, forced, needs, reader.functions)

    def exits(self, nonsensitive: Collection[MemorySite]) -> int:
        """Return how many exits a replay has if these sites are nonsensitive and all others are sensitive."""
        chosen = frozenset(nonsensitive)
        have = {number for number, site in enumerate(self.sites.sites) if site in chosen}
        return self.forced + sum(times for needed, times in self.needs.items() if not have.issuperset(needed))


class _Step(NamedTuple):
    """What an event does to the pair of states of its CPU.

    :ivar forced: It is an exit, whatever is declared.
    :ivar anew: It enters a restricted address space again.
    """

    state: State
    exited: State
    forced: bool
    anew: bool


class _Cpu(NamedTuple):
    """Where a CPU is.

    :ivar exited: What ``state`` would be after the stretch's exit.
    :ivar stretch: The number of its stretch.
    :ivar task: The row of the task that runs, -1 if it is unknown.
    """

    state: State
    exited: State
    stretch: int
    task: int = -1


class _Reader:
    """Goes through the events once."""

    def __init__(
        self, policy: Policy, classes: frozenset[AsiClass], tables: SideTables, sites: MemorySites, *, functions: bool
    ) -> None:
        self._stepper = Stepper(policy, classes)
        everything = MemorySites.policy(sites, policy, (), name=policy.name)
        nothing = MemorySites.policy(sites, policy, sites.sites, name=policy.name)
        sensitive = apply_policy(everything, tables)
        self._bits, self._ephmap_stacks = sensitive.places, sensitive.ephmap_stacks
        self._always = apply_policy(nothing, tables).places
        self._site_of_place = sites.of_page[tables.page_of_place]
        self.functions: tuple[str, ...] = ()
        self._function_of_stack: Numbers | None = None
        if functions:
            names = tables.function_names(np.arange(tables.stacks.height, dtype=np.uint32))
            self.functions = tuple(sorted(set(names)))
            position = {name: len(sites.sites) + number for number, name in enumerate(self.functions)}
            self._function_of_stack = np.array([position[name] for name in names], np.int64)
        self._tasks: dict[int, TaskState] = {}
        self._known: dict[tuple[State, State, EventClass], _Step] = {}
        self._classes: dict[tuple[int, int], EventClass | None] = {}
        self._cpus: dict[int, _Cpu] = {}
        self._stretches = 0
        self._forced: set[int] = set()
        self._pairs: list[Numbers] = []

    def feed(self, piece: Piece) -> None:
        """Go on with these events."""
        touch = np.isin(piece.kind, [int(kind) for kind in TOUCH_KINDS])
        before = dict(self._cpus)
        marks = np.flatnonzero(~touch & (piece.kind != EventKind.PAGE_ALLOC) & (piece.kind != EventKind.PAGE_FREE))
        rows = zip(*(column[marks].tolist() for column in (piece.cpu, piece.kind, piece.arg)), strict=True)
        after = [self._mark(*row) for row in rows]
        at = np.array([(cpu.stretch, _SPACES.index(self._space(cpu.state))) for cpu in after], np.int64).reshape(-1, 2)
        touches = np.flatnonzero(touch)
        for cpu in np.unique(piece.cpu).tolist():
            own_marks = np.flatnonzero(piece.cpu[marks] == cpu)
            own = touches[piece.cpu[touches] == cpu]
            first = before.get(cpu) or self._new()
            known = np.concatenate(([[first.stretch, _SPACES.index(self._space(first.state))]], at[own_marks]))
            stretch, space = known[np.searchsorted(marks[own_marks], own)].T
            self._touched(piece, own, stretch, space)

    def found(self) -> tuple[int, dict[tuple[int, ...], int]]:
        """Return how many stretches exit whatever is declared, and how often each set of sites is needed."""
        pairs = np.unique(np.concatenate([np.empty(0, np.int64), *self._pairs]))
        stretches, sites = pairs >> _SITE_BITS, pairs & ((1 << _SITE_BITS) - 1)
        starts = np.flatnonzero(np.diff(stretches, prepend=-1))
        needs: Counter[tuple[int, ...]] = Counter()
        for stretch, needed in zip(stretches[starts].tolist(), np.split(sites, starts[1:]), strict=False):
            if stretch not in self._forced:
                needs[tuple(needed.tolist())] += 1
        return len(self._forced), dict(needs)

    def _new(self) -> _Cpu:
        state = self._stepper.initial()
        self._stretches += 1
        return _Cpu(state, state, self._stretches)

    def _mark(self, number: int, kind: int, arg: int) -> _Cpu:
        cpu = self._cpus.get(number) or self._new()
        event = self._event(kind, arg)
        if event is None:
            self._cpus[number] = cpu
            return cpu
        step = self._step(cpu.state, cpu.exited, event)
        if step.forced:
            self._forced.add(cpu.stretch)
        state, exited, stretch, task = step.state, step.exited, cpu.stretch, cpu.task
        if kind == EventKind.TASK_SWITCH:
            if task >= 0:
                self._tasks[task] = self._stepper.save_task(state)
            task = arg
            wanted = self._tasks.get(task, self._stepper.initial_task())
            state, exited = (self._stepper.load_task(each, wanted) for each in (state, exited))
        if step.anew:
            self._stretches += 1
            stretch = self._stretches
        self._cpus[number] = cpu = _Cpu(state, exited, stretch, task)
        return cpu

    def _event(self, kind: int, arg: int) -> EventClass | None:
        key = (kind, arg if kind in _BY_ARG else 0)
        if key not in self._classes:
            self._classes[key] = event_class(EventKind(kind), key[1])
        return self._classes[key]

    def _step(self, state: State, exited: State, event: EventClass) -> _Step:
        key = (state, exited, event)
        if key not in self._known:
            here, there = (self._stepper.step(each, event.happening) for each in (state, exited))
            anew = self._restricted(there.state) and not self._restricted(exited)
            if not self._restricted(here.state):
                after = here.state
            elif anew or not self._restricted(state):
                after = self._stepper.step(here.state, Happening.UNMAPPED_TOUCH).state
            else:
                after = there.state
            self._known[key] = _Step(here.state, after, here.exit_reason is not None, anew)
        return self._known[key]

    def _space(self, state: State) -> Space:
        space = self._stepper.space(state)
        return space if space in _SPACES else Space.UNRESTRICTED

    def _restricted(self, state: State) -> bool:
        return self._space(state) is not Space.UNRESTRICTED

    def _touched(self, piece: Piece, rows: Numbers, stretch: Numbers, space: Numbers) -> None:
        """Note what these touches of one CPU's need."""
        places = piece.arg[rows]
        if places.size and places.max() >= self._bits.size:
            raise ReplayError(f"a touch refers to place {places.max()} of {self._bits.size}; record the trace again")
        access = piece.kind[rows].astype(np.int64) - int(EventKind.TOUCH_READ)
        mask = _MASKS[space, access]
        found = self._bits[places]
        lacking = (found & mask) != 0
        ephemeral = (found & _EPHMAP[access]) != 0
        site = self._site_of_place[places]
        if self._function_of_stack is None:
            lacking &= ~(ephemeral & self._ephmap_stacks[piece.stack[rows]])
        else:
            site = np.where(ephemeral, self._function_of_stack[piece.stack[rows]], site)
        always = lacking & ((self._always[places] & mask) != 0)
        self._forced.update(np.unique(stretch[always]).tolist())
        wanted = lacking & ~always
        self._pairs.append(np.unique(stretch[wanted] << _SITE_BITS | site[wanted]))


def _masks() -> npt.NDArray[np.uint8]:
    """Return the bits of a place that matter to an access, by space and access."""
    masks = np.zeros((len(_SPACES), len(ACCESSES)), np.uint8)
    for number, space in enumerate(_SPACES):
        if space is not Space.UNRESTRICTED:
            masks[number] = [missing_bit(userspace=space is Space.USERSPACE, access=access) for access in ACCESSES]
    return masks


_MASKS = _masks()
_EPHMAP = np.array([PlaceBits.EPHMAP_READ, PlaceBits.EPHMAP_WRITE, PlaceBits(0)], np.uint8)
"""By access."""
