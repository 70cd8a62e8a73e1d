"""What the page allocator tells about what it does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asikit.machine.mm.gfp import Gfp


class AllocatorObserver(Protocol):
    """Told of what the allocator did, after it did it."""

    def on_alloc(self, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
        """Frames were handed out; a cleared page is cleared by now. `PageAllocator.page` has the rest."""
        ...

    def on_free(self, pfn: int, order: int) -> None:
        """Frames came back."""
        ...

    def on_flip(self, pageblock: int, sensitive: bool) -> None:  # noqa: FBT001 - the one thing that it says
        """A pageblock (by number) changed sensitivity; a shootdown that this needs is done by now."""
        ...


@dataclass(slots=True)
class AllocatorCounters:
    """What happened since boot, in events unless it says frames."""

    allocations: int = 0
    frees: int = 0
    failures: int = 0
    flips_to_sensitive: int = 0
    flips_to_nonsensitive: int = 0
    flipped_frames: int = 0
    zeroed_frames: int = 0
    """Cleared on the way to nonsensitive; not those that a request asked to clear."""
    bad_pages: int = 0
    """Blocks on a list of the wrong sensitivity, found at allocation. With `debug` they are an error instead."""
