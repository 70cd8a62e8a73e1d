"""The ext4 file system's structures, as they lie on the disk.

Their source is Documentation/filesystems/ext4/ in the kernel's source (super.rst, group_descr.rst, inodes.rst,
ifork.rst, journal.rst) and fs/ext4/ext4.h, whose names are used here.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.record.disk.geometry import BLOCK_BYTES, INODE_BYTES, Geometry
from asikit.record.disk.name_hash import SEED

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "FIRST_INODE",
    "INLINE_LINK_BYTES",
    "JOURNAL_INODE",
    "NODE_EXTENTS",
    "ROOT_EXTENTS",
    "ROOT_INODE",
    "Attributes",
    "bitmap",
    "device_map",
    "extent_node",
    "group_descriptors",
    "inode",
    "journal_superblock",
    "superblock",
]

ROOT_INODE = 2
JOURNAL_INODE = 8
FIRST_INODE = 11
INLINE_LINK_BYTES = 60
"""A symbolic link's target lies in the inode if it is shorter than this, with the NUL after it."""

_MAGIC = 0xEF53
_EXTENT_MAGIC = 0xF30A
_JOURNAL_MAGIC = 0xC03B3998
_JOURNAL_SUPERBLOCK_V2 = 4
_UUID = b"asikit host disk"
_EXTENTS_FLAG = 0x80000
_INDEX_FLAG = 0x1000
_MOST_LINKS = 65000
"""``EXT4_LINK_MAX``: a folder with more says 1 (the feature ``dir_nlink``)."""

_EXTRA_BYTES = 32
_MOST_TIME = 1 << 34
_SECTOR = 512

_COMPAT = 0x4 | 0x8 | 0x20 | 0x200
"""``has_journal``, ``ext_attr``, ``dir_index``, ``sparse_super2``: as ``mke2fs`` makes it, but without copies of the
superblock."""

_INCOMPAT = 0x2 | 0x40 | 0x80 | 0x200
"""``filetype``, ``extents``, ``64bit``, ``flex_bg``."""

_RO_COMPAT = 0x2 | 0x8 | 0x20 | 0x40
"""``large_file``, ``huge_file``, ``dir_nlink``, ``extra_isize``. Not ``metadata_csum``: checksums of what is made up as
it is read would cost more than all else here."""

ROOT_EXTENTS = 4
"""Extents for which an inode has room."""

_HEAD = struct.Struct("<HHHHI")
_ENTRY_BYTES = 12
NODE_EXTENTS = (BLOCK_BYTES - _HEAD.size) // _ENTRY_BYTES
"""Extents for which a block of an extent tree has room."""

_INODE = struct.Struct("<HHIIIIIHHIII60sIIII6HHHIIIIIII")


@dataclass(frozen=True, slots=True)
class Attributes:
    """What ``stat()`` tells of a file; times in ns."""

    mode: int
    uid: int
    gid: int
    size: int
    links: int
    device: tuple[int, int]
    atime: int
    mtime: int
    ctime: int


def superblock(geometry: Geometry, journal_map: bytes, journal_bytes: int) -> bytes:
    """Give the 1024 bytes of the superblock.

    :param journal_map: The journal's ``i_block``, of which the superblock has a copy.
    """
    free = geometry.groups * geometry.guest_blocks
    fields: tuple[tuple[int, str, int | bytes], ...] = (
        (0x0, "I", geometry.groups * geometry.group_inodes),
        (0x4, "I", geometry.blocks & 0xFFFFFFFF),
        (0xC, "I", free & 0xFFFFFFFF),
        (0x10, "I", geometry.groups * (geometry.group_inodes - geometry.host_inodes)),
        (0x18, "I", 2),  # s_log_block_size: 4096
        (0x1C, "I", 2),  # s_log_cluster_size
        (0x20, "I", geometry.group_blocks),
        (0x24, "I", geometry.group_blocks),  # s_clusters_per_group
        (0x28, "I", geometry.group_inodes),
        (0x36, "H", 0xFFFF),  # s_max_mnt_count: never checked
        (0x38, "H", _MAGIC),
        (0x3A, "H", 1),  # s_state: clean
        (0x3C, "H", 1),  # s_errors: go on
        (0x4C, "I", 1),  # s_rev_level: EXT4_DYNAMIC_REV
        (0x54, "I", FIRST_INODE),
        (0x58, "H", INODE_BYTES),
        (0x5C, "I", _COMPAT),
        (0x60, "I", _INCOMPAT),
        (0x64, "I", _RO_COMPAT),
        (0x68, "16s", _UUID),
        (0xE0, "I", JOURNAL_INODE),
        *((0xEC + 4 * i, "I", word) for i, word in enumerate(SEED)),
        (0xFC, "B", 1),  # s_def_hash_version: half MD4
        (0xFD, "B", 1),  # s_jnl_backup_type: s_jnl_blocks is i_block and i_size
        (0xFE, "H", 64),  # s_desc_size
        (0x100, "I", 0xC),  # s_default_mount_opts: user_xattr, acl
        (0x10C, "60s", journal_map),
        (0x10C + 60, "I", journal_bytes >> 32),
        (0x10C + 64, "I", journal_bytes & 0xFFFFFFFF),
        (0x150, "I", geometry.blocks >> 32),
        (0x158, "I", free >> 32),
        (0x15C, "H", _EXTRA_BYTES),
        (0x15E, "H", _EXTRA_BYTES),
        (0x160, "I", 1),  # s_flags: names are hashed as signed chars
        (0x174, "B", 4),  # s_log_groups_per_flex
        (0x248, "I", geometry.groups * geometry.first_block),  # s_overhead_clusters
    )
    block = bytearray(1024)
    for offset, form, value in fields:
        struct.pack_into(f"<{form}", block, offset, value)
    return bytes(block)


def group_descriptors(geometry: Geometry) -> bytes:
    """Give the table of block groups."""
    table = bytearray()
    free_inodes = geometry.group_inodes - geometry.host_inodes
    for group in range(geometry.groups):
        at = group * geometry.group_blocks
        where = (at + geometry.block_bitmap, at + geometry.inode_bitmap, at + geometry.inode_table)
        # The host's folders count as one for each block of the inode table, which is the most there can be: the kernel
        # subtracts those that are deleted.
        counts = (geometry.guest_blocks, free_inodes, geometry.host_table_blocks)
        low = struct.pack("<III", *(address & 0xFFFFFFFF for address in where))
        high = struct.pack("<III", *(address >> 32 for address in where))
        table += (low + struct.pack("<HHH", *counts)).ljust(32, b"\0") + high.ljust(32, b"\0")
    return bytes(table)


def bitmap(used: int, free: int) -> bytes:
    """Give a block of bitmap: used, then free, then what does not exist and so counts as used; in multiples of 8."""
    return (b"\xff" * (used // 8) + b"\0" * (free // 8)).ljust(BLOCK_BYTES, b"\xff")


def inode(of: Attributes, block_map: bytes, blocks: int, *, extents: bool, indexed: bool = False) -> bytes:
    """Give an inode.

    :param block_map: ``i_block``.
    :param blocks: Blocks that it takes.
    :param extents: Whether ``block_map`` is the root of an extent tree.
    :param indexed: Whether it is a directory with an index.
    """
    sectors = blocks * (BLOCK_BYTES // _SECTOR)
    times = [_time(at) for at in (of.atime, of.ctime, of.mtime)]
    (atime, atime_extra), (ctime, ctime_extra), (mtime, mtime_extra) = times
    packed = _INODE.pack(
        of.mode,
        of.uid & 0xFFFF,
        of.size & 0xFFFFFFFF,
        atime,
        ctime,
        mtime,
        0,
        of.gid & 0xFFFF,
        1 if of.links >= _MOST_LINKS else of.links,
        sectors & 0xFFFFFFFF,
        (_EXTENTS_FLAG if extents else 0) | (_INDEX_FLAG if indexed else 0),
        0,
        block_map,
        0,
        0,
        of.size >> 32,
        0,
        sectors >> 32,
        0,
        of.uid >> 16,
        of.gid >> 16,
        0,
        0,
        _EXTRA_BYTES,
        0,
        ctime_extra,
        mtime_extra,
        atime_extra,
        ctime,  # i_crtime: not known
        ctime_extra,
        0,
        0,
    )
    return packed.ljust(INODE_BYTES, b"\0")


def _time(at: int) -> tuple[int, int]:
    """Give a time's lower 32 bits of seconds, signed, and its other field: 2 bits of the seconds and the nanoseconds.

    What lies outside of 1901 to 2446 becomes the nearest that can be said.
    """
    seconds, nanoseconds = divmod(at, 1_000_000_000)
    seconds = min(max(seconds, -(1 << 31)), _MOST_TIME - (1 << 31) - 1)
    low = seconds & 0xFFFFFFFF
    signed = low - (1 << 32) if low >> 31 else low
    return low, (seconds - signed) >> 32 & 3 | nanoseconds << 2


def device_map(mode: int, device: tuple[int, int]) -> bytes:
    """Give a device node's ``i_block``; for a FIFO or a socket, which have none, zeros."""
    major, minor = device
    if not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
        words = (0, 0)
    elif major < 1 << 8 and minor < 1 << 8:
        words = (major << 8 | minor, 0)  # old_encode_dev()
    else:
        words = (0, minor & 0xFF | major << 8 | (minor & ~0xFF) << 12)  # new_encode_dev()
    return struct.pack("<II", *words).ljust(60, b"\0")


def extent_node(entries: Sequence[tuple[int, int, int]], depth: int, room: int) -> bytes:
    """Give a node of an extent tree: at depth 0 its entries are extents, else they lead to further nodes.

    :param entries: For each the first logical block, its address on the disk, and how many blocks an extent has.
    :param room: Entries that the node has room for.
    """
    packed = [_HEAD.pack(_EXTENT_MAGIC, len(entries), room, depth, 0)]
    for logical, block, count in entries:
        low, high = block & 0xFFFFFFFF, block >> 32
        if depth:
            packed.append(struct.pack("<IIHH", logical, low, high, 0))
        else:
            packed.append(struct.pack("<IHHI", logical, count, high, low))
    return b"".join(packed).ljust(_HEAD.size + room * _ENTRY_BYTES, b"\0")


def journal_superblock(blocks: int) -> bytes:
    """Give the first block of a journal that holds nothing (Documentation/filesystems/ext4/journal.rst)."""
    head = struct.pack(">III", _JOURNAL_MAGIC, _JOURNAL_SUPERBLOCK_V2, 0)
    # s_blocksize, s_maxlen, s_first, s_sequence, s_start (0: clean), s_errno, three sets of features
    static = struct.pack(">9I", BLOCK_BYTES, blocks, 1, 1, 0, 0, 0, 0, 0)
    return head + static + _UUID + struct.pack(">I", 1)  # s_nr_users
