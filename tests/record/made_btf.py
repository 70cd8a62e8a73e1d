"""BTF whose bytes are made here, as Documentation/bpf/btf.rst says."""

from __future__ import annotations

import struct

INT, PTR, ARRAY, STRUCT, UNION, ENUM, TYPEDEF, CONST, FUNC_PROTO = 1, 2, 3, 4, 5, 6, 8, 10, 13


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

    def enum(self, name: str, values: dict[str, int]) -> int:
        """Add an enum; give its id."""
        rest = b"".join(struct.pack("<II", self.name(key), value & 0xFFFF_FFFF) for key, value in values.items())
        return self.type(ENUM, name, 4, rest, vlen=len(values))

    def bytes(self) -> bytes:
        """Give the section."""
        header = struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(self.types), len(self.types), len(self.strings))
        return header + self.types + self.strings
