"""The hash by which ext4 finds a name in a large directory: half MD4 (``ext4fs_dirhash()``, fs/ext4/hash.c)."""

from __future__ import annotations

__all__ = ["SEED", "name_hash"]

SEED = (0x61736B69, 0x74206861, 0x73682073, 0x65656421)
"""``s_hash_seed``: the same for every disk, so that the same folder is read in the same order."""

_MASK = 0xFFFFFFFF
_CHUNK_BYTES = 32
_LAST = 0xFFFFFFFE
"""Stands for the end of a directory, so that no name has it."""

_SIGN = 0x80

_ROUNDS = (
    (0, (0, 1, 2, 3, 4, 5, 6, 7), (3, 7, 11, 19)),
    (0x5A827999, (1, 3, 5, 7, 0, 2, 4, 6), (3, 5, 9, 13)),
    (0x6ED9EBA1, (3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15)),
)
"""MD4's three rounds (RFC 1320) on half the words: the constant, the order of the words, the rotations."""


def name_hash(name: bytes) -> int:
    """Give a name's hash, an even number below 2**32."""
    state = SEED
    for start in range(0, len(name), _CHUNK_BYTES):
        state = _transformed(state, _words(name[start:]))
    found = state[1] & ~1
    return found if found != _LAST else _LAST - 2


def _words(text: bytes) -> list[int]:
    """Give eight words of a name's rest; bytes are signed, and what is missing is filled with the rest's length."""
    filling = len(text) * 0x01010101
    words = []
    for start in range(0, _CHUNK_BYTES, 4):
        word = filling
        for byte in text[start : start + 4]:
            word = (word << 8) + (byte - 256 if byte & _SIGN else byte)
        words.append(word & _MASK)
    return words


def _transformed(state: tuple[int, int, int, int], words: list[int]) -> tuple[int, int, int, int]:
    a, b, c, d = state
    for number, (constant, order, rotations) in enumerate(_ROUNDS):
        for step, index in enumerate(order):
            if number == 0:
                mixed = d ^ (b & (c ^ d))
            elif number == 1:
                mixed = (b & c) + ((b ^ c) & d)
            else:
                mixed = b ^ c ^ d
            total = (a + mixed + words[index] + constant) & _MASK
            by = rotations[step % 4]
            a, b, c, d = d, (total << by | total >> (32 - by)) & _MASK, b, c
    return (state[0] + a) & _MASK, (state[1] + b) & _MASK, (state[2] + c) & _MASK, (state[3] + d) & _MASK
