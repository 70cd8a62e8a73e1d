"""The host's files as inodes: numbers, and blocks of the inode table, made up as the guest reads them."""

from __future__ import annotations

import stat
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from asikit.record.disk.directory import make_directory
from asikit.record.disk.ext4 import (
    INLINE_LINK_BYTES,
    ROOT_EXTENTS,
    ROOT_INODE,
    Attributes,
    device_map,
    extent_node,
    inode,
)
from asikit.record.disk.files import Fixed, HostFile, OpenFiles, chunks_of, map_chunks
from asikit.record.disk.geometry import BLOCK_BYTES, INODES_PER_BLOCK, Geometry, blocks_of

if TYPE_CHECKING:
    from asikit.record.disk.room import Room
    from asikit.record.disk.tree import DirectoryEntry, HostTree

__all__ = ["Inodes", "Rooms"]

_CHUNK_BLOCKS = 8192
"""32 MiB of a file lie together at most, so that a group's end leaves little unused."""

_TAKEN = Attributes(0, 0, 0, 0, 0, (0, 0), 0, 0, 0)
"""Stands for what an inode that is made was made of."""


@dataclass(frozen=True, slots=True)
class Rooms:
    """The disk's three rooms.

    :ivar inodes: The host's half of the inode tables.
    :ivar data: For what files hold.
    :ivar meta: For directories, extent trees and long symbolic links.
    """

    inodes: Room
    data: Room
    meta: Room


@dataclass(slots=True, eq=False)
class _Node:
    """An inode. A hard link's second name leads to the node of the first."""

    entry: DirectoryEntry
    parent: _Node | None
    number: int = 0
    home: _TableRun | None = None
    made: bytes | None = None

    def path(self) -> bytes:
        """Give its path, relative to the root."""
        names = []
        node = self
        while node.parent is not None:
            names.append(node.entry.name)
            node = node.parent
        return b"/".join(reversed(names))


@dataclass(slots=True, eq=False)
class _TableRun:
    """Blocks of the inode table and the inodes in them, which are made as their block is read."""

    inodes: Inodes
    nodes: list[_Node] = field(default_factory=list)
    address: int = 0

    def read(self, first: int, count: int) -> bytes:
        """Give some of the blocks."""
        return b"".join(self._block(each) for each in range(first, first + count))

    def _block(self, index: int) -> bytes:
        made = []
        slot = index * INODES_PER_BLOCK
        # Making a folder may add files that lie in the same block.
        while slot < min(len(self.nodes), (index + 1) * INODES_PER_BLOCK):
            made.append(self.inodes.made(self.nodes[slot]))
            slot += 1
        return b"".join(made).ljust(BLOCK_BYTES, b"\0")


class Inodes:
    """The inodes of a tree.

    A folder's inode says how large the folder is, so that it is listed when its inode is read, and then all that is in
    it gets its number. A folder therefore begins a block of the inode table, which is not read for another's sake;
    files that it holds fill that block.
    """

    def __init__(self, geometry: Geometry, tree: HostTree, rooms: Rooms) -> None:
        """Begin with the root alone.

        :raises OSError: The root cannot be looked at.
        """
        self._geometry = geometry
        self._tree = tree
        self._rooms = rooms
        self._files = OpenFiles(tree)
        self._linked: dict[tuple[int, int], _Node] = {}
        self._root = _Node(tree.root(), None, ROOT_INODE)

    def close(self) -> None:
        """Close the files that are open."""
        self._files.close()

    def root(self) -> bytes:
        """Give the root's inode."""
        return self.made(self._root)

    def made(self, node: _Node) -> bytes:
        """Give an inode, always the same.

        :raises DiskFullError: There is no room for what it leads to.
        """
        if node.made is None:
            node.made = self._make(node)
            node.entry = replace(node.entry, attributes=_TAKEN)  # most of the memory that an inode takes
        return node.made

    def _make(self, node: _Node) -> bytes:
        of = node.entry.attributes
        if stat.S_ISDIR(of.mode):
            return self._make_folder(node)
        if stat.S_ISREG(of.mode):
            content, segments = self._file_content(node)
            block_map, blocks = map_chunks(
                chunks_of(segments, _CHUNK_BLOCKS), content, self._rooms.data, self._rooms.meta
            )
            return inode(of, block_map, blocks, extents=True)
        if stat.S_ISLNK(of.mode):
            return self._make_link(node)
        return inode(replace(of, size=0), device_map(of.mode, of.device), 0, extents=False)

    def _file_content(self, node: _Node) -> tuple[Fixed | HostFile, list[tuple[int, int]]]:
        """Give what a regular file holds, and which of its blocks are no holes."""
        entry = node.entry
        size = entry.attributes.size
        segments = [(0, blocks_of(size))] if size else []
        if entry.content is not None or entry.identity is None:
            return Fixed(entry.content or b""), segments
        content = HostFile(self._files, node.path, entry.identity)
        if entry.holes:
            with suppress(OSError):  # else it is shown without holes; to read it will fail, too
                segments = content.segments(size)
        return content, segments

    def _make_link(self, node: _Node) -> bytes:
        target = self._tree.target(node.path())
        of = replace(node.entry.attributes, size=len(target))
        if len(target) < INLINE_LINK_BYTES:
            return inode(of, target.ljust(60, b"\0"), 0, extents=False)
        at = self._rooms.meta.take(1, Fixed(target))
        return inode(of, extent_node([(0, at, 1)], 0, ROOT_EXTENTS), 1, extents=True)

    def _make_folder(self, node: _Node) -> bytes:
        entries = self._tree.entries(node.path(), node.entry.identity)
        children = self._number(node, entries)
        names = [
            (entry.name, child.number, entry.attributes.mode) for entry, child in zip(entries, children, strict=True)
        ]
        directory = make_directory(node.number, (node.parent or node).number, names)
        size = len(directory.content)
        chunks = chunks_of([(0, blocks_of(size))], _CHUNK_BLOCKS)
        block_map, blocks = map_chunks(
            chunks, Fixed(directory.content.rstrip(b"\0")), self._rooms.meta, self._rooms.meta
        )
        links = 2 + sum(entry.is_folder for entry in entries)
        of = replace(node.entry.attributes, size=size, links=links)
        return inode(of, block_map, blocks, extents=True, indexed=directory.indexed)

    def _number(self, folder: _Node, entries: list[DirectoryEntry]) -> list[_Node]:
        """Give each entry's node, numbered."""
        nodes: list[_Node] = []
        files: list[_Node] = []
        for entry in entries:
            linked = entry.attributes.links > 1 and not entry.is_folder and entry.identity is not None
            node = self._linked.get(entry.identity) if linked and entry.identity else None
            if node is None:
                node = _Node(entry, folder)
                if entry.is_folder:
                    self._place([node], _TableRun(self))
                else:
                    files.append(node)
                if linked and entry.identity:
                    self._linked[entry.identity] = node
            nodes.append(node)
        self._place_files(folder, files)
        return nodes

    def _place_files(self, folder: _Node, files: list[_Node]) -> None:
        """Number a folder's files: some go into the folder's own block, the others into blocks of their own."""
        done = 0
        if folder.home is not None:
            done = min(len(files), INODES_PER_BLOCK - len(folder.home.nodes))
            for node in files[:done]:
                node.number = self._geometry.inode_number(folder.home.address, len(folder.home.nodes))
                folder.home.nodes.append(node)
        most = self._rooms.inodes.largest * INODES_PER_BLOCK
        for first in range(done, len(files), most):
            self._place(files[first : first + most], _TableRun(self))

    def _place(self, nodes: list[_Node], run: _TableRun) -> None:
        run.address = self._rooms.inodes.take(-(-len(nodes) // INODES_PER_BLOCK), run)
        run.nodes = nodes
        for slot, node in enumerate(nodes):
            node.number = self._geometry.inode_number(run.address, slot)
        if len(nodes) == 1 and nodes[0].entry.is_folder:
            nodes[0].home = run
