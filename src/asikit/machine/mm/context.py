"""What memory management asks of whoever runs it: on which CPU it runs, what it may do there, and TLB flushes."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from types import TracebackType


class Context(Protocol):
    """The running CPU and what its present context allows.

    `cpu_number` counts from 0. `irqs_enabled` is the CPU's interrupt flag. `may_block` is false in interrupt handlers,
    with preemption off, and for a holder of a spin lock: where the kernel's `might_sleep()` would complain.
    """

    @property
    def cpu_number(self) -> int:
        """The running CPU."""
        ...

    @property
    def irqs_enabled(self) -> bool:
        """Whether the running CPU takes interrupts."""
        ...

    @property
    def may_block(self) -> bool:
        """Whether the running code may sleep, and wait for other CPUs."""
        ...

    def cpu_relax(self) -> None:
        """Let other CPUs make progress while this one spins."""
        ...

    def uncounted(self) -> AbstractContextManager[None]:
        """Accesses inside are ASI's own doing: the logical clock, which is the same with ASI off, does not count them.

        Scheduling points they are all the same.
        """
        ...


class TlbFlusher(Protocol):
    """Flushes of every CPU's TLB. They return when no CPU can use the old entries any more.

    Addresses are virtual and in bytes; `end` is exclusive. `mm` is whatever the implementer knows an mm by.
    """

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Flush kernel addresses in every address space, the restricted ones among them."""
        ...

    def flush_tlb_mm_range(self, mm: int, start: int, end: int) -> None:
        """Flush one mm's user addresses."""
        ...

    def flush_tlb_all(self) -> None:
        """Flush everything."""
        ...


@dataclass(slots=True)
class BootContext:
    """Early boot: one CPU, nothing that could interrupt it or that would have to be waited for."""

    cpu_number: int = 0
    irqs_enabled: bool = True
    may_block: bool = True

    def cpu_relax(self) -> None:
        """Nobody else runs."""

    def uncounted(self) -> AbstractContextManager[None]:
        """There is no clock yet."""
        return nullcontext()


class BootFlusher:
    """Early boot: no page tables are loaded yet, so no TLB holds anything."""

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Nothing to flush."""

    def flush_tlb_mm_range(self, mm: int, start: int, end: int) -> None:
        """Nothing to flush."""

    def flush_tlb_all(self) -> None:
        """Nothing to flush."""


class SpinLock:
    """A `spinlock_t` across modelled accesses, each of which may hand over to another CPU.

    Code between two accesses is never interrupted, so what touches only Python objects needs no lock. A lock that
    interrupt handlers take too must be held with interrupts off, as in the kernel; taking it twice is an error.
    """

    def __init__(self, context: Context) -> None:
        self.context = context
        self.owner: int | None = None
        """The CPU that holds it."""

    def __enter__(self) -> None:
        cpu = self.context.cpu_number
        while self.owner is not None:
            if self.owner == cpu:
                raise RuntimeError(f"cpu {cpu} takes a spin lock that it holds already")
            self.context.cpu_relax()
        self.owner = cpu

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.owner = None
