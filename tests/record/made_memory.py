"""A guest's memory made by hand: a kernel image, and page tables that map it."""

from __future__ import annotations

import mmap
import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

from asikit.record._memory import KERNEL_MAP, GuestMemory
from asikit.record._symbols import Symbols

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MiB = 1 << 20
TEXT = 0xFFFF_FFFF_8100_0000
TABLES = 12 * MiB
"""Physical address of the page tables."""
PRESENT, LARGE = 0x63, 0xE3


def symbols_of(extra: str = "") -> Symbols:
    """Give the symbols that reading memory needs."""
    return Symbols(
        f"{TEXT:x} T _text\n{TEXT + 0x100:x} T startup_64\n{TEXT + 0x1000:x} D linux_banner\n"
        f"{TEXT + 0x1100:x} D ptrs_per_p4d\n{TEXT + 0x8000:x} D init_top_pgt\n{extra}"
    )


@contextmanager
def made_memory(
    *, levels: int = 4, moved: int = 0, image: Mapping[int, bytes] | None = None, banner: bytes = b"Linux version 6"
) -> Iterator[GuestMemory]:
    """Give a memory of 16 MiB that has a kernel image.

    :param levels: Of the page tables.
    :param moved: How far the image lies from where it was linked to, in bytes; whole large pages.
    :param image: What lies at its addresses.
    """
    with mmap.mmap(-1, 16 * MiB) as view:

        def put(physical: int, content: bytes) -> None:
            view[physical : physical + len(content)] = content

        def physical(address: int) -> int:
            return address - KERNEL_MAP + base

        base = moved - 14 * MiB
        put(physical(TEXT + 0x1000), banner)
        put(physical(TEXT + 0x1100), struct.pack("<I", 512 if levels == 5 else 1))
        for address, content in (image or {}).items():
            put(physical(address), content)
        table = physical(TEXT + 0x8000)
        for level in range(levels - 1, 1, -1):
            following = TABLES + level * 0x1000
            put(table + 8 * (TEXT >> (12 + 9 * level) & 511), struct.pack("<Q", following | PRESENT))
            table = following
        for number in range(2):  # large pages from 2 MiB on
            address = TEXT + number * 2 * MiB
            put(table + 8 * (address >> 21 & 511), struct.pack("<Q", physical(address) | LARGE))
        iomem = f"00100000-0fffffff : System RAM\n  {physical(TEXT):08x}-{physical(TEXT) + 0xFFFFF:08x} : Kernel code\n"
        yield GuestMemory(view, symbols_of(), iomem)
