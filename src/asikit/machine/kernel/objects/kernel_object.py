"""Kernel objects: structures in slab memory, whose fields are loads and stores of the modelled kernel.

An object's Python attributes only say what a field means; its value lies in modelled memory, so using the object
touches the slab page that it is on, as in Linux.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self, overload

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel

__all__ = ["KernelObject", "Word"]


class Word:
    """An unsigned 64-bit field at an offset, in bytes, of a `KernelObject`."""

    def __init__(self, offset: int) -> None:
        self._offset = offset

    @overload
    def __get__(self, owner: None, kind: type) -> Self: ...
    @overload
    def __get__(self, owner: KernelObject, kind: type) -> int: ...

    def __get__(self, owner: KernelObject | None, kind: type) -> int | Self:
        if owner is None:
            return self
        return owner.kernel.access.load_u64(owner.address + self._offset)

    def __set__(self, owner: KernelObject, value: int) -> None:
        owner.kernel.access.store_u64(owner.address + self._offset, value)


class KernelObject:
    """A structure from a slab cache of its own.

    :cvar cache_name: Name of the slab cache, as in /proc/slabinfo.
    :cvar size: Bytes of the structure.
    :ivar address: Where it is, a direct-map address.

    Making one raises OutOfMemoryError.
    """

    cache_name: ClassVar[str]
    size: ClassVar[int]

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._cache = kernel.slab.cache(self.cache_name, self.size)
        self.address = self._cache.alloc(zero=True)

    def free(self) -> None:
        """Give the memory back; the object is unusable afterwards."""
        self._cache.free(self.address)
        self.address = -1
