"""A folder of the host as a disk of the guest: an ext4 file system that is made up as it is read, over NBD."""

from __future__ import annotations

from asikit.record.disk.image import HostDisk
from asikit.record.disk.nbd import NbdServer
from asikit.record.disk.room import DiskFullError
from asikit.record.disk.tree import ExtraFile
from asikit.record.disk.written import GuestDisk

__all__ = ["DiskFullError", "ExtraFile", "GuestDisk", "HostDisk", "NbdServer"]
