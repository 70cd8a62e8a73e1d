"""Exhaustive exploration, for tests: every interleaving of one or two hardware threads, NMIs between any two steps.

The hardware is as bad as it can be: untrusted code always trains the predictors, and the kernel always pulls secrets
into the buffers as soon as CR3 lets it, even half-way through a transition.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from asikit.protocol import (
    AsiClass,
    CoreState,
    Effect,
    EffectKind,
    Happening,
    Protocol,
    ProtocolConfig,
    Space,
    State,
    TaskState,
    ThreadState,
)
from asikit.protocol.entries import NESTED_RETURN_TO_USER_HALF
from asikit.protocol.expressions import Scope, Truth
from asikit.protocol.invariants import step_invariants
from asikit.protocol.stepping import HANDLER, Status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

H = Happening
NESTED = {HANDLER, H.NESTED_RETURN, NESTED_RETURN_TO_USER_HALF}
"""Programs of frames that belong to a nested entry: NMIs stay masked until its return is through."""
CLEARS = {
    EffectKind.IBPB: "trained",
    EffectKind.L1D_FLUSH: "l1d",
    EffectKind.VERW: "fill_buffers",
}


class Hardware(NamedTuple):
    """What the core's shared structures hold: an attacker's training, a victim's secrets."""

    trained: bool = False
    l1d: bool = False
    fill_buffers: bool = False


class World(NamedTuple):
    """A core, its threads, and what its structures hold."""

    core: CoreState
    threads: tuple[ThreadState, ...]
    hardware: Hardware = Hardware()


class Move(NamedTuple):
    """Something that may happen next; `owed` if it must happen sooner or later."""

    name: str
    world: World
    owed: bool


class Finding(NamedTuple):
    """A property that is broken, and the shortest way there."""

    broken: str
    path: tuple[str, ...]


@dataclass(frozen=True)
class Explorer:
    """The possible moves of a world under a protocol."""

    protocol: Protocol
    threads: int = 1
    nmis: int = 1
    half_way: bool = True
    """Secrets come into the buffers half-way through transitions too, not only in the kernel's ordinary code."""
    extra: tuple[Happening, ...] = ()
    """Happenings of the kernel's ordinary code besides touches and returns."""
    reduced: bool = True
    """Where the order of two threads' steps makes no difference, only one order is tried."""

    def start(self) -> World:
        """Return the world after boot."""
        core = self.protocol.initial_core()
        if self.threads == 1:  # nobody is there to release us
            core = core._replace(first=core.first._replace(stunned=0))
        threads = (self.protocol.initial_thread(),) * self.threads
        return self.settle(World(core, threads))

    def settle(self, world: World) -> World:
        """Let the hardware do its worst."""
        hardware = world.hardware
        for who, thread in enumerate(world.threads):
            if world.core[who].untrusted:
                hardware = hardware._replace(trained=True)
            elif thread.cpu.cr3 == Space.UNRESTRICTED and (self.half_way or self._ordinary(thread)):
                flushed = self.protocol.config.data_flush  # what no flush clears is beyond any protocol
                hardware = hardware._replace(
                    l1d=EffectKind.L1D_FLUSH in flushed, fill_buffers=EffectKind.VERW in flushed
                )
        return world._replace(hardware=hardware)

    def moves(self, world: World) -> Iterator[Move]:
        """Yield everything that may happen next."""
        local = [who for who in range(self.threads) if self.reduced and self.is_local(world, who)]
        for who, thread in enumerate(world.threads):
            if local and who != local[0]:
                continue
            for name, core, after, effect, owed in self._thread_moves(world, who, thread):
                threads = tuple(after if index == who else other for index, other in enumerate(world.threads))
                hardware = affected(world.hardware, effect)
                yield Move(f"{who}: {name}", self.settle(World(core, threads, hardware)), owed)

    def is_local(self, world: World, who: int) -> bool:
        """Whether a thread's next step is no business of the sibling's, so that its order to theirs is all the same.

        Such a step reads nothing shared, and changes neither that nor what invariants and hardware look at. Exploring
        the sibling's moves only after it (partial-order reduction) loses nothing; NMIs before it are still tried.
        """
        thread = world.threads[who]
        if self.threads == 1 or not thread.frames or self.protocol.in_handler(thread):
            return False
        name, pc = thread.frames[-1]
        if pc in shared_places(self.protocol, name):
            return False
        done = self.protocol.step(world.core, thread, who)
        before, after = thread.cpu, done.thread.cpu
        return (done.core, done.effect, after.cr3, after.taints) == (world.core, None, before.cr3, before.taints)

    def _thread_moves(
        self, world: World, who: int, thread: ThreadState
    ) -> Iterator[tuple[str, CoreState, ThreadState, Effect | None, bool]]:
        core, protocol = world.core, self.protocol
        if thread.frames and not protocol.in_handler(thread):
            done = protocol.step(core, thread, who)
            if done.status is not Status.BLOCKED:
                yield done.ran or "skip", done.core, done.thread, done.effect, True
            elif thread.frames[-1].program in (H.RETURN_USER, H.VM_ENTRY):
                yield "stop waiting", core, protocol.stop_waiting(thread), None, False
        elif protocol.in_handler(thread):
            yield "leave", core, protocol.leave(thread), None, True
            yield "touch", core, protocol.begin(thread, H.UNMAPPED_TOUCH), None, False
        elif core[who].untrusted:
            for happening in self._entries(thread):
                owed = bool(core[who].stun_ipi) and happening is not H.SYSCALL_ENTRY
                yield happening, core, protocol.begin(thread, happening), None, owed
            return
        else:
            for transition in self._kernel(thread):
                owed = transition in (H.RETURN_USER, H.VM_ENTRY)
                yield transition, core, protocol.begin(thread, transition), None, owed
        if self._may_interrupt(world, who):
            yield "nmi", core, protocol.interrupt(thread, H.NESTED_NMI), None, False

    def _may_interrupt(self, world: World, who: int) -> bool:
        # Two threads: one NMI in the core at a time, and none before steps that are the thread's own business, or the
        # product of both would be out of reach for a test. With one thread there is no such limit.
        if self.threads == 2 and self.is_local(world, who):
            return False
        return sum(frame.program in NESTED for thread in world.threads for frame in thread.frames) < self.nmis

    def _entries(self, thread: ThreadState) -> tuple[Happening, ...]:
        if thread.task.target == Space.KVM:
            return (H.VM_EXIT,)
        return (H.SYSCALL_ENTRY, H.INTERRUPT_ENTRY)

    def _kernel(self, thread: ThreadState) -> Iterator[str]:
        if thread.task == TaskState(target=Space.IDLE):
            yield "asi_relax"
            return
        if not thread.task.target and AsiClass.IDLE in self.protocol.config.classes:
            yield "asi_enter_idle"
        yield H.RETURN_USER
        yield H.UNMAPPED_TOUCH
        yield from self.extra
        if not thread.task.target and AsiClass.KVM in self.protocol.config.classes:
            yield H.VM_ENTRY

    def _ordinary(self, thread: ThreadState) -> bool:
        return not thread.frames or self.protocol.in_handler(thread)


@cache
def shared_places(protocol: Protocol, name: str) -> frozenset[int]:
    """Return the places of a program whose micro-operations read or write what the sibling sees."""
    shared = {Scope.OWN, Scope.SIBLING}
    ops = enumerate(protocol.programs[name].ops)
    return frozenset(pc for pc, op in ops if any(field.scope in shared for field in op.reads | op.writes))


def affected(hardware: Hardware, effect: Effect | None) -> Hardware:
    """Return what the structures hold after an effect."""
    if effect is None or effect.kind not in CLEARS:
        return hardware
    return hardware._replace(**{CLEARS[effect.kind]: False})


@dataclass(frozen=True)
class Graph:
    """Everything that was reached: each world's moves, or the first property found broken."""

    moves: dict[World, list[Move]]
    finding: Finding | None

    @property
    def size(self) -> str:
        """How much was explored."""
        return f"{len(self.moves)} states, {sum(map(len, self.moves.values()))} transitions"


def explore(explorer: Explorer, *, limit: int = 2_000_000) -> Graph:
    """Visit every reachable world, breadth first; stop at the first broken property."""
    check = checker(explorer)
    start = explorer.start()
    came: dict[World, tuple[World, str] | None] = {start: None}
    graph: dict[World, list[Move]] = {}
    queue = deque([start])
    while queue:
        world = queue.popleft()
        broken = check(world)
        if broken:
            return Graph(graph, Finding(broken, path_to(came, world)))
        graph[world] = list(explorer.moves(world))
        for move in graph[world]:
            if move.world not in came:
                came[move.world] = (world, move.name)
                queue.append(move.world)
        assert len(came) < limit, "the state space is larger than expected"
    return Graph(graph, None)


def path_to(came: dict[World, tuple[World, str] | None], world: World) -> tuple[str, ...]:
    """Return the moves that led to a world."""
    names: list[str] = []
    link = came[world]
    while link is not None:
        world, name = link
        names.append(name)
        link = came[world]
    return tuple(reversed(names))


def checker(explorer: Explorer) -> Callable[[World], str]:
    """Return the function that names the first property broken in a world: empty if none."""
    config = explorer.protocol.config
    invariants = compiled_invariants(config) if config.asi else ()

    def check(world: World) -> str:
        for who, thread in enumerate(world.threads):
            env = (*thread.cpu, *thread.task, *world.core[who], *world.core[1 - who])
            for name, holds in invariants:
                if explorer.threads == 1 and name == "sibling-stays-out":
                    continue
                if not holds(env):
                    return name
            untrusted = world.core[who].untrusted
            if untrusted and (world.hardware.l1d or world.hardware.fill_buffers):
                return "secret sampled"
            if config.asi and not untrusted and thread.cpu.cr3 == Space.UNRESTRICTED and world.hardware.trained:
                return "kernel mistrained"
        return ""

    return check


def compiled_invariants(config: ProtocolConfig) -> tuple[tuple[str, Truth], ...]:
    """Return the names and functions of the invariants between micro-operations."""
    return tuple((invariant.name, invariant.guard.compiled()) for invariant in step_invariants(config))


def stuck(explorer: Explorer, graph: Graph) -> list[World]:
    """Return the worlds with a spinning thread that nothing owed will ever let go on."""
    free = {world for world in graph.moves if not any(_spins(explorer, world, who) for who in range(explorer.threads))}
    back: dict[World, list[World]] = {}
    for world, moves in graph.moves.items():
        for move in moves:
            if move.owed:
                back.setdefault(move.world, []).append(world)
    queue = list(free)
    while queue:
        for before in back.get(queue.pop(), []):
            if before not in free:
                free.add(before)
                queue.append(before)
    return [world for world in graph.moves if world not in free]


def _spins(explorer: Explorer, world: World, who: int) -> bool:
    thread = world.threads[who]
    if not thread.frames or explorer.protocol.in_handler(thread):
        return False
    return explorer.protocol.step(world.core, thread, who).status is Status.BLOCKED


def env_of(state: State) -> tuple[int, ...]:
    """Return the environment of a state's expressions."""
    return (*state.cpu, *state.task, *state.core[0], *state.core[1])
