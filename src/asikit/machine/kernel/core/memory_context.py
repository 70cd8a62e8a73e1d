"""An mm as the processor-near part of the kernel sees it: `mm->context`, and the life of an mm with its domains.

What is mapped is `asikit.machine.mm.MmStruct`'s business; here is who has it loaded, how many flushes it has seen, and
which page tables stand for it in each address space.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.mm import OutOfMemoryError
from asikit.machine.mm.fork import dup_mm
from asikit.machine.mm.mmstruct import MmStruct
from asikit.protocol import AsiClass, Space

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from asikit.machine.kernel.core.task import Task
    from asikit.machine.mm import MmServices, PageCache
    from asikit.protocol import Protocol as AsiProtocol

__all__ = ["INIT_MM", "MemoryContext", "MemoryContexts"]

INIT_MM = 0
"""The id of init_mm, which maps no user addresses."""


class _Kernel(doors.Processors, doors.Interruptible, doors.AddressSpaces, doors.Scheduled, Protocol):
    """What is needed of the kernel here."""

    services: MmServices
    page_cache: PageCache
    protocol: AsiProtocol


@dataclass(eq=False)
class MemoryContext:
    """`mm_context_t`.

    :ivar id: The mm's, `ctx_id`.
    :ivar mm: None for init_mm.
    :ivar pgd: The page frame of its top-level table.
    :ivar user_pgd: PTI's user half, None without PTI.
    :ivar domains: The page frames of its domains' top-level tables, and of their user halves.
    :ivar tlb_gen: How many flushes it has seen.
    :ivar cpumask: CPUs whose TLB may have translations of it that a flush must reach, `mm_cpumask()`.
    :ivar updating: Changes of its top-level table under way to the others.
    :ivar notifiers: Who else translates its addresses, a guest say: told of each range that is flushed, before its
        pages are used for anything else (MMU notifiers).
    :ivar gone: Its last user is gone; it is freed when no CPU has it loaded.
    """

    id: int
    mm: MmStruct | None
    pgd: int
    user_pgd: int | None = None
    domains: dict[Space, tuple[int, int | None]] = field(default_factory=dict)
    tlb_gen: int = 1
    cpumask: set[int] = field(default_factory=set)
    gone: bool = False
    notifiers: list[Callable[[int, int], None]] = field(default_factory=list)
    updating: int = 0


class MemoryContexts:
    """All mm's of a machine, by id."""

    def __init__(self, kernel: _Kernel, init_pgd: int) -> None:
        self._kernel = kernel
        self._next = 1
        self.init = MemoryContext(INIT_MM, None, init_pgd)
        self._contexts = {INIT_MM: self.init}

    def of(self, mm: MmStruct | None) -> MemoryContext:
        """Return the context of an mm; of init_mm for None."""
        return self.init if mm is None else self._contexts[mm.id]

    def find(self, number: int) -> MemoryContext | None:
        """Return the context of an mm's number, None if there is none (yet, or any more)."""
        return self._contexts.get(number)

    def __iter__(self) -> Iterator[MemoryContext]:
        return iter(tuple(self._contexts.values()))

    def new(self) -> MmStruct:
        """Make an mm with nothing mapped, and its userspace domain: `mm_alloc()`. Raises OutOfMemoryError."""
        number = self._number()
        mm = MmStruct(self._kernel.services, self._kernel.page_cache, number)
        self._register(mm)
        return mm

    def duplicate(self, parent: MmStruct) -> MmStruct:
        """Make a copy-on-write copy, and its userspace domain: `dup_mm()`. Raises OutOfMemoryError."""
        number = self._number()

        def changed(index: int, entry: int) -> None:
            # What is mapped before the domains are made is copied when they are.
            if number in self._contexts:
                self._kernel.domains.mirror(self._contexts[number], index, entry)

        mm = dup_mm(parent, number, on_pgd_change=(changed,))
        self._register(mm, announced=True)
        return mm

    def _number(self) -> int:
        number = self._next
        self._next += 1
        return number

    def _register(self, mm: MmStruct, *, announced: bool = False) -> None:
        kernel = self._kernel
        context = MemoryContext(mm.id, mm, mm.pgd)
        self._contexts[mm.id] = context
        if not announced:
            mm.on_pgd_change.append(lambda index, entry: kernel.domains.mirror(context, index, entry))
        try:
            kernel.domains.make_user_half(context)
            if AsiClass.USERSPACE in kernel.protocol.config.classes:
                kernel.domains.init(context, AsiClass.USERSPACE)
        except OutOfMemoryError:
            self._forget(context)
            mm.put()
            raise

    def put(self, mm: MmStruct) -> None:
        """Drop a user: the last one unmaps everything, and frees the page tables once no CPU has them loaded."""
        context = self._contexts[mm.id]
        last = mm.mm_users == 1
        if last:
            mm.grab()  # its page tables are needed until the CPUs that borrow them let go
        mm.put()
        if last:
            context.gone = True
            self.release(context)

    def release(self, context: MemoryContext) -> None:
        """Free the page tables of an mm without users, unless a CPU has them loaded: `mmdrop()`."""
        mm = context.mm
        if mm is None or not context.gone or context.id not in self._contexts:
            return
        if any(cpu.loaded_mm is context for cpu in self._kernel.cpus):
            return
        self._forget(context)
        mm.drop()

    def _forget(self, context: MemoryContext) -> None:
        self._kernel.domains.destroy_all(context)
        del self._contexts[context.id]

    def exec_mmap(self, task: Task, mm: MmStruct) -> None:
        """Give the current task another mm, and load its page tables: `exec_mmap()`. The old one loses a user."""
        old = task.mm
        with self._kernel.irqs_off():
            task.mm = task.active_mm = mm
            task.cookie = mm.id
            self._kernel.sched.switch_mm(self._contexts[mm.id])
        if old is not None:
            self.put(old)

    def exit_mm(self, task: Task) -> None:
        """Take the current task's mm from it: `exit_mm()`. The CPU keeps the page tables loaded, lazily."""
        mm = task.mm
        if mm is None:
            return
        with self._kernel.irqs_off():
            task.mm = None
            self._kernel.cpu.lazy = True
        self.put(mm)
