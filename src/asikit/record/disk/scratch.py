"""What the guest has written: kept in a file without a name, at the place that it has on the disk."""

from __future__ import annotations

import os
import tempfile
from typing import TYPE_CHECKING

from asikit.record.disk.geometry import BLOCK_BYTES

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Scratch"]


class Scratch:
    """Blocks that have been written. The file is as long as the disk and has holes; it goes with this process."""

    def __init__(self, folder: Path | None) -> None:
        """Make the file.

        :raises OSError: It cannot be made.
        """
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  it is open as long as this lives
        self._written: set[int] = set()

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    @property
    def written_bytes(self) -> int:
        """How much has been written, in whole blocks."""
        return len(self._written) * BLOCK_BYTES

    def has_none(self, first: int, count: int) -> bool:
        """Tell whether none of a run of blocks has been written."""
        return self._written.isdisjoint(range(first, first + count))

    def runs(self, first: int, count: int) -> list[tuple[int, int, bool]]:
        """Divide a run of blocks: the first block of each part, how many, and whether they have been written."""
        runs: list[tuple[int, int, bool]] = []
        for block in range(first, first + count):
            written = block in self._written
            if runs and runs[-1][2] == written:
                runs[-1] = (runs[-1][0], runs[-1][1] + 1, written)
            else:
                runs.append((block, 1, written))
        return runs

    def read(self, first: int, count: int) -> bytes:
        """Read blocks that have been written.

        :raises OSError: The file cannot be read.
        """
        length = count * BLOCK_BYTES
        data = os.pread(self._file.fileno(), length, first * BLOCK_BYTES)
        return data.ljust(length, b"\0")

    def write(self, first: int, data: bytes | memoryview) -> None:
        """Write whole blocks.

        :raises OSError: The disk of the host is full, say.
        """
        done = 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], first * BLOCK_BYTES + done)
        self._written.update(range(first, first + len(data) // BLOCK_BYTES))
