"""Blocks that get their meaning when the guest asks for what needs them."""

from __future__ import annotations

from bisect import bisect_right
from typing import Protocol

__all__ = ["Content", "DiskFullError", "Room"]


class DiskFullError(Exception):
    """The made-up disk has too few blocks or inodes for what the guest has looked at."""


class Content(Protocol):
    """What a run of blocks holds."""

    def read(self, first: int, count: int) -> bytes:
        """Give ``count`` blocks from the one with this place in the run on.

        :raises OSError: The host's file cannot be read.
        """


class Room:
    """Runs of blocks, handed out in rising order: the same part of each of some groups.

    A block that the guest reads before it has a meaning never gets one. The guest keeps what it has read, so it would
    not see the meaning; and it does read what nothing refers to, since it reads ahead.
    """

    def __init__(self, *, what: str, groups: range, group_blocks: int, offset: int, length: int, gap: int) -> None:
        """Begin with all blocks free.

        :param what: What the room is for, as an error says it.
        :param offset: Where the part begins in each group, in blocks.
        :param length: The part's blocks.
        :param gap: Blocks without a meaning after each run.
        """
        self._what = what
        self._groups = groups
        self._group_blocks = group_blocks
        self._offset = offset
        self.largest = length
        """The longest run."""
        self._gap = gap
        self._next = groups.start * group_blocks + offset
        self._starts: list[int] = []
        self._runs: list[tuple[int, Content]] = []
        self._spoilt: list[tuple[int, int]] = []

    def take(self, count: int, content: Content) -> int:
        """Give a run of blocks its meaning; give the first block's address.

        :raises DiskFullError: None are left.
        """
        start = self._fitting(self._next, count)
        while (after := self._spoilt_until(start, count)) is not None:
            start = self._fitting(after, count)
        self._next = start + count + self._gap
        self._starts.append(start)
        self._runs.append((count, content))
        self._spoilt = [run for run in self._spoilt if run[1] > self._next]
        return start

    def at(self, block: int) -> tuple[Content, int, int] | None:
        """Give the content of the run that a block is in, the block's place in it, and how many are left from it on.

        None: it has no meaning, and will never have one.
        """
        index = bisect_right(self._starts, block) - 1
        if index >= 0:
            count, content = self._runs[index]
            place = block - self._starts[index]
            if place < count:
                return content, place, count - place
        if block >= self._next:
            self._spoil(block)
        return None

    def _fitting(self, start: int, count: int) -> int:
        """Give the first address from one on where so many blocks lie in one group's part."""
        group, place = divmod(start, self._group_blocks)
        place = max(place, self._offset)
        if place + count > self._offset + self.largest:
            group, place = group + 1, self._offset
        if group >= self._groups.stop or count > self.largest:
            raise DiskFullError(f"the guest's view of this machine has no {self._what} left")
        return group * self._group_blocks + place

    def _spoil(self, block: int) -> None:
        if self._spoilt and self._spoilt[-1][1] == block:
            self._spoilt[-1] = (self._spoilt[-1][0], block + 1)
        else:
            self._spoilt.append((block, block + 1))

    def _spoilt_until(self, start: int, count: int) -> int | None:
        """Give the end of a spoilt run that overlaps with a run, None if none does."""
        return next((stop for first, stop in self._spoilt if first < start + count and start < stop), None)
