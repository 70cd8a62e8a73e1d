"""The allocator against an independent account of it (`model.py`): 111,000 random operations, and some that shrink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from tests.machine.mm.alloc.model import ATOMIC_REQUESTS, ATTRIBUTES, REQUESTS, Allocation, Model, random_run
from tests.machine.mm.alloc.rig import Rig

if TYPE_CHECKING:
    from hypothesis.stateful import MultipleResults

    from asikit.machine.mm import Gfp

MACHINES: tuple[dict[str, Any], ...] = (
    {"frames": 832, "pageblock_order": 3, "debug": True},
    {"frames": 768, "pageblock_order": 4, "debug": False},
    {"frames": 768, "pageblock_order": 3, "debug": True, "dma32_end": 384},
    {"frames": 771, "pageblock_order": 5, "debug": False, "levels": 5},
    {"frames": 640, "pageblock_order": 4, "debug": True, "max_order": 7},
    {"frames": 768, "pageblock_order": 5, "debug": False, "dma32_end": 384, "max_order": 5},
    {"frames": 768, "pageblock_order": 4, "debug": True, "asi": False},
)
"""Small, so that both sensitivities run out of memory, and large orders are a large part of it."""

LARGE: dict[str, Any] = {"max_order": 10, "order_rate": 0.4}
"""Allocations of all orders, where blocks are of 512 pages."""

OPERATIONS = 15_000


@pytest.mark.parametrize("seed", range(len(MACHINES)))
def test_many_operations(seed: int) -> None:
    """105,000 here, and 6,000 with pageblocks of 2 MiB. Each kind of event must have been among them."""
    model = random_run(OPERATIONS, seed=seed, check_every=350, **MACHINES[seed])
    counters = model.allocator.counters
    assert model.operations >= OPERATIONS
    assert model.out_of_memory > 50
    assert sum(zone.claims for zone in model.allocator.zones) > 10
    assert counters.bad_pages == 0
    if model.allocator.asi:
        assert min(counters.flips_to_sensitive, counters.flips_to_nonsensitive) >= 5
    model.allocator.check()


def test_many_operations_with_real_pageblocks() -> None:
    """2 MiB pageblocks and large mappings, which set_memory_* splits in both maps."""
    model = random_run(6000, seed=99, check_every=1000, frames=8 * 512, pageblock_order=9, debug=False, dice=LARGE)
    assert model.allocator.counters.flips_to_nonsensitive >= 5
    assert len(model.tables) > 10
    model.allocator.check()


class AllocatorMachine(RuleBasedStateMachine):
    """The same operations, chosen by Hypothesis; everything is checked after each."""

    allocations: Bundle[Allocation] = Bundle("allocations")

    @initialize(
        order=st.integers(2, 4),
        extra=st.integers(0, 1),
        split=st.booleans(),
        batch=st.integers(1, 6),
        debug=st.booleans(),
    )
    def boot(self, order: int, extra: int, split: bool, batch: int, debug: bool) -> None:
        """A machine of 256 frames."""
        rig = Rig(
            256,
            pageblock_order=order,
            max_order=order + extra,
            dma32_end=128 if split else None,
            debug=debug,
        )
        for pcps in rig.allocator.pcp:
            for pcp in pcps:
                pcp.batch, pcp.high = batch, 4 * batch
        for zone in rig.allocator.zones:
            zone.watermark_min, zone.watermark_low = 4, 6
        self.model = Model(rig)

    @rule(
        target=allocations,
        gfp=st.sampled_from(REQUESTS + ATOMIC_REQUESTS),
        order=st.integers(0, 5),
        cpu=st.integers(0, 1),
        times=st.integers(1, 12),
    )
    def alloc(self, gfp: Gfp, order: int, cpu: int, times: int) -> MultipleResults[Allocation]:
        """Some of one kind."""
        made = [self.model.alloc(gfp, order, cpu) for _ in range(times)]
        return multiple(*(allocation for allocation in made if allocation is not None))

    @rule(allocation=consumes(allocations), cpu=st.integers(0, 1))
    def free(self, allocation: Allocation, cpu: int) -> None:
        """One."""
        self.model.free(allocation, cpu)

    @rule(cpu=st.sampled_from((0, 1, None)))
    def drain(self, cpu: int | None) -> None:
        """One CPU's lists, or all."""
        self.model.drain(cpu)

    @rule(allocation=allocations, attribute=st.sampled_from(ATTRIBUTES), frames=st.integers(1, 8))
    def set_memory(self, allocation: Allocation, attribute: str, frames: int) -> None:
        """The first frames of one."""
        self.model.set_memory(attribute, allocation.pfn, min(frames, 1 << allocation.order))

    @rule(pfn=st.integers(0, 255))
    def remove_restricted(self, pfn: int) -> None:
        """Any page whatever."""
        self.model.rig.direct_map.remove_restricted(pfn)

    @invariant()
    def holds(self) -> None:
        """By the independent account, and by the allocator's own check."""
        self.model.check()
        self.model.allocator.check()


TestAllocatorMachine = AllocatorMachine.TestCase
TestAllocatorMachine.settings = settings(
    max_examples=35,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
