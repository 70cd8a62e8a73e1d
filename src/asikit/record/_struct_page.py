"""In which form this kernel keeps what it knows of a page: ``struct page`` (include/linux/mm_types.h, page-flags.h).

Each fact has had several forms. They are looked for by member and enumerator, the newest first, with the kernel commit
that brought it. What is decided is checked in memory afterwards, on pages of which it is known what they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from asikit.record._btf import Btf
    from asikit.record._memory import GuestMemory
    from asikit.record._symbols import Symbols

__all__ = ["PageForms", "check_slab", "check_table", "page_forms"]

_PAGE_SHIFT = 12
_VMEMMAP_BYTES = 1 << 40
"""``struct page``s take no more than that, and a mask, taken for an address, is further away."""
_MOST_CACHES = 400
_NAME_BYTES = 16


@dataclass(frozen=True, slots=True)
class PageForms:
    """What was found.

    :ivar values: What the plugin is told.
    :ivar forms: For people: the fact, and the form that it has here.
    :ivar missing: Facts that this kernel does not tell, and what is lost.
    """

    values: dict[str, int]
    forms: dict[str, str]
    missing: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Mark:
    """How a kind of page is marked: ``page_type & mask == value``, a bit of ``flags``, or in the second page."""

    form: str
    type_mask: int = 0
    type_value: int = 0
    flag: int = 0
    second_offset: int = 0
    second_mask: int = 0
    second_value: int = 0


def page_forms(btf: Btf) -> PageForms:
    """Find the forms by the kernel's types.

    :raises RecordError: Something is in no form that is known here.
    """
    compound = btf.first("page.compound_info", "page.compound_head")  # the former since 7.1 or 7.2
    cache = btf.first("slab.slab_cache", "page.slab_cache")  # struct slab: d122019bf061 (5.17)
    slab, buddy, table = _slab(btf), _typed(btf, "buddy", 0x80), _table(btf)
    hugetlb = _hugetlb(btf)
    values = {
        "page_size": btf.size("page"),
        "page_flags": btf.offset("page.flags"),
        "page_mapping": btf.offset("page.mapping"),
        "page_type": btf.offset("page.page_type"),
        "page_compound": btf.offset(compound),
        "page_slab_cache": btf.offset(cache),
        "flag_reserved": _flag(btf, "PG_reserved"),
        "flag_head": _flag(btf, "PG_head"),
        "flag_slab": slab.flag,
    }
    for name, mark in (("slab", slab), ("buddy", buddy), ("table", table), ("hugetlb", hugetlb)):
        values |= {f"type_{name}_mask": mark.type_mask, f"type_{name}_value": mark.type_value}
    values |= {
        "second_hugetlb_offset": hugetlb.second_offset,
        "second_hugetlb_mask": hugetlb.second_mask,
        "second_hugetlb_value": hugetlb.second_value,
    }
    forms = {
        "compound page": compound,
        "slab page": f"{slab.form}, {cache}",
        "free page": buddy.form,
        "page table": table.form,
    }
    if hugetlb.form:
        return PageForms(values, {**forms, "hugetlb page": hugetlb.form}, {})
    lost = "pages of the hugetlb pool that was filled at boot have the kind kernel"
    return PageForms(values, forms, {"mark of hugetlb pages": lost})


def _flag(btf: Btf, name: str) -> int:
    bit = btf.enumerator("pageflags", name)
    if bit is None:
        raise RecordError(
            f"this kernel's BTF has no page flag {name}, which recording needs; give another with --kernel"
        )
    return 1 << bit


def _typed(btf: Btf, name: str, macro: int) -> _Mark:
    """Find a page type.

    :param macro: Its bit before page types were an enum, when BTF did not have it.
    """
    number = btf.enumerator("pagetype", f"PGTY_{name}")  # a number in the top byte: 4ffca5a96678 (6.12)
    if number is not None:
        return _Mark(f"page type PGTY_{name}", 0xFF00_0000, (number & 0xFF) << 24)
    bit = btf.enumerator("pagetype", f"PG_{name}")  # a cleared bit below bit 31, in an enum: e880034cf7e2 (6.11)
    if bit is not None:
        bit &= 0xFFFF_FFFF
        return _Mark(f"page type PG_{name}", 0x8000_0000 | bit, 0x8000_0000)
    return _Mark(f"page type {macro:#x}", 0xF000_0000 | macro, 0xF000_0000)  # a cleared bit: 6e292b9be7f4 (4.18)


def _table(btf: Btf) -> _Mark:
    older = btf.has("page.mem_cgroup")  # PG_kmemcg had that bit until 18b2db3b0385 (5.11)
    return _typed(btf, "table", 0x400 if older else 0x200)


def _slab(btf: Btf) -> _Mark:
    bit = btf.enumerator("pageflags", "PG_slab")
    if bit is not None:
        return _Mark("page flag PG_slab", flag=1 << bit)
    return _typed(btf, "slab", 0x1000)  # a page type: 46df8e73a4a3 (6.10)


def _hugetlb(btf: Btf) -> _Mark:
    if btf.has_enum("pagetype"):
        return _typed(btf, "hugetlb", 0)
    size = btf.size("page")
    bit = btf.enumerator("pageflags", "PG_hugetlb")  # in the second page's flags: 9c5ccf2db04b (6.6)
    if bit is not None:
        return _Mark("flag PG_hugetlb of the second page", second_offset=btf.offset("page.flags"),
                     second_mask=1 << bit, second_value=1 << bit)  # fmt: skip
    number = btf.constant("HUGETLB_PAGE_DTOR")
    for member, before in (("folio._folio_dtor", size), ("page.compound_dtor", 0)):
        if number is not None and btf.has(member):
            offset = btf.offset(member) - before
            return _Mark(member, second_offset=offset, second_mask=0xFF, second_value=number)
    return _typed(btf, "hugetlb", 0x800) if number is None else _Mark("")  # d99e3140a4d3 (6.9)


def check_slab(memory: GuestMemory, symbols: Symbols, btf: Btf, values: dict[str, int]) -> None:
    """Look whether the forms describe this kernel: descriptions of slab caches lie in slab pages of ``kmem_cache``.

    :raises RecordError: They do not: ``struct page`` would be misread.
    """
    listed, cache_list = symbols["slab_caches"], btf.offset("kmem_cache.list")
    vmemmap, page_offset = memory.word(symbols["vmemmap_base"]), memory.word(symbols["page_offset_base"])
    at = memory.word(listed)
    for _ in range(_MOST_CACHES):
        if at == listed:
            break
        cache = at - cache_list
        if cache >= page_offset:
            frame = (cache - page_offset) >> _PAGE_SHIFT
            if _cache_of(memory, vmemmap, frame, btf, values) == b"kmem_cache":
                return
        at = memory.word(at)
    raise RecordError(
        "this kernel's struct page is not understood: no slab cache's description lies in a slab page; "
        "give another with --kernel"
    )


def check_table(memory: GuestMemory, symbols: Symbols, btf: Btf, values: dict[str, int], mm: int) -> None:
    """Look whether page tables are marked as the forms say.

    :param mm: Address of the ``mm_struct`` of a process.
    :raises RecordError: They are not: ``struct page`` would be misread.
    """
    frame = memory.page_table(memory.word(mm + btf.offset("mm_struct.pgd")))
    if frame is None:
        raise RecordError("the guest's first process has no page table; this is a fault of the recorder")
    page = memory.word(symbols["vmemmap_base"]) + frame * values["page_size"]
    kind = memory.number(page + values["page_type"])
    if kind & values["type_table_mask"] != values["type_table_value"]:
        raise RecordError(
            f"this kernel's struct page is not understood: a page table has the page type {kind:#x}; "
            "give another with --kernel"
        )


def _cache_of(memory: GuestMemory, vmemmap: int, frame: int, btf: Btf, values: dict[str, int]) -> bytes | None:
    """Give the name of the slab cache that a frame belongs to, None if it is not marked as a slab page."""
    page = vmemmap + frame * values["page_size"]
    tail = memory.word(page + values["page_compound"])
    if tail & 1:  # the head's address, or a mask that makes it of the tail's
        page = tail - 1 if tail - vmemmap < _VMEMMAP_BYTES else page & (tail - 1)
    flags, kind = memory.word(page + values["page_flags"]), memory.number(page + values["page_type"])
    typed = values["type_slab_mask"] and kind & values["type_slab_mask"] == values["type_slab_value"]
    if not typed and not flags & values["flag_slab"]:
        return None
    cache = memory.word(page + values["page_slab_cache"])
    return memory.read(memory.word(cache + btf.offset("kmem_cache.name")), _NAME_BYTES).split(b"\0")[0]
