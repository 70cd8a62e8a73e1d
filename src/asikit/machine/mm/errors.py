"""What can go wrong in memory management: each way has a name and carries the frame or address that it is about."""

from __future__ import annotations

from asikit.errors import AsikitError


class MmError(AsikitError):
    """Base of everything that this room raises; the message is one line."""


class OutOfMemoryError(MmError):
    """No memory for a request: the kernel's NULL from `alloc_pages()`. Nothing was changed.

    :ivar order: The request's order.
    """

    def __init__(self, message: str, order: int = 0) -> None:
        super().__init__(message)
        self.order = order


class BadPageError(MmError):
    """A page frame in a state that it must not be in, the kernel's `bad_page()`.

    :ivar pfn: The page frame's number.
    """

    def __init__(self, pfn: int, reason: str) -> None:
        super().__init__(f"page frame {pfn:#x}: {reason}")
        self.pfn = pfn


class UnexpectedlyNonsensitiveError(BadPageError):
    """A page of a sensitive allocation is in the restricted address space: its content can leak."""

    def __init__(self, pfn: int) -> None:
        super().__init__(pfn, "page unexpectedly nonsensitive")


class UnexpectedlySensitiveError(BadPageError):
    """A page of a nonsensitive allocation is not in the restricted address space: each touch costs an exit."""

    def __init__(self, pfn: int) -> None:
        super().__init__(pfn, "page unexpectedly sensitive")


class UnmappedPageError(BadPageError):
    """A page without an unrestricted mapping was freed or handed out: the next `clear_page_erms` on it would oops."""

    def __init__(self, pfn: int) -> None:
        super().__init__(pfn, "no mapping in the unrestricted direct map; restore it with set_memory_p before freeing")


class DoubleFreeError(BadPageError):
    """A page was freed that is free already, was never given out, or lies inside a larger allocation."""


class WrongOrderError(BadPageError):
    """An allocation was freed with another order than it was made with."""


class StillInUseError(BadPageError):
    """A page was freed that page tables still map."""


class FreelistError(BadPageError):
    """The allocator's own lists contradict each other: a broken invariant, never the caller's fault."""


class NotDirectMappedError(MmError):
    """An address or a frame outside of the direct map.

    :ivar address: The virtual or physical address in question.
    """

    def __init__(self, address: int, reason: str = "not in the direct map") -> None:
        super().__init__(f"address {address:#x}: {reason}")
        self.address = address


class FlipError(MmError):
    """A change of sensitivity that broke one of its rules (I7)."""


class AtomicFlipError(FlipError):
    """A change of sensitivity where a shootdown could not be waited for: interrupts off, or blocking forbidden."""


class FlipRangeError(FlipError):
    """A change of sensitivity of something else than whole pageblocks."""


class FlipAllocatesError(FlipError):
    """A change of sensitivity that needed a page-table page."""


class MightSleepError(MmError):
    """A request that may block, in a context where nothing may: a lock is held, or an interrupt is handled."""


class SplitError(MmError):
    """No page-table page to split a large mapping with (-ENOMEM)."""


class PageTableError(MmError):
    """A page-table operation that does not fit what the tables hold."""
