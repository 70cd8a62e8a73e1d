"""Where things lie on the made-up disk: every block group is laid out alike.

A group's first blocks are its own description, then come the blocks that show the host's files, which the guest takes
for used, then those that the guest may take for what it writes. Of a group's inodes the lower half is the host's, the
upper the guest's. So what the guest creates finds room in its parent's group, as on a file system that is not full.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["BLOCK_BYTES", "INODES_PER_BLOCK", "INODE_BYTES", "Geometry", "blocks_of"]

BLOCK_BYTES = 4096
INODE_BYTES = 256
INODES_PER_BLOCK = BLOCK_BYTES // INODE_BYTES


def blocks_of(size: int) -> int:
    """Give the number of blocks that so many bytes take."""
    return -(-size // BLOCK_BYTES)


@dataclass(frozen=True, slots=True)
class Geometry:
    """Numbers of blocks and inodes; all offsets are in blocks from a group's beginning.

    :ivar groups: Block groups.
    """

    groups: int

    group_blocks = 8 * BLOCK_BYTES
    """As many as one block of bitmap can describe."""

    group_inodes = 8192
    """One for each 16 KiB, as ``mke2fs`` makes them."""

    block_bitmap = 510
    inode_bitmap = 511
    inode_table = 512
    host_inodes = group_inodes // 2
    host_table_blocks = host_inodes // INODES_PER_BLOCK
    first_block = inode_table + group_inodes // INODES_PER_BLOCK
    """The first after the group's description."""

    host_blocks = 24576
    guest_block = first_block + host_blocks
    guest_blocks = group_blocks - guest_block

    meta_share = 8
    """One group in so many holds directories and extent trees of the host's, not its files' data. The kernel reads
    those through the page cache of the device, ahead of what it needs, and there is no sense in reading files so."""

    @property
    def blocks(self) -> int:
        """All blocks."""
        return self.groups * self.group_blocks

    @property
    def data_groups(self) -> range:
        """The groups that show data of the host's files."""
        return range(self.groups - max(1, self.groups // self.meta_share))

    @property
    def meta_groups(self) -> range:
        """The groups that show directories, extent trees and long symbolic links of the host."""
        return range(self.data_groups.stop, self.groups)

    def inode_number(self, block: int, slot: int) -> int:
        """Give the number of an inode.

        :param block: The block of the inode table that holds it, an address on the disk.
        :param slot: Its place in the block.
        """
        group, offset = divmod(block, self.group_blocks)
        return group * self.group_inodes + (offset - self.inode_table) * INODES_PER_BLOCK + slot + 1
