"""The exploration: its numbers, against two others that were written apart from it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.proofs import TooLargeError, World, has_element, mutant, world_for
from asikit.proofs._quotient import Quotient
from asikit.proofs._table import MoveTable
from asikit.proofs.explore import Explored, _Exploration, explore
from asikit.proofs.threads import core_of
from asikit.protocol import AsiClass, Happening, Protocol, ProtocolConfig, blanket_config
from asikit.protocol.invariants import step_invariants
from asikit.threat import CATALOGUE
from tests.proofs.legacy import Legacy
from tests.proofs.reference import Reference
from tests.protocol.exploring import Explorer
from tests.protocol.exploring import explore as walk
from tests.protocol.test_interleavings import KERNEL_WORK, NMI_IN_NMI, ONE_THREAD, TWO_THREADS
from tests.protocol.test_interleavings import USERSPACE as USERSPACE_ONLY

if TYPE_CHECKING:
    from asikit.proofs import Thread

USERSPACE = (AsiClass.USERSPACE,)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == NMI_IN_NMI else []) for name in ONE_THREAD]
)
def test_the_numbers_of_the_protocols_own_tests(name: str) -> None:
    """One thread: the compiled exploration reaches as many states as the explorer of `tests/protocol`."""
    config, nmis, states = ONE_THREAD[name]
    explored = explore(Legacy(Explorer(Protocol(config), nmis=nmis, extra=KERNEL_WORK)))
    assert (explored.states, explored.leak, explored.stuck) == (states, None, None)


@pytest.mark.parametrize(
    "others",
    [
        pytest.param(frozenset(), id="userspace"),
        pytest.param(frozenset({AsiClass.IDLE}), id="idle"),
        pytest.param(frozenset({AsiClass.KVM}), id="kvm", marks=pytest.mark.slow),
    ],
)
def test_the_explorer_of_the_protocols_own_tests_with_two_threads(others: frozenset[AsiClass]) -> None:
    """Two threads, each state counted: as many as that explorer reaches when it tries every order."""
    config = replace(TWO_THREADS, classes=USERSPACE_ONLY | others)
    explorer = Explorer(Protocol(config), threads=2, nmis=0, reduced=False)
    explored = explore(Legacy(explorer), reduced=False)
    assert (explored.states, explored.leak, explored.stuck) == (len(walk(explorer).moves), None, None)


SMALL = {
    "one thread, a process": world_for(threads=1, classes=USERSPACE),
    "one thread, with guests": replace(world_for(threads=1), faults=(), kernel_work=(Happening.UNMAPPED_TOUCH,)),
    "one thread, without NMIs": world_for(threads=1, nesting=0),
    "blanket": world_for("blanket", threads=1, nesting=0),
    "PTI too": World(Protocol(ProtocolConfig(pti=True, classes=frozenset(USERSPACE)))),
    "noflush": World(Protocol(ProtocolConfig(noflush=True, classes=frozenset(USERSPACE))), nesting=0),
    "two threads": replace(
        world_for(threads=2, nesting=0, classes=USERSPACE), kernel_work=(Happening.UNMAPPED_TOUCH, Happening.MM_SWITCH)
    ),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "two threads" else ()) for name in SMALL]
)
def test_against_plain_python(name: str) -> None:
    """States and transitions are those of a search over sets, step by step through `Protocol.step`."""
    world = SMALL[name]
    explored = explore(world, reduced=False)
    assert (explored.states, explored.transitions, explored.leak is not None) == Reference(world).run()


REDUCIBLE = {
    1: world_for(threads=1),
    2: replace(
        world_for(threads=2, nesting=0, classes=USERSPACE),
        kernel_work=(Happening.UNMAPPED_TOUCH, Happening.MM_SWITCH),
    ),
}


def outcome(explored: Explored) -> list[int | None]:
    """Return how far away the nearest leak, deadlock and broken rule are; None where there is none."""
    return [None if path is None else len(path.steps) for path in (explored.leak, explored.stuck, explored.broken)]


@pytest.mark.slow
@pytest.mark.parametrize("name", [None, *(entry.name for entry in CATALOGUE)])
def test_reductions_lose_nothing(name: str | None) -> None:
    """Without them there are more states, and the same is found, at the same distance."""
    for world in REDUCIBLE.values():
        if name is not None and not has_element(world, mutant(name)):
            continue
        changed = world if name is None else mutant(name).edit(mutant(name).base(world))
        reduced, full = explore(changed, reduced=True), explore(changed, reduced=False)
        assert outcome(reduced) == outcome(full)
        assert reduced.states < full.states or reduced.leak is not None


@pytest.mark.parametrize("threads", [1, 2])
def test_what_two_threads_may_come_to(threads: int) -> None:
    """Thought of thread by thread, it is just what exploring state by state comes to."""
    world = REDUCIBLE[threads]
    table = MoveTable(world)
    table.close()
    search = _Exploration(world, reduced=False, limit=10_000_000)
    search.run(lambda _: None)
    assert isinstance(search.table, MoveTable)
    assert filled(table) == filled(search.table)


def filled(table: MoveTable) -> set[tuple[Thread, int]]:
    """Return what a thread can be and the shared bits that it sees then, as far as rows are there."""
    numbers, seen = (table.row_of >= 0).nonzero()
    return {(table.threads[number], int(shared)) for number, shared in zip(numbers, seen, strict=True)}


@pytest.mark.parametrize("threads", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_classes_are_the_coarsest_bisimulation(threads: int) -> None:
    """As many as splitting everything again and again gives, until nothing is split any more."""
    table = MoveTable(REDUCIBLE[threads])
    table.close()
    class_of = dict.fromkeys(range(table.count), 0)
    while True:
        parts = {number: signature(table, number, class_of) for number in class_of}
        names = {part: name for name, part in enumerate(dict.fromkeys(parts.values()))}
        if len(names) == len(set(class_of.values())):
            break
        class_of = {number: names[part] for number, part in parts.items()}
    quotient = Quotient(table)
    assert quotient.count == len(names) < table.count
    pairs = {(class_of[number], quotient.number(thread)) for number, thread in enumerate(table.threads)}
    assert len(pairs) == len(names)


def signature(table: MoveTable, number: int, class_of: dict[int, int]) -> frozenset[object]:
    """Return what tells a thread from others, given classes: each row, with classes for what moves lead to."""
    rows = []
    for shared in (table.row_of[number] >= 0).nonzero()[0].tolist():
        first, count, *means = table.rows.values[table.row_of[number, shared]].tolist()
        moves = table.moves.values[first : first + count].tolist()
        rows.append((shared, *means, frozenset((class_of[to], *rest) for to, *rest in moves)))
    return frozenset(rows)


def test_every_invariant_of_the_protocol_holds() -> None:
    """In everything that a thread can be with its shared bits, the protocol's own invariants hold."""
    for world in (world_for(threads=1), world_for(threads=2, nesting=0)):
        invariants = [(item.name, item.guard.compiled()) for item in step_invariants(world.config)]
        table = MoveTable(world)
        table.close()
        assert table.rows.count > 500
        for thread, shared in filled(table):
            core, _ = core_of(shared)
            env = (*thread.state.cpu, *thread.state.task, *core[0], *core[1])
            assert [name for name, holds in invariants if not holds(env)] == []


@pytest.mark.slow
def test_two_threads_with_nmis_anywhere() -> None:
    """NMIs on both threads, wherever they are: nothing is found, with the reductions and without."""
    world = replace(world_for(threads=2, classes=USERSPACE), kernel_work=(Happening.UNMAPPED_TOUCH,), faults=())
    reduced, full = explore(world), explore(world, reduced=False)
    assert outcome(reduced) == outcome(full) == [None, None, None]
    assert (reduced.states, full.states) == (3_410_236, 11_048_509)


def test_limit() -> None:
    """Too many states end in an error, not in a verdict."""
    with pytest.raises(TooLargeError, match="more than 1,000 states"):
        explore(world_for(threads=2), limit=1_000)


def test_the_blanket_mitigation() -> None:
    """Without NMIs it holds; an NMI between its flush and its return leaks; so does a gadget there."""
    assert outcome(explore(world_for("blanket", threads=1, nesting=0))) == [None, None, None]
    assert explore(world_for("blanket", threads=1)).leak
    assert explore(World(Protocol(blanket_config()), nesting=0)).leak


def test_a_process_and_its_own_guest_on_sibling_threads() -> None:
    """What two threads cannot keep apart: the taints of one say nothing of what the other left."""
    world = world_for(threads=2, nesting=0, classes=(AsiClass.USERSPACE, AsiClass.KVM))
    assert outcome(explore(world)) == [None, None, None]
    assert explore(replace(world, trusting=False)).leak


def test_a_class_that_is_not_there_is_trusted() -> None:
    """Guests alone: user mode runs unrestricted, and learns whatever it likes."""
    world = world_for(threads=1, classes=(AsiClass.KVM,))
    assert outcome(explore(world)) == [None, None, None]
    assert explore(mutant("no-verw").edit(world)).leak
