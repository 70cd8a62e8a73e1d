"""A disk that the guest may write to and that is not changed by it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

from asikit.record.disk.geometry import BLOCK_BYTES, blocks_of
from asikit.record.disk.scratch import Scratch

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GuestDisk"]


class GuestDisk(ABC):
    """What a disk was before the guest wrote, and over it what the guest has written, until it is closed.

    A context manager. Not for several threads at once.

    :ivar size: Bytes.
    """

    mount_options = ""
    """How the guest is to mount it."""

    def __init__(self, size: int, scratch: Path | None = None) -> None:
        """Begin with nothing written.

        :param scratch: Where the file lies that takes what the guest writes.
        :raises OSError: The file cannot be made.
        """
        self.size = size
        self._scratch = Scratch(scratch)

    def __enter__(self) -> Self:
        """Give the disk."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Forget what was written."""
        self._scratch.close()

    @property
    def written_bytes(self) -> int:
        """What the guest has written, in whole blocks; what is written over counts once."""
        return self._scratch.written_bytes

    def read(self, offset: int, length: int) -> bytes:
        """Read.

        :raises OSError: The host cannot read it.
        :raises DiskFullError: There are no inodes or blocks left to show what the guest wants to see.
        """
        first = offset // BLOCK_BYTES
        count = blocks_of(offset + length) - first
        data = self._blocks(first, count)
        start = offset - first * BLOCK_BYTES
        return data if len(data) == length else data[start : start + length]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write.

        :raises OSError: The host's disk is full, or part of a block was written and the rest cannot be read.
        :raises DiskFullError: As in :meth:`read`.
        """
        first, start = divmod(offset, BLOCK_BYTES)
        count = blocks_of(start + len(data))
        if count * BLOCK_BYTES != len(data):
            whole = bytearray(self._blocks(first, count))
            whole[start : start + len(data)] = data
            data = bytes(whole)
        self._scratch.write(first, data)

    @abstractmethod
    def unwritten(self, first: int, count: int) -> bytes:
        """Give blocks as they were before the guest wrote.

        :raises OSError: As :meth:`read`.
        :raises DiskFullError: As :meth:`read`.
        """

    def _blocks(self, first: int, count: int) -> bytes:
        if self._scratch.has_none(first, count):
            return self.unwritten(first, count)
        return b"".join(
            (self._scratch.read if written else self.unwritten)(start, length)
            for start, length, written in self._scratch.runs(first, count)
        )
