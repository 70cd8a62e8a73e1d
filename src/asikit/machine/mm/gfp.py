"""Flags of a memory request: what it may do, where the memory may be, and whether it is sensitive.

Bit values and names (without the leading underscores) are those of Linux 6.1, include/linux/gfp_types.h.
"""

from __future__ import annotations

from enum import IntFlag


class Gfp(IntFlag):
    """`gfp_t`."""

    DMA = 0x01
    HIGHMEM = 0x02
    DMA32 = 0x04
    MOVABLE = 0x08
    RECLAIMABLE = 0x10
    HIGH = 0x20
    IO = 0x40
    FS = 0x80
    ZERO = 0x100
    ATOMIC = 0x200
    DIRECT_RECLAIM = 0x400
    KSWAPD_RECLAIM = 0x800
    WRITE = 0x1000
    NOWARN = 0x2000
    RETRY_MAYFAIL = 0x4000
    NOFAIL = 0x8000
    NORETRY = 0x10000
    MEMALLOC = 0x20000
    COMP = 0x40000
    NOMEMALLOC = 0x80000
    HARDWALL = 0x100000
    THISNODE = 0x200000
    ACCOUNT = 0x400000
    ZEROTAGS = 0x800000
    SKIP_ZERO = 0x1000000
    SKIP_KASAN_UNPOISON = 0x2000000
    SKIP_KASAN_POISON = 0x4000000
    NOLOCKDEP = 0x8000000
    SENSITIVE = 0x10000000
    """`__GFP_SENSITIVE`: the memory may hold what other domains must not learn ("mm: ASI direct map management", 2025).
    The first bit that 6.1 has free; the series' number depends on the kernel that it is applied to."""


RECLAIM = Gfp.DIRECT_RECLAIM | Gfp.KSWAPD_RECLAIM
"""`__GFP_RECLAIM`."""

GFP_ATOMIC = Gfp.HIGH | Gfp.ATOMIC | Gfp.KSWAPD_RECLAIM
GFP_KERNEL = RECLAIM | Gfp.IO | Gfp.FS
GFP_KERNEL_ACCOUNT = GFP_KERNEL | Gfp.ACCOUNT
GFP_NOWAIT = Gfp.KSWAPD_RECLAIM
GFP_NOIO = RECLAIM
GFP_NOFS = RECLAIM | Gfp.IO
GFP_USER = RECLAIM | Gfp.IO | Gfp.FS | Gfp.HARDWALL | Gfp.SENSITIVE
GFP_DMA = Gfp.DMA
GFP_DMA32 = Gfp.DMA32
GFP_HIGHUSER = GFP_USER | Gfp.HIGHMEM
GFP_HIGHUSER_MOVABLE = GFP_HIGHUSER | Gfp.MOVABLE | Gfp.SKIP_KASAN_POISON | Gfp.SKIP_KASAN_UNPOISON
GFP_TRANSHUGE_LIGHT = (GFP_HIGHUSER_MOVABLE | Gfp.COMP | Gfp.NOMEMALLOC | Gfp.NOWARN) & ~RECLAIM
GFP_TRANSHUGE = GFP_TRANSHUGE_LIGHT | Gfp.DIRECT_RECLAIM
GFP_PGTABLE_KERNEL = GFP_KERNEL | Gfp.ZERO
GFP_PGTABLE_USER = GFP_PGTABLE_KERNEL | Gfp.ACCOUNT
"""Page tables (include/asm-generic/pgalloc.h): nonsensitive, as nobody's data is in them."""
