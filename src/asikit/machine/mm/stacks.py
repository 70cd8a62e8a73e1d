"""Kernel stacks: vmalloc'd, so that running over the end hits a page that is not mapped (kernel/fork.c, VMAP_STACK)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asikit.machine.mm.gfp import GFP_KERNEL, Gfp
from asikit.machine.mm.layout import PAGE_SIZE
from asikit.machine.mm.text import kernel_function
from asikit.trace import PageKind

if TYPE_CHECKING:
    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.services import MmServices
    from asikit.machine.mm.vmalloc import Vmalloc

__all__ = ["THREAD_SIZE", "KernelStacks", "Stack"]

THREAD_SIZE: Final = 4 * PAGE_SIZE
"""Bytes of a kernel stack (arch/x86/include/asm/page_64_types.h)."""

NR_CACHED_STACKS: Final = 2
"""Stacks of ended tasks that each CPU keeps for new ones (kernel/fork.c)."""

_ZEROES: Final = bytes(PAGE_SIZE)


@dataclass(frozen=True, slots=True)
class Stack:
    """A kernel stack: used from `top` downwards; the page below `base` is never mapped."""

    base: int

    @property
    def top(self) -> int:
        """The first address after it."""
        return self.base + THREAD_SIZE


class KernelStacks:
    """Makes kernel stacks; a few are kept for the next task of the CPU."""

    def __init__(self, services: MmServices, vmalloc: Vmalloc) -> None:
        self.access: KernelMemory = services.access
        self._context = services.context
        self._vmalloc = vmalloc
        self._cached: dict[int, list[Stack]] = {}
        services.allocator.reclaimers.insert(0, self._reclaim)

    @kernel_function("alloc_thread_stack_node")
    def alloc(self) -> Stack:
        """Return a stack of zeroes; OutOfMemoryError if there is no memory for one."""
        cached = self._cached.get(self._context.cpu_number)
        if cached:
            stack = cached.pop()
            for page in range(stack.base, stack.top, PAGE_SIZE):
                self.access.store(page, _ZEROES)
            return stack
        gfp = GFP_KERNEL | Gfp.ZERO
        return Stack(self._vmalloc.vmalloc(THREAD_SIZE, gfp, kind=PageKind.STACK, align=THREAD_SIZE))

    def free(self, stack: Stack) -> None:
        """Keep a stack for the CPU's next task, or free it: `free_thread_stack()`."""
        cached = self._cached.setdefault(self._context.cpu_number, [])
        if len(cached) < NR_CACHED_STACKS:
            cached.append(stack)
        else:
            self._vmalloc.vfree(stack.base)

    def _reclaim(self, _order: int) -> int:
        """Memory is short: give the kept stacks to vmalloc, which frees them with its next flush."""
        self.free_vm_stack_cache()
        return 0

    def free_vm_stack_cache(self) -> None:
        """Free the stacks that are kept (kernel/fork.c)."""
        for cached in self._cached.values():
            while cached:
                self._vmalloc.vfree(cached.pop().base)
