"""T3: how often ASI flushes, against the blanket mitigation."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asikit.proofs import world_for
from asikit.proofs.costs import CostWorld
from asikit.proofs.explore import explore
from asikit.protocol import EffectKind, MicroOp, Protocol
from asikit.protocol.operations import Request


@pytest.mark.parametrize(("nesting", "states"), [(0, 1_927), (1, 44_085)])
def test_no_more_flushes_but_for_nested_exits(nesting: int, states: int) -> None:
    """The account never goes below zero while untrusted code runs."""
    explored = explore(CostWorld(world_for(threads=1, nesting=nesting)))
    assert (explored.broken, explored.states) == (None, states)


@pytest.mark.parametrize("kind", [EffectKind.IBPB, EffectKind.L1D_FLUSH])
def test_one_flush_too_many(kind: EffectKind) -> None:
    """A protocol that flushes at each system call too overdraws it."""
    world = world_for(threads=1, nesting=0)
    extra = MicroOp(name="extra", asks=Request(kind))
    changed = world.protocol.inserting(extra, after="syscall_entry.leave_untrusted").inserting(
        replace(extra, name="another"), after="syscall_entry.leave_untrusted"
    )
    assert isinstance(changed, Protocol)
    broken = explore(CostWorld(replace(world, protocol=changed))).broken
    assert broken is not None
    assert broken.threads[0].broken == "a flush that the blanket mitigation would not make"
