"""A folder of the host as a disk of the guest: an ext4 file system that is made up as it is read, over NBD."""

from __future__ import annotations

from asikit.record.disk.image import HostDisk
from asikit.record.disk.nbd import NbdServer
from asikit.record.disk.room import DiskFullError
from asikit.record.disk.tree import ExtraFile

__all__ = ["MOUNT_OPTIONS", "DiskFullError", "ExtraFile", "HostDisk", "NbdServer"]

MOUNT_OPTIONS = "inode_readahead_blks=0,no_prefetch_block_bitmaps"
"""How the guest is to mount the disk: what is made up when it is read is not read ahead."""
