"""The guarded commands: run on numbers they are, one by one and in order, what stepping the protocol gives."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.proofs import ALTERNATIVES, CATALOGUE, World, has_element, mutant, world_for
from asikit.proofs._table import MoveTable
from asikit.proofs.relation import ANYWHERE, KERNEL, NO_HANDLER, USER, Relation
from asikit.protocol import AsiClass, Happening, Protocol, ProtocolConfig
from tests.proofs.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

USERSPACE = frozenset({AsiClass.USERSPACE})
SMALL = ProtocolConfig(classes=USERSPACE)
WORLDS = {
    "one thread": world_for(threads=1),
    "two threads": replace(world_for(threads=2), kernel_work=(Happening.UNMAPPED_TOUCH, Happening.MM_SWITCH)),
    "guests alone": world_for(threads=1, classes=(AsiClass.KVM,)),
    "handlers two deep": replace(World(Protocol(SMALL), nesting=2), kernel_work=(Happening.UNMAPPED_TOUCH,), faults=()),
    "blanket": world_for("blanket", threads=1, nesting=2),
    "PTI": World(Protocol(replace(SMALL, pti=True))),
    "NOFLUSH": World(Protocol(replace(SMALL, noflush=True))),
    "PTI and NOFLUSH": World(Protocol(replace(SMALL, pti=True, noflush=True)), nesting=0),
    "interrupts that stay pending": mutant("untrusted-kept-in-entries").edit(
        replace(world_for(threads=2, classes=USERSPACE), kernel_work=(Happening.UNMAPPED_TOUCH,), faults=())
    ),
    "no shootdown": replace(World(Protocol(SMALL)), shootdown=False),
    "no shootdown, NOFLUSH": replace(World(Protocol(replace(SMALL, noflush=True)), nesting=0), shootdown=False),
}


def differences(world: World) -> Iterator[str]:
    """Yield threads that are reached at which the model does not do what the oracle does."""
    oracle = Oracle(world)
    table = MoveTable(oracle)
    table.close()
    numbers, seen = (table.row_of >= 0).nonzero()
    assert len(numbers) > 50
    for number, shared in zip(numbers.tolist(), seen.tolist(), strict=True):
        thread = table.threads[number]
        if list(world.moves(thread, shared)) != list(oracle.moves(thread, shared)):
            yield f"moves of {thread} with {shared:#x}"
        if world.spins(thread, shared) != oracle.spins(thread, shared):
            yield f"whether {thread} with {shared:#x} waits"


@pytest.mark.parametrize("name", WORLDS)
def test_against_the_oracle(name: str) -> None:
    """The same moves in the same order, and the same waits, at every thread that is ever reached."""
    assert list(differences(WORLDS[name])) == []


FIRST = {entry.family: entry.name for entry in (*reversed(CATALOGUE), *reversed(ALTERNATIVES))}
"""One mutant of each family; `make test-all` takes all."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(entry.name, marks=[] if entry.name in FIRST.values() else pytest.mark.slow)
        for entry in (*CATALOGUE, *ALTERNATIVES)
    ],
)
def test_mutants_against_the_oracle(name: str) -> None:
    """Mutants break rules, wait for ever and fault again: all of that is said alike."""
    candidate = mutant(name)
    for threads in (1, 2):
        world = world_for(threads=threads, nesting=0 if threads > 1 else 1, classes=USERSPACE)
        if has_element(world, candidate):
            changed = candidate.edit(candidate.base(world))
            assert list(differences(replace(changed, kernel_work=(*changed.kernel_work[:1], "mm_switch")))) == []


def test_the_way_of_a_system_call() -> None:
    """As data: from user mode through the entry into ordinary code, each command where the one before went."""
    relation = Relation(world_for(threads=1))
    at, ways = USER, []
    while at != KERNEL:
        command = next(relation.commands_at(at))
        ways.append(str(command))
        at = command.goes
    assert ways == ["begins syscall_entry", "syscall_entry.leave_untrusted", "syscall_entry.relax"]


def test_handlers_open_a_level() -> None:
    """An interrupt, and a fault of ordinary code; nothing else does, and only a return closes it."""
    relation = Relation(world_for(threads=1))
    opens = {str(command) for command in relation.commands if command.opens}
    assert opens == {f"interrupted by {name}" for name in ("nested_nmi", "nested_page_fault", "double_fault")}
    closes = {command.at.program for command in relation.commands if command.goes == NO_HANDLER}
    assert closes == {"nested_return"}


@pytest.mark.parametrize("shootdown", [True, False])
def test_memory_turns_sensitive_only_where_nobody_sees_to_the_tlbs(*, shootdown: bool) -> None:
    """And then it is a command, that may happen anywhere."""
    relation = Relation(replace(world_for(threads=1), shootdown=shootdown))
    assert len(list(relation.commands_at(ANYWHERE))) == int(not shootdown)
    assert {str(command) for command in relation.commands if command.verb == "turns sensitive"} == (
        set() if shootdown else {"turns sensitive a page whose translation this thread's TLB has"}
    )
