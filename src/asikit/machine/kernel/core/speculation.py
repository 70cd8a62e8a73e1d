"""Where the processor speculates in kernel code: what an attack on it is told, and may do nothing architectural at.

The modelled kernel computes nothing transiently. Whoever attacks it says what the processor would do at the places
where it predicts or goes on past a fault.
"""

from __future__ import annotations

from typing import Protocol

__all__ = ["Speculation"]


class Speculation(Protocol):
    """Told, on the running CPU, of each place at which the processor may run ahead."""

    def entered(self) -> None:
        """User mode was left; of the entry code nothing has run, not even a switch of page tables."""

    def called(self, function: int) -> None:
        """A kernel function is called, at its address."""

    def returning(self, function: int) -> None:
        """A kernel function is about to return."""

    def faulted(self) -> None:
        """A load of kernel code faults; the fault is not taken yet."""
