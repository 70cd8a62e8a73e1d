"""What the parts of user memory management are given to work with."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.allocator import PageAllocator
    from asikit.machine.mm.context import Context, TlbFlusher
    from asikit.machine.mm.layout import Layout

__all__ = ["BootLock", "LockFactory", "MmServices"]

LockFactory = Callable[[str], AbstractContextManager[None]]
"""Makes a sleeping lock with a name: `with lock:` holds it, for one task at a time. What the kernel's `mmap_lock`,
inode locks and vmalloc's lock need, as their holders touch memory and may hand over to another CPU at each access."""


class BootLock:
    """A lock where only one task exists: taking it twice could never end."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.held = False

    def __enter__(self) -> None:
        if self.held:
            raise RuntimeError(f"{self.name} is taken by its holder")
        self.held = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.held = False


@dataclass(frozen=True, slots=True)
class MmServices:
    """Access, allocation and flushing, as one machine has them.

    :ivar access: How kernel code reaches memory.
    :ivar allocator: Where page frames come from.
    :ivar flusher: Flushes of all CPUs' TLBs.
    :ivar context: The running CPU.
    :ivar layout: The virtual address space.
    :ivar init_pgd: Frame of init_mm's top-level table, whose kernel half never changes once the machine has booted.
    :ivar zero_page: Frame of zeroes, mapped where memory was read but never written (`empty_zero_page`, .bss of the
        kernel: nonsensitive, not counted).
    :ivar new_lock: Makes sleeping locks.
    """

    access: KernelMemory
    allocator: PageAllocator
    flusher: TlbFlusher
    context: Context
    layout: Layout
    init_pgd: int
    zero_page: int
    new_lock: LockFactory = BootLock
