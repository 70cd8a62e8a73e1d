"""Freetypes and the per-CPU lists' numbers."""

from __future__ import annotations

import itertools

import pytest

from asikit.machine.mm import GFP_HIGHUSER_MOVABLE, GFP_KERNEL, GFP_USER, Gfp, Migratetype
from asikit.machine.mm.freetype import (
    NR_FREETYPES,
    can_merge_freetypes,
    free_to_migratetype,
    freetype_sensitive,
    gfp_freetype,
    migrate_to_freetype,
)
from asikit.machine.mm.pcplists import (
    NR_PCP_LISTS,
    PINDEX,
    PerCpuPages,
    order_to_pindex,
    pcp_allowed_order,
    pindex_sensitive,
    pindex_to_order,
    zone_batchsize,
    zone_highsize,
)


def test_freetype_holds_migratetype_and_sensitivity() -> None:
    """Both come back out, and no two pairs share a number."""
    pairs = list(itertools.product(Migratetype, (False, True)))
    freetypes = [migrate_to_freetype(*pair) for pair in pairs]
    assert sorted(freetypes) == list(range(NR_FREETYPES))
    assert [(free_to_migratetype(it), freetype_sensitive(it)) for it in freetypes] == pairs


@pytest.mark.parametrize(
    ("gfp", "migratetype", "sensitive"),
    [
        (GFP_KERNEL, Migratetype.UNMOVABLE, False),
        (GFP_KERNEL | Gfp.RECLAIMABLE, Migratetype.RECLAIMABLE, False),
        (GFP_KERNEL | Gfp.SENSITIVE, Migratetype.UNMOVABLE, True),
        (GFP_USER, Migratetype.UNMOVABLE, True),
        (GFP_HIGHUSER_MOVABLE, Migratetype.MOVABLE, True),
    ],
)
def test_freetype_of_a_request(gfp: Gfp, migratetype: Migratetype, sensitive: bool) -> None:
    """gfp_freetype; nonsensitive for all with ASI off."""
    assert gfp_freetype(gfp) == migrate_to_freetype(migratetype, sensitive)
    assert gfp_freetype(gfp, asi=False) == migrate_to_freetype(migratetype, sensitive=False)


def test_request_cannot_be_movable_and_reclaimable() -> None:
    """VM_WARN_ON in gfp_migratetype."""
    with pytest.raises(ValueError, match="MOVABLE and RECLAIMABLE"):
        gfp_freetype(Gfp.MOVABLE | Gfp.RECLAIMABLE)


def test_freetypes_merge_within_a_sensitivity_only() -> None:
    """Different migratetypes may merge if both are mergeable, different sensitivities never."""
    for one, other in itertools.product(range(NR_FREETYPES), repeat=2):
        expected = one == other or (
            freetype_sensitive(one) == freetype_sensitive(other)
            and Migratetype.HIGHATOMIC not in {free_to_migratetype(one), free_to_migratetype(other)}
        )
        assert can_merge_freetypes(one, other) == expected


def test_every_list_holds_one_order_and_one_sensitivity() -> None:
    """The KUnit test of the series: pindex and back, for all that have a list."""
    seen = set()
    for order, migratetype, sensitive in itertools.product(range(11), range(3), (False, True)):
        if not pcp_allowed_order(order):
            continue
        pindex = order_to_pindex(migrate_to_freetype(migratetype, sensitive), order)
        assert pindex_to_order(pindex) == order
        assert pindex_sensitive(pindex) == sensitive
        assert PINDEX[order][migrate_to_freetype(migratetype, sensitive)] == pindex
        seen.add(pindex)
    assert seen == set(range(NR_PCP_LISTS))


@pytest.mark.parametrize(("freetype", "order"), [(Migratetype.HIGHATOMIC, 0), (0, 4), (0, 10)])
def test_no_list_for_reserves_and_odd_orders(freetype: int, order: int) -> None:
    """They go to the zone directly."""
    with pytest.raises(ValueError, match="no per-CPU list"):
        order_to_pindex(freetype, order)


@pytest.mark.parametrize(("managed", "batch"), [(16_000, 3), (1 << 20, 63), (1 << 24, 63), (100, 1)])
def test_batch_sizes_are_the_kernels(managed: int, batch: int) -> None:
    """zone_batchsize: 63 for everything from a gigabyte on."""
    assert zone_batchsize(managed) == batch


def test_all_cpus_lists_together_hold_the_low_watermark() -> None:
    """zone_highsize, and at least four batches."""
    assert zone_highsize(3, 300, 2) == 150
    assert zone_highsize(63, 300, 2) == 252


def test_coldest_blocks_go_first_from_the_list_that_overflowed() -> None:
    """free_pcppages_bulk: this list's oldest first, then other lists in turn, until enough frames are gone."""
    pcp = PerCpuPages(batch=4, high=8)
    pcp.lists[3].extend([10, 20])
    pcp.lists[0].extend([1, 2, 3])
    pcp.count = 7
    assert pcp.take_coldest(5, 3) == [(10, 1), (20, 1), (1, 0)]
    assert pcp.count == 2
    assert pcp.take_coldest(100, 5) == [(2, 0), (3, 0)]
    assert pcp.count == 0
