"""The exploration: its numbers, against two others that were written apart from it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pytest

from asikit.proofs import TooLargeError, World, mutant, world_for
from asikit.proofs.explore import Explored, explore
from asikit.proofs.mutants import CATALOGUE
from asikit.protocol import AsiClass, Happening, Protocol, ProtocolConfig, blanket_config
from asikit.protocol.invariants import step_invariants
from tests.proofs.legacy import Legacy
from tests.proofs.reference import Reference
from tests.protocol.exploring import Explorer
from tests.protocol.test_interleavings import KERNEL_WORK, ONE_THREAD, TWO_THREADS
from tests.protocol.test_interleavings import USERSPACE as USERSPACE_ONLY

if TYPE_CHECKING:
    from asikit.proofs import Thread

USERSPACE = (AsiClass.USERSPACE,)


@pytest.mark.parametrize("name", ONE_THREAD)
def test_the_numbers_of_the_protocols_own_tests(name: str) -> None:
    """One thread: the compiled exploration reaches as many states as the explorer of `tests/protocol`."""
    config, nmis, states = ONE_THREAD[name]
    explored = explore(Legacy(Explorer(Protocol(config), nmis=nmis, extra=KERNEL_WORK)))
    assert (explored.states, explored.leak, explored.stuck) == (states, None, None)


@pytest.mark.parametrize(
    ("others", "nmis", "states"),
    [
        (frozenset(), 0, 5_878),
        (frozenset(), 1, 266_195),
        (frozenset({AsiClass.IDLE}), 0, 20_773),
        (frozenset({AsiClass.KVM}), 0, 68_824),
    ],
)
def test_the_numbers_of_the_protocols_own_tests_with_two_threads(
    others: frozenset[AsiClass], nmis: int, states: int
) -> None:
    """Two threads, each state counted: the same again."""
    config = replace(TWO_THREADS, classes=USERSPACE_ONLY | others)
    explored = explore(Legacy(Explorer(Protocol(config), threads=2, nmis=nmis)), symmetric=False)
    assert (explored.states, explored.leak, explored.stuck) == (states, None, None)


SMALL = {
    "one thread, a process": world_for(threads=1, classes=USERSPACE),
    "one thread, with guests": replace(world_for(threads=1), faults=(), kernel_work=(Happening.UNMAPPED_TOUCH,)),
    "one thread, without NMIs": world_for(threads=1, nesting=0),
    "blanket": world_for("blanket", threads=1, nesting=0),
    "PTI too": World(Protocol(ProtocolConfig(pti=True, classes=frozenset(USERSPACE)))),
    "noflush": World(Protocol(ProtocolConfig(noflush=True, classes=frozenset(USERSPACE))), nesting=0),
    "two threads": replace(
        world_for(threads=2, nesting=0), kernel_work=(Happening.UNMAPPED_TOUCH, Happening.MM_SWITCH)
    ),
}


@pytest.mark.parametrize("name", SMALL)
def test_against_plain_python(name: str) -> None:
    """States and transitions are those of a search over sets, step by step through `Protocol.step`."""
    world = SMALL[name]
    explored = explore(world, symmetric=False)
    assert (explored.states, explored.transitions, explored.leak is not None) == Reference(world, reduced=True).run()


def test_symmetry() -> None:
    """Counting two states as one that differ only in which thread is the first: the same with a third program."""
    world = replace(world_for(threads=2, nesting=0), kernel_work=(Happening.UNMAPPED_TOUCH,), faults=())
    explored = explore(world)
    assert (explored.states, explored.transitions) == Reference(world, reduced=True, symmetric=True).run()[:2]
    assert explored.states < explore(world, symmetric=False).states


@dataclass(frozen=True)
class Unreduced(World):
    """The model with every interleaving tried, whether it makes a difference or not."""

    def is_private(self, thread: "Thread", shared: int) -> bool:
        """Nothing is taken for a thread's own business."""
        del thread, shared
        return False


def unreduced(world: World) -> World:
    """Return the same world without the reduction."""
    return Unreduced(**{name: getattr(world, name) for name in world.__dataclass_fields__ if name != "layout"})


def outcome(explored: Explored) -> tuple[bool, bool, bool]:
    """Return what was found."""
    return explored.leak is not None, explored.stuck is not None, explored.broken is not None


@pytest.mark.parametrize("name", [None, *(entry.name for entry in CATALOGUE if entry.family == "stun")])
def test_reductions_lose_nothing(name: str | None) -> None:
    """Without them there are more states, and the verdicts are the same."""
    world = replace(world_for(threads=2, nesting=0), kernel_work=(Happening.UNMAPPED_TOUCH, Happening.MM_SWITCH))
    world = world if name is None else mutant(name).edit(world)
    reduced, full = explore(world), explore(unreduced(world), symmetric=False)
    assert outcome(reduced) == outcome(full)
    assert reduced.states < full.states


def test_every_invariant_of_the_protocol_holds() -> None:
    """In everything that a thread can be with its shared bits, the protocol's own invariants hold."""
    from asikit.proofs.explore import _Exploration  # noqa: PLC0415  (imports numba)
    from asikit.proofs.threads import core_of  # noqa: PLC0415

    for world in (world_for(threads=1), world_for(threads=2, nesting=0)):
        invariants = [(item.name, item.guard.compiled()) for item in step_invariants(world.config)]
        search = _Exploration(world, symmetric=False, limit=1_000_000)
        search.run(lambda _: None)
        reached = [
            (int(number), int(shared)) for number, shared in zip(*(search.table.row_of >= 0).nonzero(), strict=True)
        ]
        assert len(reached) > 500
        for number, shared in reached:
            thread = search.table.threads[number].state
            core, _ = core_of(shared)
            env = (*thread.cpu, *thread.task, *core[0], *core[1])
            assert [name for name, holds in invariants if not holds(env)] == []


def test_two_threads_with_nmis_anywhere() -> None:
    """NMIs on both threads, wherever they are: nothing is found, with the reductions and without."""
    world = replace(world_for(threads=2), kernel_work=(Happening.UNMAPPED_TOUCH,), faults=())
    reduced, full = explore(world), explore(unreduced(world))
    assert outcome(reduced) == outcome(full) == (False, False, False)
    assert (reduced.states, full.states) == (3_709_733, 5_525_970)


def test_limit() -> None:
    """Too many states end in an error, not in a verdict."""
    with pytest.raises(TooLargeError, match="more than 1,000 states"):
        explore(world_for(threads=2), limit=1_000)


def test_the_blanket_mitigation() -> None:
    """Without NMIs it holds; an NMI between its flush and its return leaks; so does a gadget there."""
    assert outcome(explore(world_for("blanket", threads=1, nesting=0))) == (False, False, False)
    assert outcome(explore(world_for("blanket", threads=1)))[0]
    assert outcome(explore(World(Protocol(blanket_config()), nesting=0)))[0]


def test_a_process_and_its_own_guest_on_sibling_threads() -> None:
    """What two threads cannot keep apart: the taints of one say nothing of what the other left."""
    world = world_for(threads=2, nesting=0, classes=(AsiClass.USERSPACE, AsiClass.KVM))
    assert outcome(explore(world)) == (False, False, False)
    assert outcome(explore(replace(world, trusting=False)))[0]


def test_a_class_that_is_not_there_is_trusted() -> None:
    """Guests alone: user mode runs unrestricted, and learns whatever it likes."""
    world = world_for(threads=1, classes=(AsiClass.KVM,))
    assert outcome(explore(world)) == (False, False, False)
    assert outcome(explore(mutant("no-verw").edit(world)))[0]
