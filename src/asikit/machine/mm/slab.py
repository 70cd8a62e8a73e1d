"""Kernel objects smaller than a page: mm/slub.c and mm/slab_common.c.

Slabs are nonsensitive. A caller's `Gfp.SENSITIVE` (part of GFP_USER) does not reach the page allocator, as `new_slab()`
hands on only GFP_RECLAIM_MASK and GFP_CONSTRAINT_MASK: otherwise one object's flag would decide for all that later
share its slab. A cache made with the flag has sensitive slabs only, by `allocflags`, as one with SLAB_CACHE_DMA has DMA
memory only. Which objects are free is kept beside the memory, not in it: nothing is stored in a free object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from asikit.machine.mm.errors import MmError, OutOfMemoryError
from asikit.machine.mm.gfp import GFP_KERNEL, RECLAIM, Gfp
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE
from asikit.machine.mm.text import kernel_function
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.machine.mm.access import KernelMemory
    from asikit.machine.mm.services import MmServices

__all__ = ["BadObjectError", "KmemCache", "SlabAllocator"]

MAX_ORDER: Final = 3
"""The largest slab, `slub_max_order` = PAGE_ALLOC_COSTLY_ORDER."""

MIN_OBJECTS: Final = 8
"""Objects that a slab should have."""

ALIGN: Final = 8

KMALLOC_SIZES: Final = (8, 16, 32, 64, 96, 128, 192, 256, 512, 1024, 2048, 4096, 8192)
"""Bytes of the kmalloc caches' objects; more than the last is whole pages."""

_RECLAIM_MASK: Final = (
    RECLAIM
    | Gfp.HIGH
    | Gfp.IO
    | Gfp.FS
    | Gfp.NOWARN
    | Gfp.RETRY_MAYFAIL
    | Gfp.NOFAIL
    | Gfp.NORETRY
    | Gfp.ATOMIC
    | Gfp.MEMALLOC
    | Gfp.NOMEMALLOC
    | Gfp.NOLOCKDEP
)
"""GFP_RECLAIM_MASK (mm/internal.h)."""
_CONSTRAINT_MASK: Final = Gfp.HARDWALL | Gfp.THISNODE
"""GFP_CONSTRAINT_MASK (mm/internal.h)."""


_NO_FLAGS = Gfp(0)


class BadObjectError(MmError):
    """An address was freed that is no object of that cache, or not one that is in use.

    :ivar address: The address.
    """

    def __init__(self, address: int, reason: str) -> None:
        super().__init__(f"object {address:#x}: {reason}")
        self.address = address


@dataclass(slots=True, eq=False)
class _Slab:
    """`struct slab`: pages cut into objects; `free` are the addresses of those that are not in use."""

    cache: KmemCache
    pfn: int
    order: int
    objects: int
    free: list[int] = field(default_factory=list)

    @property
    def empty(self) -> bool:
        """Whether no object is in use."""
        return len(self.free) == self.objects


class KmemCache:
    """Objects of one size. Made by `SlabAllocator.cache`.

    :ivar name: As in /proc/slabinfo.
    :ivar size: Bytes of an object, a multiple of 8.
    :ivar allocflags: Flags that every request for its pages has.
    """

    def __init__(self, services: MmServices, name: str, size: int, allocflags: Gfp) -> None:
        if not 0 < size <= PAGE_SIZE << MAX_ORDER:
            raise ValueError(f"cache {name}: objects of {size} bytes")
        self.access: KernelMemory = services.access
        self.name = name
        self.size = (size + ALIGN - 1) & -ALIGN
        self.allocflags = allocflags
        self._services = services
        self._orders = _orders(self.size)
        self._partial: list[_Slab] = []
        self._in_use: set[int] = set()

    @property
    def in_use(self) -> int:
        """Objects in use."""
        return len(self._in_use)

    @kernel_function("kmem_cache_alloc")
    def alloc(self, gfp: Gfp = GFP_KERNEL, *, zero: bool = False) -> int:
        """Return the direct-map address of an object; its content is undefined unless `zero` or Gfp.ZERO.

        :raises OutOfMemoryError: Nothing was changed.
        """
        if not self._partial:
            self._partial.append(self._new_slab(gfp))
        slab = self._partial[-1]
        address = slab.free.pop()
        if not slab.free:
            self._partial.remove(slab)
        self._in_use.add(address)
        if zero or gfp & Gfp.ZERO:
            self.access.store(address, bytes(self.size))
        return address

    @kernel_function("kmem_cache_free")
    def free(self, address: int) -> None:
        """Give an object back; the last but one empty slab's pages go back to the page allocator.

        :raises BadObjectError: It is none of this cache, or is free already.
        """
        if address not in self._in_use:
            raise BadObjectError(address, f"not in use in cache {self.name}")
        self._in_use.remove(address)
        slab = self._slab(address)
        slab.free.append(address)
        if len(slab.free) == 1:
            self._partial.insert(0, slab)
        if slab.empty and any(other.empty for other in self._partial if other is not slab):
            self._discard(slab)

    def shrink(self) -> int:
        """Free the slabs without objects in use, `kmem_cache_shrink()`; return how many frames that gave."""
        empty = [slab for slab in self._partial if slab.empty]
        for slab in empty:
            self._discard(slab)
        return sum(1 << slab.order for slab in empty)

    def _slab(self, address: int) -> _Slab:
        slab = self._services.allocator.page(self._services.layout.phys(address) >> PAGE_SHIFT).owner
        if not isinstance(slab, _Slab):
            raise BadObjectError(address, "not in a slab")
        return slab

    def _new_slab(self, gfp: Gfp) -> _Slab:
        """Get pages for objects, fewer if there is no large piece of memory: `allocate_slab()`."""
        flags = gfp & (_RECLAIM_MASK | _CONSTRAINT_MASK) | self.allocflags
        allocator = self._services.allocator
        large, small = self._orders
        try:
            order = large
            attempt = (flags | Gfp.NOWARN | Gfp.NORETRY) & ~Gfp.NOFAIL if small < large else flags
            pfn = allocator.alloc_pages(attempt, order, kind=PageKind.SLAB, cache=self.name)
        except OutOfMemoryError:
            if small == large:
                raise
            order = small
            pfn = allocator.alloc_pages(flags, order, kind=PageKind.SLAB, cache=self.name)
        base = self._services.layout.virt(pfn << PAGE_SHIFT)
        objects = (PAGE_SIZE << order) // self.size
        slab = _Slab(self, pfn, order, objects)
        slab.free.extend(base + index * self.size for index in reversed(range(objects)))
        allocator.page(pfn).owner = slab
        return slab

    def _discard(self, slab: _Slab) -> None:
        self._partial.remove(slab)
        self._services.allocator.page(slab.pfn).owner = None
        self._services.allocator.free_pages(slab.pfn, slab.order)


class SlabAllocator:
    """All caches, and kmalloc on top of some of them."""

    def __init__(self, services: MmServices) -> None:
        self.access: KernelMemory = services.access
        self._services = services
        self._caches: dict[str, KmemCache] = {}
        services.allocator.reclaimers.append(lambda _order: self.shrink())

    def cache(self, name: str, size: int, gfp: Gfp = _NO_FLAGS) -> KmemCache:
        """Return the cache of this name, made on first use: `kmem_cache_create()`.

        :param size: Bytes of an object.
        :param gfp: What all its pages have besides the requests' flags: Gfp.SENSITIVE, or Gfp.RECLAIMABLE
            (SLAB_RECLAIM_ACCOUNT).
        :raises ValueError: It exists with another size or other flags.
        """
        cache = self._caches.get(name)
        if cache is None:
            cache = self._caches[name] = KmemCache(self._services, name, size, gfp)
        elif cache.size != (size + ALIGN - 1) & -ALIGN or cache.allocflags != gfp:
            raise ValueError(f"cache {name} exists with objects of {cache.size} bytes and {cache.allocflags!r}")
        return cache

    def __iter__(self) -> Iterator[KmemCache]:
        return iter(tuple(self._caches.values()))

    @kernel_function("__kmalloc")
    def kmalloc(self, size: int, gfp: Gfp = GFP_KERNEL) -> int:
        """Return the direct-map address of `size` bytes, from the cache of the next size or as whole pages.

        :raises OutOfMemoryError: Nothing was changed.
        """
        if size > KMALLOC_SIZES[-1]:
            return self._kmalloc_large(size, gfp)
        fitting = next(known for known in KMALLOC_SIZES if known >= size)
        infix, allocflags = "", _NO_FLAGS
        if gfp & Gfp.RECLAIMABLE:  # kmalloc_type()
            infix, allocflags = "rcl-", Gfp.RECLAIMABLE
        elif gfp & Gfp.ACCOUNT:
            infix = "cg-"
        number = f"{fitting >> 10}k" if fitting >= 1 << 10 else str(fitting)
        return self.cache(f"kmalloc-{infix}{number}", fitting, allocflags).alloc(gfp)

    @kernel_function()
    def kfree(self, address: int) -> None:
        """Give back what `kmalloc` returned, or an object of any cache.

        :raises BadObjectError: It is no such address.
        """
        page = self._services.allocator.page(self._services.layout.phys(address) >> PAGE_SHIFT)
        if isinstance(page.owner, _Slab):
            page.owner.cache.free(address)
        elif page.owner is self and self._services.layout.virt(page.pfn << PAGE_SHIFT) == address:
            page.owner = None
            self._services.allocator.free_pages(page.pfn, page.order)
        else:
            raise BadObjectError(address, "neither an object nor pages from kmalloc")

    def shrink(self) -> int:
        """Free all slabs without objects in use; return how many frames that gave."""
        return sum(cache.shrink() for cache in self)

    def _kmalloc_large(self, size: int, gfp: Gfp) -> int:
        """Whole pages; as the caller's alone they may be sensitive (`kmalloc_large()` hands all flags on)."""
        order = max((size - 1) >> PAGE_SHIFT, 0).bit_length()
        pfn = self._services.allocator.alloc_pages(gfp | Gfp.COMP, order, kind=PageKind.KERNEL)
        self._services.allocator.page(pfn).owner = self
        return self._services.layout.virt(pfn << PAGE_SHIFT)


def _orders(size: int) -> tuple[int, int]:
    """Return the order to try first (enough objects, at most 1/16 wasted) and the least: `calculate_order()`."""
    least = max(size - 1, 0).bit_length() - PAGE_SHIFT
    least = max(least, 0)
    for order in range(least, MAX_ORDER + 1):
        total = PAGE_SIZE << order
        if total // size >= MIN_OBJECTS and total % size <= total // 16:
            return order, least
    return MAX_ORDER, least
