"""Just enough of BTF to find where a member lies in a structure, and what an enumerator is worth.

The format: Documentation/bpf/btf.rst in the kernel's source.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np

from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy.typing as npt

__all__ = ["Btf"]

_HEADER = struct.Struct("<HBBIIIII")
_MAGIC = 0xEB9F
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_STRUCT, _UNION, _ENUM, _TYPEDEF, _VOLATILE, _CONST, _RESTRICT = 4, 5, 6, 8, 9, 10, 11
_TRAILING = {
    1: (1, 0),  # BTF_KIND_INT
    3: (3, 0),  # ARRAY
    _STRUCT: (0, 3),
    _UNION: (0, 3),
    _ENUM: (0, 2),
    13: (0, 2),  # FUNC_PROTO
    14: (1, 0),  # VAR
    15: (0, 3),  # DATASEC
    17: (1, 0),  # DECL_TAG
    19: (0, 3),  # ENUM64
}
"""Words that follow a type of each kind: fixed, and for each of its ``vlen`` members. The other kinds have none."""
_FIXED_WORDS = tuple(_TYPE.size // 4 + _TRAILING.get(kind, (0, 0))[0] for kind in range(32))
_WORDS_EACH = tuple(_TRAILING.get(kind, (0, 0))[1] for kind in range(32))


def _starts(words: npt.NDArray[np.uint32]) -> list[int]:
    """Give the word that each type begins at: a hundred thousand, each where the one before ends."""
    word = words.data
    starts, at, end = [], 0, len(word)
    while at < end:
        starts.append(at)
        info = word[at + 1]
        kind = info >> 24 & 0x1F
        at += _FIXED_WORDS[kind] + _WORDS_EACH[kind] * (info & 0xFFFF)
    return starts


class Btf:
    """The types of one kernel, from ``/sys/kernel/btf/vmlinux``."""

    def __init__(self, data: bytes) -> None:
        """Index the types by name.

        :raises RecordError: The data is not BTF.
        """
        if len(data) < _HEADER.size or _HEADER.unpack_from(data)[0] != _MAGIC:
            raise RecordError("the guest has no BTF; record a kernel with CONFIG_DEBUG_INFO_BTF=y")
        _, _, _, header, type_off, type_len, str_off, _ = _HEADER.unpack_from(data)
        self._data = data
        self._strings = header + str_off
        words = np.frombuffer(data, np.uint32, type_len // 4, header + type_off)
        starts = np.array(_starts(words))
        self._at: list[int] = [0, *(header + type_off + 4 * starts).tolist()]
        names, kinds = words[starts], words[starts + 1] >> 24 & 0x1F
        named = np.flatnonzero((names > 0) & np.isin(kinds, (_STRUCT, _UNION, _ENUM)))
        self._named: dict[str, int] = {}
        for row, name in zip(named.tolist(), names[named].tolist(), strict=True):
            self._named.setdefault(self._string(name), row + 1)

    @classmethod
    def read(cls, path: Path) -> Btf:
        """Read a saved ``/sys/kernel/btf/vmlinux``."""
        return cls(path.read_bytes() if path.exists() else b"")

    def offset(self, path: str) -> int:
        """Give the offset in bytes of a member, written ``structure.member.member``; anonymous members are looked into.

        :raises RecordError: There is no such structure or member.
        """
        name, *members = path.split(".")
        if name not in self._named:
            raise RecordError(f"this kernel's BTF has no structure {name!r}")
        type_id, bits = self._named[name], 0
        for member in members:
            found = self._member(type_id, member)
            if found is None:
                raise RecordError(f"this kernel's BTF has no {path!r}")
            bits += found[0]
            type_id = found[1]
        return bits // 8

    def has(self, path: str) -> bool:
        """Tell whether there is such a member."""
        try:
            self.offset(path)
        except RecordError:
            return False
        return True

    def first(self, *paths: str) -> str:
        """Give the first of several members that there is: the forms that one fact has had, newest first.

        :raises RecordError: There is none.
        """
        for path in paths:
            if self.has(path):
                return path
        raise RecordError(
            f"this kernel's BTF has no {' or '.join(paths)}, which recording needs; give another --kernel"
        )

    def has_enum(self, name: str) -> bool:
        """Tell whether there is an enum of that name."""
        return name in self._named and self._kind(self._named[name]) == _ENUM

    def size(self, name: str) -> int:
        """Give a structure's size in bytes.

        :raises RecordError: There is no such structure.
        """
        self.offset(name)
        return int(_TYPE.unpack_from(self._data, self._at[self._named[name]])[2])

    def enumerator(self, enum: str, name: str) -> int | None:
        """Give the value of an enumerator, None if there is no such enum or it lacks it."""
        return dict(self._enumerators(self._named[enum])).get(name) if self.has_enum(enum) else None

    def constant(self, name: str) -> int | None:
        """Give the value of an enumerator of whatever enum, also one without a name; None if there is none."""
        for type_id in range(1, len(self._at)):
            if self._kind(type_id) == _ENUM:
                for enumerator, value in self._enumerators(type_id):
                    if enumerator == name:
                        return value
        return None

    def _kind(self, type_id: int) -> int:
        return int(_TYPE.unpack_from(self._data, self._at[type_id])[1]) >> 24 & 0x1F

    def _enumerators(self, type_id: int) -> Iterator[tuple[str, int]]:
        at = self._at[type_id]
        for i in range(_TYPE.unpack_from(self._data, at)[1] & 0xFFFF):
            string, value = struct.unpack_from("<Ii", self._data, at + _TYPE.size + 8 * i)
            yield self._string(string), int(value)

    def _string(self, offset: int) -> str:
        start = self._strings + offset
        return self._data[start : self._data.index(b"\0", start)].decode("ascii", "replace")

    def _members(self, type_id: int) -> Iterator[tuple[str, int, int]]:
        at = self._at[type_id]
        _, info, _ = _TYPE.unpack_from(self._data, at)
        for i in range(info & 0xFFFF):
            name, member_type, offset = _MEMBER.unpack_from(self._data, at + _TYPE.size + _MEMBER.size * i)
            yield self._string(name), member_type, offset & 0xFFFFFF if info >> 31 else offset

    def _member(self, type_id: int, name: str) -> tuple[int, int] | None:
        type_id = self._plain(type_id)
        if _TYPE.unpack_from(self._data, self._at[type_id])[1] >> 24 & 0x1F not in {_STRUCT, _UNION}:
            return None
        for member, member_type, bits in self._members(type_id):
            if member == name:
                return bits, member_type
            if not member:
                inside = self._member(member_type, name)
                if inside is not None:
                    return bits + inside[0], inside[1]
        return None

    def _plain(self, type_id: int) -> int:
        """Look through typedefs and qualifiers."""
        while type_id:
            _, info, target = _TYPE.unpack_from(self._data, self._at[type_id])
            if info >> 24 & 0x1F not in {_TYPEDEF, _VOLATILE, _CONST, _RESTRICT}:
                break
            type_id = target
        return type_id
