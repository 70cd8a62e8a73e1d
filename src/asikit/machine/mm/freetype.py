"""`freetype_t`: which free list memory is on, by migratetype and sensitivity ("mm: ASI direct map management").

A freetype is a number, ``MIGRATE_TYPES * sensitive + migratetype``. With ASI off all memory is nonsensitive.
"""

from __future__ import annotations

from asikit.machine.mm.gfp import Gfp
from asikit.machine.mm.pageblock import MIGRATE_PCPTYPES, MIGRATE_TYPES, Migratetype

NR_SENSITIVITIES = 2
NR_FREETYPES = MIGRATE_TYPES * NR_SENSITIVITIES

_MOVABLE_MASK = int(Gfp.MOVABLE | Gfp.RECLAIMABLE)
_MOVABLE_SHIFT = 3
_SENSITIVE = int(Gfp.SENSITIVE)


def migrate_to_freetype(migratetype: int, sensitive: bool) -> int:  # noqa: FBT001 - the series' own signature
    """Return the freetype of a migratetype and a sensitivity."""
    return MIGRATE_TYPES * sensitive + migratetype


def free_to_migratetype(freetype: int) -> int:
    """Return a freetype's migratetype."""
    return freetype % MIGRATE_TYPES


def freetype_sensitive(freetype: int) -> bool:
    """Return whether a freetype's memory is sensitive."""
    return freetype >= MIGRATE_TYPES


def gfp_migratetype(gfp: int) -> int:
    """Return the migratetype of a request: two flags are its bits (include/linux/gfp.h).

    Both at once is a mistake of the caller's, a VM_WARN_ON in the kernel; here a ValueError.
    """
    migratetype = (gfp & _MOVABLE_MASK) >> _MOVABLE_SHIFT
    if migratetype >= MIGRATE_PCPTYPES:
        raise ValueError("gfp flags MOVABLE and RECLAIMABLE together")
    return migratetype


def gfp_sensitive(gfp: int) -> bool:
    """Return whether a request asks for sensitive memory."""
    return bool(gfp & _SENSITIVE)


def gfp_freetype(gfp: int, *, asi: bool = True) -> int:
    """Return the freetype of a request; nonsensitive for all with ASI off."""
    return migrate_to_freetype(gfp_migratetype(gfp), asi and gfp_sensitive(gfp))


def migratetype_is_mergeable(migratetype: int) -> bool:
    """Return whether blocks of this type may merge with those of another."""
    return migratetype < MIGRATE_PCPTYPES


def can_merge_freetypes(one: int, other: int) -> bool:
    """Return whether free pages of two freetypes may become one: never across sensitivity."""
    if one == other:
        return True
    return (
        migratetype_is_mergeable(free_to_migratetype(one))
        and migratetype_is_mergeable(free_to_migratetype(other))
        and freetype_sensitive(one) == freetype_sensitive(other)
    )


FALLBACKS: tuple[tuple[int, ...], ...] = (
    (Migratetype.RECLAIMABLE, Migratetype.MOVABLE),
    (Migratetype.RECLAIMABLE, Migratetype.UNMOVABLE),
    (Migratetype.UNMOVABLE, Migratetype.MOVABLE),
    (),
)
"""By migratetype, which others are tried when its lists are empty (`fallbacks[]` in mm/page_alloc.c)."""
