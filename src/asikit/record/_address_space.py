"""Where the regions of the kernel's address space begin, and what the first per-CPU chunk takes of the direct map."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.record._memory import KERNEL_MAP
from asikit.trace import PAGE_BYTES, Region

if TYPE_CHECKING:
    from asikit.record._btf import Btf
    from asikit.record._memory import GuestMemory
    from asikit.record._symbols import Symbols

__all__ = ["first_chunk", "regions"]

_LARGE_PAGE = 2 << 20
_FIVE_LEVELS = 5


def regions(symbols: Symbols, memory: GuestMemory) -> tuple[tuple[int, Region], ...]:
    """Give the regions in the order of their first addresses; each ends where the next begins.

    Documentation/arch/x86/x86_64/mm.rst; what KASLR moves is in variables of the kernel.
    """
    five = memory.levels == _FIVE_LEVELS
    modules = -(-symbols["_end"] // _LARGE_PAGE) * _LARGE_PAGE
    return (
        (0, Region.USER),
        (1 << (56 if five else 47), Region.OTHER),
        (0xFF10_0000_0000_0000 if five else 0xFFFF_8800_0000_0000, Region.LDT),
        (memory.word(symbols["page_offset_base"]), Region.DIRECT_MAP),
        (memory.word(symbols["vmalloc_base"]), Region.VMALLOC),
        (memory.word(symbols["vmemmap_base"]), Region.VMEMMAP),
        (0xFFFF_FE00_0000_0000, Region.CPU_ENTRY_AREA),
        (0xFFFF_FE80_0000_0000, Region.OTHER),
        (0xFFFF_FF00_0000_0000, Region.ESPFIX),
        (0xFFFF_FF80_0000_0000, Region.OTHER),
        (KERNEL_MAP, Region.KERNEL_IMAGE),
        (modules, Region.MODULES),
        (0xFFFF_FFFF_FF00_0000, Region.FIXMAP),
    )


def first_chunk(symbols: Symbols, btf: Btf, memory: GuestMemory, cpus: int) -> tuple[tuple[int, int], ...]:
    """Give for each CPU the range of its unit of the first per-CPU chunk, without what the unit leaves over.

    mm/percpu.c: a unit is as large as a large page, and the rest goes back to memblock (``pcpu_embed_first_chunk()``).
    What is used ends with the chunk from which dynamic per-CPU memory is taken first.
    """
    base, chunk = memory.word(symbols["pcpu_base_addr"]), memory.word(symbols["pcpu_first_chunk"])
    start = memory.word(chunk + btf.offset("pcpu_chunk.base_addr"))
    used = start - base + memory.number(chunk + btf.offset("pcpu_chunk.nr_pages")) * PAGE_BYTES
    offsets = memory.words(memory.word(symbols["pcpu_unit_offsets"]), cpus)
    return tuple((base + offset, base + offset + used) for offset in offsets)
