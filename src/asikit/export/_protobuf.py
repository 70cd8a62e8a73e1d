"""Writes protocol buffers: messages of numbers, texts and other messages, which is all that the two formats here need.

https://protobuf.dev/programming-guides/encoding: a field is its number and wire type, then its value.
"""

from __future__ import annotations

from typing import Final

__all__ = ["fixed64", "message", "number", "packed", "text"]

_VARINT: Final = 0
_FIXED64: Final = 1
_LENGTH: Final = 2
_LOW: Final = 0x7F
_MORE: Final = 0x80


def number(field: int, value: int) -> bytes:
    """Return a field that is a number: uint64, enum, or bool.

    :raises ValueError: It is negative.
    """
    return _varint(field << 3 | _VARINT) + _varint(value)


def fixed64(field: int, value: int) -> bytes:
    """Return a field that is a number of 8 bytes."""
    return _varint(field << 3 | _FIXED64) + value.to_bytes(8, "little")


def text(field: int, value: str) -> bytes:
    """Return a field that is a text. What UTF-8 cannot say is written as an escape."""
    return message(field, value.encode("utf-8", "backslashreplace"))


def message(field: int, content: bytes) -> bytes:
    """Return a field that is another message, or bytes."""
    return _varint(field << 3 | _LENGTH) + _varint(len(content)) + content


def packed(field: int, values: list[int]) -> bytes:
    """Return a repeated field of numbers in the packed form."""
    return message(field, b"".join(map(_varint, values)))


def _varint(value: int) -> bytes:
    if 0 <= value <= _LOW:
        return bytes((value,))
    if value < 0:
        raise ValueError(f"{value} is negative")
    groups = bytearray()
    while value > _LOW:
        groups.append(value & _LOW | _MORE)
        value >>= 7
    groups.append(value)
    return bytes(groups)
