"""The forms in which kernels keep what they know of a page, from types made by hand."""

from __future__ import annotations

import struct

import pytest

from asikit.record import RecordError
from asikit.record._btf import Btf
from asikit.record._struct_page import page_forms
from tests.record.made_btf import INT, STRUCT, UNION, Writer

FLAGS = {"PG_locked": 0, "PG_reserved": 12, "PG_head": 16}


def types(
    *,
    flags: dict[str, int],
    compound: str = "compound_head",
    slab: bool = True,
    pagetype: dict[str, int] | None = None,
    dtor: bool = False,
    folio_dtor: bool = False,
    constants: dict[str, int] | None = None,
) -> Btf:
    """Give the types of a kernel."""
    made = Writer()
    word = made.type(INT, "unsigned long", 8, struct.pack("<I", 64))
    more = [("compound_dtor", word, 64)] if dtor else []
    first = made.struct(STRUCT, "", 16, [(compound, word, 0), *more])
    second = made.struct(STRUCT, "", 16, [("lru", word, 0), ("mapping", word, 128)])
    in_page = [] if slab else [("slab_cache", word, 64 * 2)]
    memcg = [] if slab else [("mem_cgroup", word, 64 * 7)]
    choice = made.struct(UNION, "", 24, [("", first, 0), ("", second, 0), *in_page])
    made.struct(STRUCT, "page", 64, [("flags", word, 0), ("", choice, 64), ("page_type", word, 64 * 6), *memcg])
    if slab:
        made.struct(STRUCT, "slab", 64, [("slab_cache", word, 64)])
    made.struct(STRUCT, "folio", 128, [("flags", word, 0), *([("_folio_dtor", word, 64 * 10)] if folio_dtor else [])])
    made.enum("pageflags", flags)
    if pagetype is not None:
        made.enum("pagetype", pagetype)
    made.enum("", constants or {"NOTHING": 0})
    return Btf(made.bytes())


NEWEST = {"PGTY_buddy": 0xF0, "PGTY_table": 0xF2, "PGTY_hugetlb": 0xF4, "PGTY_slab": 0xF5}
SETS = {"PG_buddy": 0x4000_0000, "PG_table": 0x1000_0000, "PG_hugetlb": 0x0400_0000, "PG_slab": 0x0200_0000}


@pytest.mark.parametrize(
    ("btf", "slab", "table", "hugetlb"),
    [
        pytest.param(
            types(flags=FLAGS, compound="compound_info", pagetype=NEWEST),
            (0, 0xFF00_0000, 0xF500_0000),
            (0xFF00_0000, 0xF200_0000),
            (0xFF00_0000, 0xF400_0000, 0, 0, 0),
            id="numbers",
        ),
        pytest.param(
            types(flags=FLAGS, pagetype=SETS),
            (0, 0x8200_0000, 0x8000_0000),
            (0x9000_0000, 0x8000_0000),
            (0x8400_0000, 0x8000_0000, 0, 0, 0),
            id="bits of an enum",
        ),
        pytest.param(
            types(flags=FLAGS),
            (0, 0xF000_1000, 0xF000_0000),
            (0xF000_0200, 0xF000_0000),
            (0xF000_0800, 0xF000_0000, 0, 0, 0),
            id="slab as a type, macros",
        ),
        pytest.param(
            types(flags={**FLAGS, "PG_slab": 9, "PG_hugetlb": 8}),
            (1 << 9, 0, 0),
            (0xF000_0200, 0xF000_0000),
            (0, 0, 0, 1 << 8, 1 << 8),
            id="hugetlb as a flag",
        ),
        pytest.param(
            types(flags={**FLAGS, "PG_slab": 9}, folio_dtor=True, constants={"HUGETLB_PAGE_DTOR": 2}),
            (1 << 9, 0, 0),
            (0xF000_0200, 0xF000_0000),
            (0, 0, 16, 0xFF, 2),
            id="destructor in struct folio",
        ),
        pytest.param(
            types(flags={**FLAGS, "PG_slab": 9}, slab=False, dtor=True, constants={"HUGETLB_PAGE_DTOR": 2}),
            (1 << 9, 0, 0),
            (0xF000_0400, 0xF000_0000),
            (0, 0, 16, 0xFF, 2),
            id="destructor in struct page",
        ),
    ],
)
def test_forms(
    btf: Btf, slab: tuple[int, int, int], table: tuple[int, int], hugetlb: tuple[int, int, int, int, int]
) -> None:
    """Each form that a mark has had is found by what the kernel's types have."""
    found = page_forms(btf)
    assert tuple(found.values[key] for key in ("flag_slab", "type_slab_mask", "type_slab_value")) == slab
    assert tuple(found.values[f"type_table_{key}"] for key in ("mask", "value")) == table
    keys = ("type_hugetlb_mask", "type_hugetlb_value", *(f"second_hugetlb_{k}" for k in ("offset", "mask", "value")))
    assert tuple(found.values[key] for key in keys) == hugetlb
    assert found.missing == {}
    assert found.values["flag_reserved"] == 1 << 12
    assert found.values["page_compound"] == 8


def test_what_is_not_found() -> None:
    """A flag that recording needs is refused by name; a mark that is only useful is left out, with what is lost."""
    with pytest.raises(RecordError, match="BTF has no page flag PG_head, which recording needs"):
        page_forms(types(flags={"PG_reserved": 12, "PG_slab": 9}))
    with pytest.raises(RecordError, match=r"has no page\.compound_info or page\.compound_head, which recording needs"):
        page_forms(types(flags=FLAGS, compound="memdesc"))
    found = page_forms(types(flags={**FLAGS, "PG_slab": 9}, constants={"HUGETLB_PAGE_DTOR": 2}))
    assert list(found.missing) == ["mark of hugetlb pages"]
