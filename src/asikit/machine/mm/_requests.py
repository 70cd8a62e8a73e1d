"""A request for pages, worked out from its gfp flags: which zones, which list, which reserves, what it may do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING, NamedTuple

from asikit.machine.mm.freetype import gfp_migratetype, gfp_sensitive
from asikit.machine.mm.gfp import Gfp

if TYPE_CHECKING:
    from asikit.trace import PageKind


class Alloc(IntFlag):
    """`ALLOC_*` flags of mm/internal.h, those that matter here."""

    NOBLOCK = 0x10
    """No direct reclaim, and so no change of sensitivity: the caller may hold locks or have interrupts off."""
    MIN_RESERVE = 0x20
    NOFRAGMENT = 0x100
    HIGHATOMIC = 0x200


NOBLOCK = int(Alloc.NOBLOCK)
MIN_RESERVE = int(Alloc.MIN_RESERVE)
NOFRAGMENT = int(Alloc.NOFRAGMENT)
HIGHATOMIC = int(Alloc.HIGHATOMIC)


class AllocationRequest(NamedTuple):
    """What a sensitivity policy decides about: `allocated_by` is the allocating kernel function, empty if unknown."""

    gfp: Gfp
    kind: PageKind
    cache: str | None
    allocated_by: str


@dataclass(frozen=True, slots=True)
class RequestClass:
    """What follows from gfp flags alone; computed once for each combination.

    :ivar highest_zone: `gfp_zone()`: no zone above it.
    :ivar fast_flags: Flags of the first attempt (`init_alloc_flags`).
    :ivar slow_flags: Flags of the further ones (`gfp_to_alloc_flags()`), but for order-dependent HIGHATOMIC.
    """

    gfp: Gfp
    migratetype: int
    sensitive: bool
    zero: bool
    highest_zone: int
    fast_flags: int
    slow_flags: int
    highatomic: bool


def classify(gfp: Gfp, normal_zone: int) -> RequestClass:
    """Work out gfp flags. NOBLOCK is set for the first attempt as well: it may change sensitivity, too."""
    blocking = bool(gfp & Gfp.DIRECT_RECLAIM)
    fast = 0 if blocking else NOBLOCK
    slow = fast | (MIN_RESERVE if gfp & Gfp.HIGH else 0)
    return RequestClass(
        gfp=gfp,
        migratetype=gfp_migratetype(gfp),
        sensitive=gfp_sensitive(gfp),
        zero=bool(gfp & Gfp.ZERO),
        highest_zone=0 if gfp & Gfp.DMA32 else normal_zone,
        fast_flags=fast,
        slow_flags=slow,
        highatomic=not blocking and not gfp & Gfp.NOMEMALLOC and bool(gfp & Gfp.HIGH),
    )
