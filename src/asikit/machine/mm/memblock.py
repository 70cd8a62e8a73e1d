"""Boot-time allocation of page frames, before there is a page allocator: from the lowest frame up."""

from __future__ import annotations

from asikit.machine.mm.errors import OutOfMemoryError


class Memblock:
    """Frames 0 to `frames` - 1, of which some are reserved; `alloc` reserves one more.

    :ivar allocated: What `alloc` has handed out.
    """

    def __init__(self, frames: int) -> None:
        self.frames = frames
        self.allocated: list[int] = []
        self._reserved: set[int] = set()
        self._next = 0

    def reserve(self, start_pfn: int, end_pfn: int) -> None:
        """Reserve frames up to but not including `end_pfn`, for the kernel image, say."""
        self._reserved.update(range(start_pfn, end_pfn))

    def alloc(self) -> int:
        """Return a frame, and reserve it: `alloc_low_page()`. Memory nobody wrote to is zero. OutOfMemoryError."""
        while self._next in self._reserved:
            self._next += 1
        if self._next >= self.frames:
            raise OutOfMemoryError(f"memory of {self.frames} page frames is too small to boot with")
        self._reserved.add(self._next)
        self.allocated.append(self._next)
        return self._next

    def free_ranges(self) -> list[range]:
        """Return the frames that are not reserved, for the page allocator: `memblock_free_all()`."""
        ranges = []
        start = 0
        for pfn in sorted(frame for frame in self._reserved if frame < self.frames):
            if pfn > start:
                ranges.append(range(start, pfn))
            start = pfn + 1
        if start < self.frames:
            ranges.append(range(start, self.frames))
        return ranges
