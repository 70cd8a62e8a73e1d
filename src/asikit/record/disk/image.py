"""The disk: an ext4 file system that shows a folder of the host, made up as it is read."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from asikit.record.disk.ext4 import (
    JOURNAL_INODE,
    ROOT_EXTENTS,
    ROOT_INODE,
    Attributes,
    bitmap,
    extent_node,
    group_descriptors,
    inode,
    journal_superblock,
    superblock,
)
from asikit.record.disk.files import Fixed
from asikit.record.disk.geometry import BLOCK_BYTES, INODE_BYTES, Geometry, blocks_of
from asikit.record.disk.inodes import Inodes, Rooms
from asikit.record.disk.room import Room
from asikit.record.disk.tree import ExtraFile, HostTree
from asikit.record.disk.written import GuestDisk

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["HostDisk"]

_GROUPS = 4096
_JOURNAL_BLOCKS = 16384
_SUPERBLOCK_OFFSET = 1024


class HostDisk(GuestDisk):
    """An ext4 file system whose tree is a folder of the host.

    Inodes and blocks are allotted as the guest reads what refers to them, so a disk costs what the guest looks at. The
    host's files are only read.
    """

    mount_options = "inode_readahead_blks=0,no_prefetch_block_bitmaps"
    """What is made up when it is read is not read ahead."""

    def __init__(
        self,
        root: Path,
        *,
        hidden: Iterable[Path] = (),
        empty: Iterable[Path] = (),
        extra: Mapping[str, ExtraFile] | None = None,
        scratch: Path | None = None,
        groups: int = _GROUPS,
    ) -> None:
        """Prepare.

        :param root: The folder.
        :param hidden: Absolute paths in the guest of files and folders that are not shown, under whichever name.
        :param empty: Absolute paths in the guest of folders that are shown empty (there, if the host has none).
        :param extra: Files that the host does not have, by their absolute paths in the guest.
        :param scratch: Where the file lies that takes what the guest writes.
        :param groups: Size of the disk, in units of 128 MiB; two at least.
        :raises OSError: The folder is not there, or the file cannot be made.
        """
        self._geometry = geometry = Geometry(groups)
        self._rooms = _rooms(geometry)
        self._tree = HostTree(root, hidden=hidden, empty=empty, extra=extra or {})
        self._inodes = Inodes(geometry, self._tree, self._rooms)
        journal = self._rooms.data.take(_JOURNAL_BLOCKS, Fixed(journal_superblock(_JOURNAL_BLOCKS)))
        journal_map = extent_node([(0, journal, _JOURNAL_BLOCKS)], 0, ROOT_EXTENTS)
        journal_bytes = _JOURNAL_BLOCKS * BLOCK_BYTES
        attributes = Attributes(stat.S_IFREG | 0o600, 0, 0, journal_bytes, 1, (0, 0), 0, 0, 0)
        journal_inode = inode(attributes, journal_map, _JOURNAL_BLOCKS, extents=True)
        if self._rooms.inodes.take(1, _Reserved(self._inodes, journal_inode)) != geometry.inode_table:
            raise AssertionError  # the first block of the table is that of the reserved inodes
        boot = bytes(_SUPERBLOCK_OFFSET) + superblock(geometry, journal_map, journal_bytes)
        descriptors = group_descriptors(geometry)
        if blocks_of(len(descriptors)) >= geometry.block_bitmap:
            raise ValueError(f"a disk of {groups} groups has no room for their descriptors")
        self._first_blocks = Fixed(boot.ljust(BLOCK_BYTES, b"\0") + descriptors)
        host_inodes = geometry.host_inodes
        self._block_bitmap = bitmap(geometry.guest_block, geometry.guest_blocks)
        self._inode_bitmap = bitmap(host_inodes, geometry.group_inodes - host_inodes)
        super().__init__(geometry.blocks * BLOCK_BYTES, scratch)

    def graft(self, place: Path, folder: Path) -> None:
        """Show a folder of the host at another place, an absolute path in the guest; before anything is read."""
        self._tree.graft(place, folder)

    def close(self) -> None:
        """Close the host's files, and forget what was written."""
        self._inodes.close()
        super().close()

    def unwritten(self, first: int, count: int) -> bytes:
        """Make blocks up.

        :raises OSError: A file of the host cannot be read.
        :raises DiskFullError: There are no inodes or blocks left to show what the guest wants to see.
        """
        pieces = []
        stop = first + count
        while first < stop:
            piece = self._piece(first, stop - first)
            pieces.append(piece)
            first += len(piece) // BLOCK_BYTES
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _piece(self, block: int, count: int) -> bytes:
        """Give one or more of a run of blocks."""
        geometry = self._geometry
        group, offset = divmod(block, geometry.group_blocks)
        if offset < geometry.inode_table:
            return self._description(group, offset)
        if offset < geometry.first_block:
            room, end = self._rooms.inodes, geometry.inode_table + geometry.host_table_blocks
        else:
            room = self._rooms.data if group in geometry.data_groups else self._rooms.meta
            end = geometry.guest_block
        if offset < end:
            found = room.at(block)
            if found is None:
                return bytes(BLOCK_BYTES)
            content, place, left = found
            return content.read(place, min(left, count))
        ends = geometry.first_block if end < geometry.first_block else geometry.group_blocks
        return bytes(min(count, ends - offset) * BLOCK_BYTES)

    def _description(self, group: int, offset: int) -> bytes:
        """Give a block of a group's description, before its inode table."""
        if offset == self._geometry.block_bitmap:
            return self._block_bitmap
        if offset == self._geometry.inode_bitmap:
            return self._inode_bitmap
        return self._first_blocks.read(offset, 1) if group == 0 else bytes(BLOCK_BYTES)


def _rooms(geometry: Geometry) -> Rooms:
    def room(what: str, groups: range, gap: int) -> Room:
        return Room(
            what=what,
            groups=groups,
            group_blocks=geometry.group_blocks,
            offset=geometry.first_block,
            length=geometry.host_blocks,
            gap=gap,
        )

    inodes = Room(
        what="inodes",
        groups=range(geometry.groups),
        group_blocks=geometry.group_blocks,
        offset=geometry.inode_table,
        length=geometry.host_table_blocks,
        gap=0,
    )
    # Requests for neighbouring blocks are merged and fail together, and a file that this user may not read must not
    # take another with it.
    return Rooms(
        inodes,
        data=room("blocks for files", geometry.data_groups, 1),
        meta=room("blocks for folders", geometry.meta_groups, 0),
    )


class _Reserved:
    """The first block of the inode table: the root and the journal."""

    def __init__(self, inodes: Inodes, journal: bytes) -> None:
        self._inodes = inodes
        self._journal = journal

    def read(self, first: int, count: int) -> bytes:  # a run of one block
        """Give the block."""
        block = bytearray(BLOCK_BYTES)
        for number, made in ((ROOT_INODE, self._inodes.root()), (JOURNAL_INODE, self._journal)):
            block[(number - 1) * INODE_BYTES : number * INODE_BYTES] = made
        return bytes(block)
