"""Directories, as they lie on the disk (Documentation/filesystems/ext4/directory.rst)."""

import stat
import struct
from typing import TYPE_CHECKING

from asikit.linux.disk.geometry import BLOCK_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["linear_directory"]

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


def linear_directory(entries: "Iterable[tuple[bytes, int, int]]") -> bytes:
    """Give a directory's blocks, with its entries in this order.

    :param entries: For each its name, the inode's number and its mode.
    """
    done = bytearray()
    last, end = 0, BLOCK_BYTES
    for name, number, mode in entries:
        size = _HEAD.size + len(name) + 3 & ~3
        if len(done) + size > end:
            _stretch(done, last, end)
            end += BLOCK_BYTES
        last = len(done)
        done += _HEAD.pack(number, size, len(name), _FILE_TYPES[stat.S_IFMT(mode)])
        done += name.ljust(size - _HEAD.size, b"\0")
    _stretch(done, last, end)
    return bytes(done)


def _stretch(done: bytearray, last: int, end: int) -> None:
    """Have a block's last entry reach to the block's end."""
    struct.pack_into("<H", done, last + 4, end - last)
    done += bytes(end - len(done))
