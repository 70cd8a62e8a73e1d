"""Reading types, of which the bytes are made here as Documentation/bpf/btf.rst says."""

import struct

import pytest

from asikit.linux import RecordError
from asikit.linux._btf import Btf

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, FUNC_PROTO = 1, 2, 3, 4, 5, 6, 8, 10, 13

WITH_BIT_FIELDS = 1 << 7
"""Bit 31 of a type's information word, as part of the kind in bits 24 and up."""


class Writer:
    """Puts the bytes of a BTF section together."""

    def __init__(self) -> None:
        self.strings = bytearray(b"\0")
        self.types = bytearray()
        self.count = 0

    def name(self, text: str) -> int:
        """Give a string's offset."""
        if not text:
            return 0
        at = len(self.strings)
        self.strings += text.encode() + b"\0"
        return at

    def type(self, kind: int, name: str, what: int, rest: bytes = b"", *, vlen: int = 0) -> int:
        """Add a type; give its id."""
        self.types += struct.pack("<III", self.name(name), kind << 24 | vlen, what) + rest
        self.count += 1
        return self.count

    def struct(self, kind: int, name: str, size: int, members: list[tuple[str, int, int]]) -> int:
        """Add a structure or union of members (name, type, offset field)."""
        rest = b"".join(struct.pack("<III", self.name(member), type_id, at) for member, type_id, at in members)
        return self.type(kind, name, size, rest, vlen=len(members))

    def bytes(self) -> bytes:
        """Give the section."""
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return header + self.types + self.strings


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
    values = b"".join(struct.pack("<Ii", made.name(name), value) for name, value in (("PG_locked", 0), ("PG_slab", 9)))
    made.type(ENUM, "pageflags", 4, values, vlen=2)
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


def test_what_is_missing_is_named(btf: Btf) -> None:
    """A member, a structure, or BTF altogether that a kernel lacks is named."""
    with pytest.raises(RecordError, match=r"^this kernel's BTF has no 'page\.nothing'$"):
        btf.offset("page.nothing")
    with pytest.raises(RecordError, match=r"^this kernel's BTF has no structure 'slab'$"):
        btf.size("slab")
    with pytest.raises(RecordError, match=r"CONFIG_DEBUG_INFO_BTF=y$"):
        Btf(b"\x7fELF" + bytes(100))
