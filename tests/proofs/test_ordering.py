"""The order in which a counterexample is told: the same steps, and no other order of them is easier to follow."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from asikit.proofs import mutant, world_for
from asikit.proofs._ordering import with_fewest_switches
from asikit.proofs.explore import Path, explore
from tests.proofs.reference import Core, Reference

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.proofs import World

    Steps = Sequence[tuple[str, str]]


def found_in(world: World) -> Path:
    """Return the path that exploring comes up with."""
    explored = explore(world)
    found = explored.leak or explored.stuck
    assert found is not None
    return found


def switches(threads: Sequence[int]) -> int:
    """Count how often it goes from one thread to the other."""
    return sum(one != other for one, other in pairwise(threads))


def names(path: Path, who: int) -> list[tuple[str, str]]:
    """Return what a thread does."""
    return [(step.move.verb, step.move.name) for step in path.steps if step.thread == who]


@pytest.mark.parametrize(
    "name", ["no-stun-interrupt", "stun-check-not-atomic", "release-before-data-flush", "no-core-scheduling"]
)
def test_the_same_steps_to_the_same_end(name: str) -> None:
    """Each thread does what it did; both are then what they were; and it goes back and forth less."""
    world = mutant(name).edit(world_for(threads=2, nesting=0))
    found = found_in(world)
    told = with_fewest_switches(world, found)
    assert [names(told, who) for who in (0, 1)] == [names(found, who) for who in (0, 1)]
    assert (told.threads, told.shared) == (found.threads, found.shared)
    assert switches([step.thread for step in told.steps]) < switches([step.thread for step in found.steps])


def test_no_order_is_easier() -> None:
    """All orders that switch less often are tried, one by one: none of them leads there."""
    world = mutant("release-before-data-flush").edit(world_for(threads=2, nesting=0))
    found = found_in(world)
    reference = Reference(world)
    own = names(found, 0), names(found, 1)
    least = switches([step.thread for step in with_fewest_switches(world, found).steps])
    assert least > 1
    assert not any(
        leads_there(reference, reference.start(), own, found, switches=least - 1, last=who) for who in (0, 1)
    )
    assert any(leads_there(reference, reference.start(), own, found, switches=least, last=who) for who in (0, 1))


def leads_there(
    reference: Reference, core: Core, left: tuple[Steps, Steps], path: Path, *, switches: int, last: int
) -> bool:
    """Whether two threads can take their steps, with so many switches at most, to a path's end and a leak."""
    if not any(left):
        return (core.threads, core.shared) == (path.threads, path.shared) and reference.leaks(core)
    for who in (0, 1) if switches else (last,):
        rest = (left[0][who == 0 :], left[1][who == 1 :])
        for move in reference.world.moves(core.threads[who], reference.seen_by(core, who)) if left[who] else ():
            after = reference.after(core, who, move)
            if (move.verb, move.name) == left[who][0] and leads_there(
                reference, after, rest, path, switches=switches - (who != last), last=who
            ):
                return True
    return False
