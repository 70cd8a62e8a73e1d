"""Directories, as they lie on the disk (Documentation/filesystems/ext4/directory.rst)."""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.record.disk.geometry import BLOCK_BYTES
from asikit.record.disk.name_hash import name_hash

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Directory", "Name", "make_directory"]

Name = tuple[bytes, int, int]
"""An entry: its name, the inode's number, and its mode."""

_HEAD = struct.Struct("<IHBB")
_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_DOT_BYTES = 12
_HALF_MD4 = 1
_INFO = struct.Struct("<IBBBB")
_INDEX_ENTRY = struct.Struct("<II")
_LIMITS = struct.Struct("<HH")
_ROOT_ENTRIES = (BLOCK_BYTES - 2 * _DOT_BYTES - _INFO.size) // _INDEX_ENTRY.size
_NODE_ENTRIES = (BLOCK_BYTES - _HEAD.size) // _INDEX_ENTRY.size


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory's blocks.

    :ivar indexed: Whether it has an index by the names' hashes, as Linux gives one to each of more than a block.
    """

    content: bytes
    indexed: bool


def make_directory(number: int, parent: int, names: Sequence[Name]) -> Directory:
    """Give a directory.

    :param number: Its own inode's.
    :param parent: Its parent's inode's.
    :param names: What it holds besides the two.
    """
    dots = [(b".", number, stat.S_IFDIR), (b"..", parent, stat.S_IFDIR)]
    linear = _linear([*dots, *names])
    if len(linear) == BLOCK_BYTES:
        return Directory(linear, indexed=False)
    leaves = _leaves(names)
    if len(leaves) > _ROOT_ENTRIES * _NODE_ENTRIES:  # more than an index holds, without the feature large_dir
        return Directory(linear, indexed=False)
    dot, dotdot = _entry(dots[0], _DOT_BYTES), _entry(dots[1], BLOCK_BYTES - _DOT_BYTES)[:_DOT_BYTES]
    return Directory(_index(dot + dotdot, leaves) + b"".join(block for _, block in leaves), indexed=True)


def _linear(names: Iterable[Name]) -> bytes:
    """Give blocks with these entries, in this order."""
    done = bytearray()
    last, end = 0, BLOCK_BYTES
    for name in names:
        size = _size(name)
        if len(done) + size > end:
            _stretch(done, last, end)
            end += BLOCK_BYTES
        last = len(done)
        done += _entry(name, size)
    _stretch(done, last, end)
    return bytes(done)


def _leaves(names: Iterable[Name]) -> list[tuple[int, bytes]]:
    """Divide entries into blocks by their hashes; give each block with the least hash in it.

    The least has its lowest bit set where the block before has names of the same hash.
    """
    leaves: list[tuple[int, bytes]] = []
    block: list[Name] = []
    used, least, latest = 0, 0, -1
    for each, name in sorted((name_hash(name[0]), name) for name in names):
        size = _size(name)
        if used + size > BLOCK_BYTES:
            leaves.append((least, _linear(block)))
            block, used, least = [], 0, each | (each == latest)
        block.append(name)
        used += size
        latest = each
    leaves.append((least, _linear(block)))
    return leaves


def _index(dots: bytes, leaves: Sequence[tuple[int, bytes]]) -> bytes:
    """Give the blocks of the index: the first alone, or also a level of nodes below it."""
    if len(leaves) <= _ROOT_ENTRIES:
        entries = [(least, 1 + place) for place, (least, _) in enumerate(leaves)]
        return dots + _INFO.pack(0, _HALF_MD4, _INFO.size, 0, 0) + _entries(entries, _ROOT_ENTRIES)
    parts = [leaves[start : start + _NODE_ENTRIES] for start in range(0, len(leaves), _NODE_ENTRIES)]
    first_leaf = 1 + len(parts)
    nodes = []
    for number, part in enumerate(parts):
        places = range(first_leaf + number * _NODE_ENTRIES, first_leaf + len(leaves))
        entries = [(least, place) for (least, _), place in zip(part, places, strict=False)]
        nodes.append(_HEAD.pack(0, BLOCK_BYTES, 0, 0) + _entries(entries, _NODE_ENTRIES))
    roots = [(part[0][0], 1 + number) for number, part in enumerate(parts)]
    return dots + _INFO.pack(0, _HALF_MD4, _INFO.size, 1, 0) + _entries(roots, _ROOT_ENTRIES) + b"".join(nodes)


def _entries(entries: Sequence[tuple[int, int]], room: int) -> bytes:
    """Give an index block's entries, the first of which has the numbers of entries in the place of its hash."""
    packed = b"".join(_INDEX_ENTRY.pack(*entry) for entry in entries)
    return (_LIMITS.pack(room, len(entries)) + packed[_LIMITS.size :]).ljust(room * _INDEX_ENTRY.size, b"\0")


def _size(name: Name) -> int:
    return _HEAD.size + len(name[0]) + 3 & ~3


def _entry(name: Name, size: int) -> bytes:
    text, number, mode = name
    return (_HEAD.pack(number, size, len(text), _FILE_TYPES[stat.S_IFMT(mode)]) + text).ljust(size, b"\0")


def _stretch(done: bytearray, last: int, end: int) -> None:
    """Have a block's last entry reach to the block's end."""
    struct.pack_into("<H", done, last + 4, end - last)
    done += bytes(end - len(done))
