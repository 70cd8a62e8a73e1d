"""What runs of blocks hold: the host's files, fixed bytes, the extent trees of large files."""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass
from errno import ENXIO
from typing import TYPE_CHECKING

from asikit.record.disk.ext4 import NODE_EXTENTS, ROOT_EXTENTS, extent_node
from asikit.record.disk.geometry import BLOCK_BYTES, blocks_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asikit.record.disk.room import Room
    from asikit.record.disk.tree import HostTree

__all__ = ["Chunk", "Fixed", "HostFile", "OpenFiles", "chunks_of", "map_chunks"]

_MOST_OPEN = 128
_MOST_SEGMENTS = 4096
"""Of a file with more holes than this the rest is shown without."""

Chunk = tuple[int, int]
"""Blocks of a file that lie together: the first, how many."""


class OpenFiles:
    """The host's files that are open, the one that was used last at the end."""

    def __init__(self, tree: HostTree) -> None:
        """Begin with none."""
        self._tree = tree
        self._files: OrderedDict[tuple[int, int], int] = OrderedDict()

    def get(self, path: Callable[[], bytes], identity: tuple[int, int]) -> int:
        """Give a file's descriptor.

        :param path: Gives the path, which is asked for only if the file is not open.
        :raises OSError: It cannot be opened.
        """
        file = self._files.get(identity)
        if file is not None:
            self._files.move_to_end(identity)
            return file
        file = self._tree.open(path(), identity)
        self._files[identity] = file
        if len(self._files) > _MOST_OPEN:
            os.close(self._files.popitem(last=False)[1])
        return file

    def close(self) -> None:
        """Close all."""
        while self._files:
            os.close(self._files.popitem()[1])


@dataclass(frozen=True, slots=True)
class Fixed:
    """Bytes that are known; what comes after them is zeros."""

    content: bytes
    first: int = 0

    def read(self, first: int, count: int) -> bytes:
        """Give some of the blocks."""
        start = (self.first + first) * BLOCK_BYTES
        return self.content[start : start + count * BLOCK_BYTES].ljust(count * BLOCK_BYTES, b"\0")

    def part(self, first: int) -> Fixed:
        """Give the same from a block of it on."""
        return Fixed(self.content, self.first + first)


@dataclass(frozen=True, slots=True)
class HostFile:
    """A regular file of the host, read when the guest reads it."""

    files: OpenFiles
    path: Callable[[], bytes]
    identity: tuple[int, int]
    first: int = 0

    def read(self, first: int, count: int) -> bytes:
        """Give some of the blocks; zeros where the file has become shorter.

        :raises OSError: This user may not read it, or it has gone.
        """
        file = self.files.get(self.path, self.identity)
        start, wanted = (self.first + first) * BLOCK_BYTES, count * BLOCK_BYTES
        data = os.pread(file, wanted, start)
        while len(data) < wanted:
            more = os.pread(file, wanted - len(data), start + len(data))
            if not more:
                return data.ljust(wanted, b"\0")
            data += more
        return data

    def part(self, first: int) -> HostFile:
        """Give the same from a block of it on."""
        return HostFile(self.files, self.path, self.identity, self.first + first)

    def segments(self, size: int) -> list[Chunk]:
        """Find the blocks that hold data, as the host's file system tells it.

        :raises OSError: This user may not read it, or the file system does not tell.
        """
        file = self.files.get(self.path, self.identity)
        found: list[Chunk] = []
        end = 0
        while end < size and len(found) < _MOST_SEGMENTS:
            try:
                start = os.lseek(file, end, os.SEEK_DATA)
            except OSError as error:
                if error.errno != ENXIO:
                    raise
                return found  # nothing but a hole
            end = os.lseek(file, start, os.SEEK_HOLE) if len(found) + 1 < _MOST_SEGMENTS else size
            first = max(start // BLOCK_BYTES, found[-1][0] + found[-1][1] if found else 0)
            stop = blocks_of(min(end, size))
            if first < stop:
                found.append((first, stop - first))
        return found


def chunks_of(segments: Sequence[Chunk], largest: int) -> list[Chunk]:
    """Divide segments so that each part fits into a room."""
    return [
        (first + done, min(largest, count - done)) for first, count in segments for done in range(0, count, largest)
    ]


@dataclass(frozen=True, slots=True)
class _Mapping:
    """How a file's extent tree is made: of which chunks, in which rooms."""

    chunks: Sequence[Chunk]
    content: Fixed | HostFile
    data: Room
    meta: Room

    def entries(self, start: int, stop: int, depth: int) -> list[tuple[int, int, int]]:
        """Give the entries of a node for some of the chunks, with room for what they lead to.

        :raises DiskFullError: There is none.
        """
        if depth == 0:
            return [
                (first, self.data.take(count, self.content.part(first)), count)
                for first, count in self.chunks[start:stop]
            ]
        span = NODE_EXTENTS**depth
        nodes = [_Node(self, at, min(at + span, stop), depth - 1) for at in range(start, stop, span)]
        return [(self.chunks[node.start][0], self.meta.take(1, node), 0) for node in nodes]


@dataclass(slots=True)
class _Node:
    """A block of an extent tree: what it leads to gets room when it is first read."""

    mapping: _Mapping
    start: int
    stop: int
    depth: int
    made: bytes | None = None

    def read(self, first: int, count: int) -> bytes:  # a run of one block
        """Give the block."""
        if self.made is None:
            entries = self.mapping.entries(self.start, self.stop, self.depth)
            self.made = extent_node(entries, self.depth, NODE_EXTENTS).ljust(BLOCK_BYTES, b"\0")
        return self.made


def map_chunks(chunks: Sequence[Chunk], content: Fixed | HostFile, data: Room, meta: Room) -> tuple[bytes, int]:
    """Give a file's ``i_block``, and how many blocks it takes with those of its extent tree.

    A file of at most four chunks gets its room now, a larger one as its extent tree is read.

    :raises DiskFullError: There is no room left.
    """
    depth = 0
    blocks = sum(count for _, count in chunks)
    while len(chunks) > ROOT_EXTENTS * NODE_EXTENTS**depth:
        depth += 1
        blocks += -(-len(chunks) // NODE_EXTENTS**depth)
    entries = _Mapping(chunks, content, data, meta).entries(0, len(chunks), depth)
    return extent_node(entries, depth, ROOT_EXTENTS), blocks
