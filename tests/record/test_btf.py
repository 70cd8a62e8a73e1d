"""Reading types."""

from __future__ import annotations

import struct

import pytest

from asikit.record import RecordError
from asikit.record._btf import Btf
from tests.record.made_btf import ARRAY, CONST, FUNC_PROTO, INT, PTR, STRUCT, TYPEDEF, UNION, Writer

WITH_BIT_FIELDS = 1 << 7
"""Bit 31 of a type's information word, as part of the kind in bits 24 and up."""


@pytest.fixture
def btf() -> Btf:
    """Give a few types that lie as the kernel's do: nested, anonymous, behind typedefs, with bit fields."""
    made = Writer()
    word = made.type(INT, "unsigned long", 8, struct.pack("<I", 64))
    made.type(ARRAY, "", 0, struct.pack("<III", word, word, 4))
    made.type(FUNC_PROTO, "", 0, struct.pack("<II", made.name("argument"), word), vlen=1)
    context = made.struct(STRUCT, "", 16, [("lock", word, 0), ("ctx_id", word, 64)])
    named = made.type(TYPEDEF, "mm_context_t", context)
    constant = made.type(CONST, "", named)
    choice = made.struct(UNION, "", 8, [("mapping", word, 0), ("slab_cache", word, 0)])
    made.struct(STRUCT, "page", 64, [("flags", word, 0), ("", choice, 64 * 3), ("context", constant, 64 * 4)])
    made.struct(WITH_BIT_FIELDS | STRUCT, "bits", 8, [("few", word, 3 << 24 | 0), ("more", word, 5 << 24 | 32)])
    made.enum("pageflags", {"PG_locked": 0, "PG_slab": 9})
    made.enum("", {"NO_NAME": -1, "NUMBER": 2})
    made.type(PTR, "", word)
    return Btf(made.bytes())


def test_offsets(btf: Btf) -> None:
    """Members are found through anonymous unions, typedefs and qualifiers, in bytes; bit fields by their word."""
    paths = ("page.flags", "page.mapping", "page.slab_cache", "page.context.ctx_id", "bits.more")
    assert [btf.offset(path) for path in paths] == [0, 24, 24, 40, 4]
    assert btf.size("page") == 64
    assert (btf.has("page.mapping"), btf.has("page.nothing"), btf.has("nothing.mapping")) == (True, False, False)


def test_enumerators(btf: Btf) -> None:
    """An enumerator has its value, and a missing one or a missing enum none."""
    assert btf.enumerator("pageflags", "PG_slab") == 9
    assert btf.enumerator("pageflags", "PG_dead") is None
    assert btf.enumerator("nothing", "PG_slab") is None
    assert (btf.has_enum("pageflags"), btf.has_enum("page"), btf.has_enum("nothing")) == (True, False, False)
    assert [btf.constant(name) for name in ("PG_slab", "NO_NAME", "NUMBER", "PG_dead")] == [9, -1, 2, None]


def test_first_of_several_forms(btf: Btf) -> None:
    """Of the forms of a fact the first counts that the kernel has; if it has none, all are named."""
    assert btf.first("page.nothing", "page.mapping", "page.flags") == "page.mapping"
    with pytest.raises(RecordError, match=r"has no page\.nothing or slab\.flags, which recording needs; give another"):
        btf.first("page.nothing", "slab.flags")


def test_what_is_missing_is_named(btf: Btf) -> None:
    """A member, a structure, or BTF altogether that a kernel lacks is named."""
    with pytest.raises(RecordError, match=r"^this kernel's BTF has no 'page\.nothing'$"):
        btf.offset("page.nothing")
    with pytest.raises(RecordError, match=r"^this kernel's BTF has no structure 'slab'$"):
        btf.size("slab")
    with pytest.raises(RecordError, match=r"CONFIG_DEBUG_INFO_BTF=y$"):
        Btf(b"\x7fELF" + bytes(100))
