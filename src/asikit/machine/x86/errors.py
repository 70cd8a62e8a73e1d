"""What can go wrong in this room, but for the processor's own exceptions (`paging`), which are part of the model."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["BusError", "CpuModelError", "UnsupportedError"]


class CpuModelError(AsikitError):
    """A CPU model that does not exist or cannot be used; the message names the file and the key."""


class BusError(Exception):
    """A physical access to an address at which there is no memory: the modelled kernel has a bug.

    Hardware would return all ones or raise a machine check, as the platform likes; here nothing goes on.
    """

    def __init__(self, paddr: int, size: int) -> None:
        super().__init__(f"no memory at physical address {paddr:#x} (there are {size:#x} bytes)")
        self.paddr = paddr


class UnsupportedError(Exception):
    """Something that the processor allows and this model lacks, such as 32-bit paging."""
