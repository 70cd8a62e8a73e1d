"""The TLB generations: I9, that no TLB entry outlives the mapping it came from where it could be used.

A page leaves the restricted address space and becomes sensitive while a CPU enters and exits as it likes, NMIs
included; the TLB keeps what nobody flushes. All schedules are tried.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import pytest

from asikit.protocol import (
    AsiClass,
    CoreState,
    Effect,
    EffectKind,
    Happening,
    Protocol,
    ProtocolConfig,
    Space,
    ThreadState,
)
from asikit.protocol.expressions import ALWAYS
from asikit.protocol.tlb import (
    DomainId,
    FlushPlan,
    Generation,
    Generations,
    SeenGenerations,
    cpus_to_interrupt,
    plan_flush,
)
from tests.protocol.exploring import NESTED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

H = Happening
CONFIG = ProtocolConfig(classes=frozenset({AsiClass.USERSPACE}), noflush=True)
SPACE = Space.USERSPACE
FLUSHER = ("unmap", "count", "look", "wait", "reuse", "done")


class World(NamedTuple):
    """A CPU, the page and who makes it sensitive."""

    core: CoreState
    thread: ThreadState
    flusher: int = 0
    ipi: str = ""
    """The flusher's interrupt: empty, `sent`, or `handled` while its handler flushes."""
    entry: bool = False
    """The CPU's TLB has an entry for the page in the restricted address space."""
    secret_in_cache: bool = False

    @property
    def mapped(self) -> bool:
        """The page is in the restricted page tables."""
        return self.flusher == 0

    @property
    def sensitive(self) -> bool:
        """The page holds a secret."""
        return FLUSHER[self.flusher] == "done"


@dataclass(frozen=True)
class Model:
    """A protocol and a flusher."""

    protocol: Protocol
    steps: tuple[str, ...] = FLUSHER

    def moves(self, world: World) -> Iterator[World]:
        """Yield all that may happen next."""
        yield from self._flusher_moves(world)
        yield from (self._settle(after) for after in self._cpu_moves(world))

    def _flusher_moves(self, world: World) -> Iterator[World]:
        step = self.steps[world.flusher]
        on = world._replace(flusher=world.flusher + 1)
        if step in ("unmap", "reuse"):
            yield on
        elif step == "count":
            cpu = world.thread.cpu
            stale = cpu.tlb_stale | (1 << Space.UNRESTRICTED) | (1 << SPACE)
            yield on._replace(thread=world.thread._replace(cpu=cpu._replace(tlb_stale=stale, tlb_read=0)))
        elif step == "look":
            interrupted = cpus_to_interrupt({0: world.thread.cpu.curr_asi}, {0: 1})
            yield on._replace(ipi="sent" if interrupted else "")
        elif step == "wait" and not world.ipi:
            yield on

    def _cpu_moves(self, world: World) -> Iterator[World]:
        protocol, thread, core = self.protocol, world.thread, world.core
        ordinary = not thread.frames or protocol.in_handler(thread)
        if not ordinary:
            done = protocol.step(core, thread, 0)
            yield affected(world._replace(core=done.core, thread=done.thread), done.effect)
        elif core.first.untrusted:
            for entry in (H.SYSCALL_ENTRY, H.INTERRUPT_ENTRY):
                yield world._replace(thread=protocol.begin(thread, entry))
            return
        elif world.ipi == "handled":
            yield world._replace(ipi="", thread=protocol.leave(thread))
        elif protocol.in_handler(thread):
            yield world._replace(thread=protocol.leave(thread))
            yield world._replace(thread=protocol.begin(thread, H.UNMAPPED_TOUCH))
        else:
            for happening in (H.RETURN_USER, H.UNMAPPED_TOUCH):
                if happening is not H.RETURN_USER or not world.ipi:  # taken at once when interrupts go on
                    yield world._replace(thread=protocol.begin(thread, happening))
        if not any(frame.program in NESTED for frame in thread.frames):
            if world.ipi == "sent" and ordinary:
                handler = protocol.interrupt(thread, H.NESTED_INTERRUPT)
                flush = handler.frames[:-1] + protocol.begin(replace_frames(handler), H.TLB_FLUSH_KERNEL).frames
                yield world._replace(ipi="handled", thread=thread._replace(frames=(*flush, *handler.frames[-1:])))
            yield world._replace(thread=protocol.interrupt(thread, H.NESTED_NMI))

    def _settle(self, world: World) -> World:
        cpu = world.thread.cpu
        if cpu.cr3 == SPACE:
            entry = world.entry or world.mapped
            return world._replace(entry=entry, secret_in_cache=world.secret_in_cache or (entry and world.sensitive))
        return world._replace(secret_in_cache=True)

    def leaks(self, world: World) -> bool:
        """Untrusted code runs and can reach the secret: through the TLB, or in the cache."""
        reachable = world.secret_in_cache or (world.entry and world.sensitive)
        return bool(world.core.first.untrusted) and not world.thread.frames and reachable

    def find_leak(self) -> tuple[bool, int]:
        """Return whether a schedule leaks, and how many states were visited."""
        protocol = self.protocol
        core = CoreState()
        start = World(core, protocol.initial_thread())
        seen, queue = {start}, deque([start])
        while queue:
            world = queue.popleft()
            if self.leaks(world):
                return True, len(seen)
            for after in self.moves(world):
                if after not in seen:
                    seen.add(after)
                    queue.append(after)
        return False, len(seen)


def replace_frames(thread: ThreadState) -> ThreadState:
    """Return the thread without frames."""
    return thread._replace(frames=())


def affected(world: World, effect: Effect | None) -> World:
    """Return the world after an effect."""
    if effect is None:
        return world
    if effect.kind is EffectKind.L1D_FLUSH:
        return world._replace(secret_in_cache=False)
    flushes = effect.kind is EffectKind.TLB_FLUSH or (effect.kind is EffectKind.WRITE_CR3 and not effect.noflush)
    return world._replace(entry=False) if flushes and effect.space is SPACE else world


def test_no_tlb_entry_outlives_its_mapping() -> None:
    """I9 in all schedules of a CPU with NMIs and a flusher."""
    assert Model(Protocol(CONFIG)).find_leak() == (False, 77_528)


def never_checked(protocol: Protocol) -> Protocol:
    """NOFLUSH whatever the generation says."""
    return protocol.rewriting(lambda path, op: replace(op, when=ALWAYS) if path == "__asi_enter.read_tlb_gen" else op)


def curr_asi_late(protocol: Protocol) -> Protocol:
    """The barrier missing: the generation is read before the store to curr_asi is seen."""
    transition = protocol.transitions["__asi_enter"]
    store, write, keep = (
        transition.ops[transition.index(name)] for name in ("set_curr_asi", "write_cr3", "write_cr3_noflush")
    )
    return (
        protocol.without("__asi_enter.set_curr_asi")
        .replacing("__asi_enter.write_cr3", store, write)
        .replacing("__asi_enter.write_cr3_noflush", replace(store, name="set_curr_asi_too"), keep)
    )


def recorded_early(protocol: Protocol) -> Protocol:
    """The generation noted as seen before its flush: an NMI between them believes it."""
    return protocol.reordered("__asi_enter.record_tlb_gen", before="__asi_enter.write_cr3")


def recorded_blindly(protocol: Protocol) -> Protocol:
    """The generation of after the flush noted as seen, not the one of before."""
    return protocol.rewriting(lambda path, op: replace(op, when=ALWAYS) if path == "__asi_enter.record_tlb_gen" else op)


@pytest.mark.parametrize("mutate", [never_checked, curr_asi_late, recorded_early, recorded_blindly])
def test_each_part_of_entering_is_necessary(mutate: Callable[[Protocol], Protocol]) -> None:
    """Every way to weaken the entering CPU's side leaks."""
    assert Model(mutate(Protocol(CONFIG))).find_leak()[0]


@pytest.mark.parametrize(
    "steps",
    [
        ("unmap", "look", "count", "wait", "reuse", "done"),
        ("unmap", "count", "look", "reuse", "reuse", "done"),
        ("unmap", "reuse", "look", "wait", "reuse", "done"),
    ],
    ids=["looks before counting", "does not wait", "does not count"],
)
def test_each_part_of_flushing_is_necessary(steps: tuple[str, ...]) -> None:
    """Every way to weaken the flusher's side leaks."""
    assert Model(Protocol(CONFIG), steps).find_leak()[0]


def test_plan_of_a_flush() -> None:
    """Page by page only up to 33 pages and one generation behind."""
    assert plan_flush(seen=5, current=5, pages=1) is FlushPlan.NOTHING
    assert plan_flush(seen=4, current=5, pages=33) is FlushPlan.PAGES
    assert plan_flush(seen=4, current=5, pages=34) is FlushPlan.ADDRESS_SPACE
    assert plan_flush(seen=3, current=5, pages=1) is FlushPlan.ADDRESS_SPACE


def test_only_cpus_inside_are_interrupted() -> None:
    """Those with curr_asi set; for local memory only those with its mm."""
    curr_asi = {0: int(Space.USERSPACE), 1: 0, 2: int(Space.KVM)}
    loaded_mm = {0: 7, 1: 7, 2: 8}
    assert cpus_to_interrupt(curr_asi, loaded_mm) == {0, 2}
    assert cpus_to_interrupt(curr_asi, loaded_mm, mm=7) == {0}


def test_generations_against_a_tlb_that_keeps_everything() -> None:
    """All sequences of 6 flushes, enters and ASID changes: NOFLUSH is used only where no entry is outdated."""
    letters = ("flush a", "flush b", "flush all", "enter a", "enter b", "recycle")
    domains = {"a": DomainId(1, AsiClass.KVM), "b": DomainId(2, AsiClass.KVM)}
    kept = 0
    for sequence in product(letters, repeat=6):
        generations, seen = Generations(), SeenGenerations()
        outdated = {"a": True, "b": True}  # what a TLB that drops nothing by itself has
        for letter in sequence:
            verb, _, name = letter.partition(" ")
            if verb == "flush":
                generations = generations.flush_everywhere() if name == "all" else generations.flush(domains[name])
                outdated = {key: old or name in ("all", key) for key, old in outdated.items()}
            elif verb == "enter":
                if seen.is_current(0, domains[name], generations):
                    assert not outdated[name], sequence
                    kept += 1
                else:
                    generation = generations.of(domains[name])
                    seen = seen.record(0, domains[name], generation)
                    outdated = {key: key != name for key in outdated}  # one ASID: one domain's entries
            else:
                seen = seen.forget(0)
    assert kept == 14_930


def test_stale_bits() -> None:
    """What a machine with real counters puts into `CpuState.tlb_stale`."""
    generations = Generations().flush(DomainId(1, AsiClass.KVM))
    seen = SeenGenerations().record(3, DomainId(1, AsiClass.KVM), Generation(1, 0))
    assert seen.stale(3, 1, AsiClass, generations) == (1 << Space.USERSPACE) | (1 << Space.IDLE)
    assert seen.stale(3, 2, AsiClass, generations) == 0b1110
    assert seen.stale(3, 1, AsiClass, generations.flush_everywhere()) == 0b1110
