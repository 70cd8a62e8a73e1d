"""A reader of ext4 for tests, as lazy as Linux: it reads no block but those that something refers to."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asikit.record.disk import HostDisk

_BLOCK = 4096
_FOLDER = 2


@dataclass(frozen=True)
class Inode:
    """What is needed of one."""

    mode: int
    size: int
    blocks: list[int]


class Reader:
    """Follows names from the root."""

    def __init__(self, disk: HostDisk) -> None:
        """Read the superblock."""
        self._disk = disk
        head = disk.read(1024, 1024)
        (self._inodes_per_group,) = struct.unpack_from("<I", head, 0x28)

    def inode(self, number: int) -> Inode:
        """Read an inode."""
        group, index = divmod(number - 1, self._inodes_per_group)
        low, high = (struct.unpack("<I", self._disk.read(_BLOCK + 64 * group + at, 4))[0] for at in (8, 0x28))
        block = (high << 32 | low) + index * 256 // _BLOCK
        raw = self._disk.read(block * _BLOCK, _BLOCK)[index * 256 % _BLOCK :][:256]
        mode, size = struct.unpack_from("<H", raw)[0], struct.unpack_from("<I", raw, 4)[0]
        mapped = struct.unpack_from("<I", raw, 32)[0] & 0x80000
        return Inode(mode, size, self._extents(raw[40:100]) if mapped else [])

    def names(self, number: int) -> dict[str, tuple[int, int]]:
        """List a folder: inode numbers and types."""
        found = {}
        for block in self.inode(number).blocks:
            data, at = self._disk.read(block * _BLOCK, _BLOCK), 0
            while at < _BLOCK:
                inode, size, length, kind = struct.unpack_from("<IHBB", data, at)
                if inode and length:
                    found[data[at + 8 : at + 8 + length].decode()] = (inode, kind)
                at += size
        return {name: found[name] for name in found if name not in {".", ".."}}

    def find(self, path: str) -> int:
        """Find a path's inode."""
        number = 2
        for name in path.split("/"):
            number = self.names(number)[name][0]
        return number

    def blocks(self, path: str) -> list[int]:
        """Give the addresses of a file's blocks."""
        return self.inode(self.find(path)).blocks

    def content(self, path: str) -> bytes:
        """Read a file."""
        inode = self.inode(self.find(path))
        return b"".join(self._disk.read(block * _BLOCK, _BLOCK) for block in inode.blocks)[: inode.size]

    def tree(self, number: int = 2, path: str = "") -> dict[str, dict[str, int] | None]:
        """Give all paths: a folder with its names and their inodes, None for anything else."""
        names = self.names(number)
        found: dict[str, dict[str, int] | None] = {path: {name: inode for name, (inode, _) in names.items()}}
        for name, (inode, kind) in names.items():
            below = f"{path}/{name}" if path else name
            found |= self.tree(inode, below) if kind == _FOLDER else {below: None}
        return found

    def _extents(self, node: bytes) -> list[int]:
        magic, count, _, depth = struct.unpack_from("<HHHH", node)
        assert (magic, depth) == (0xF30A, 0)
        blocks: list[int] = []
        for index in range(count):
            _, length, high, low = struct.unpack_from("<IHHI", node, 12 + 12 * index)
            blocks += range(high << 32 | low, (high << 32 | low) + length)
        return blocks
