"""A design: the mechanism, and what the rest of the kernel owes it, each of which can be left out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asikit.machine.kernel import Machine
    from asikit.machine.mm import AllocationRequest
    from asikit.protocol import Protocol, ProtocolConfig


@dataclass(frozen=True)
class Design:
    """What is proved, or attacked.

    :ivar protocol: The mechanism, or a mutant of it.
    :ivar unmapped: The restricted address spaces lack sensitive memory.
    :ivar shootdown: Memory that turns sensitive is flushed from all TLBs before secrets come into it.
    :ivar boot_tainted: What booting left in the structures is recorded as KERNEL_DATA.
    :ivar core_scheduling: Siblings run untrusted code only of the same mm.
    """

    protocol: Protocol
    unmapped: bool = True
    shootdown: bool = True
    boot_tainted: bool = True
    core_scheduling: bool = True

    @property
    def config(self) -> ProtocolConfig:
        """The protocol's configuration."""
        return self.protocol.config


# On the machine.


def nothing_is_sensitive(request: AllocationRequest) -> bool:
    """Call no memory sensitive: a machine's `sensitivity`, where the restricted address spaces lack nothing."""
    del request
    return False


def leave_stale_translations(machine: Machine) -> None:
    """Let a machine's kernel forget the shootdown of what turns sensitive."""
    machine.kernel.direct_map.attach(flusher=_NoShootdown())


class _NoShootdown:
    """Flushes nothing."""

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Leave translations where they are."""

    def flush_tlb_mm_range(self, mm: int, start: int, end: int) -> None:
        """Leave translations where they are."""

    def flush_tlb_all(self) -> None:
        """Leave translations where they are."""
