"""How kernel code reaches memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from asikit.machine.mm.layout import Layout
    from asikit.machine.mm.text import Symbol


class KernelMemory(Protocol):
    """Memory as the running CPU's kernel code sees it: through the current address space.

    Addresses are virtual, sizes in bytes, numbers little-endian and unsigned. An access may fault, be handled (by an
    exit from ASI, say) and be retried inside the call; code that uses it never notices.
    """

    def load(self, vaddr: int, size: int) -> bytes:
        """Read bytes; the range may cross pages."""
        ...

    def store(self, vaddr: int, data: bytes) -> None:
        """Write bytes; the range may cross pages."""
        ...

    def load_u64(self, vaddr: int) -> int:
        """Read an aligned 64-bit number."""
        ...

    def store_u64(self, vaddr: int, value: int) -> None:
        """Write an aligned 64-bit number."""
        ...

    def enter(self, symbol: Symbol) -> None:
        """Begin a kernel function: its text is fetched, and it goes on the call stack."""
        ...

    def leave(self) -> None:
        """End the kernel function that was entered last."""
        ...


class FrameStore(Protocol):
    """Physical memory by physical address, as `asikit.machine.x86.PhysicalMemory` has it."""

    def read(self, paddr: int, size: int) -> bytes:
        """Read bytes."""
        ...

    def write(self, paddr: int, data: bytes) -> None:
        """Write bytes."""
        ...

    def read_u64(self, paddr: int) -> int:
        """Read an aligned 64-bit number."""
        ...

    def write_u64(self, paddr: int, value: int) -> None:
        """Write an aligned 64-bit number."""
        ...


class BootMemory:
    """Early boot, before there are page tables: direct-map addresses by arithmetic, and no others."""

    def __init__(self, memory: FrameStore, layout: Layout) -> None:
        self._memory = memory
        self._phys = layout.phys

    def load(self, vaddr: int, size: int) -> bytes:
        """Read bytes; NotDirectMappedError outside of the direct map."""
        return self._memory.read(self._phys(vaddr), size)

    def store(self, vaddr: int, data: bytes) -> None:
        """Write bytes; NotDirectMappedError outside of the direct map."""
        self._memory.write(self._phys(vaddr), data)

    def load_u64(self, vaddr: int) -> int:
        """Read an aligned 64-bit number; NotDirectMappedError outside of the direct map."""
        return self._memory.read_u64(self._phys(vaddr))

    def store_u64(self, vaddr: int, value: int) -> None:
        """Write an aligned 64-bit number; NotDirectMappedError outside of the direct map."""
        self._memory.write_u64(self._phys(vaddr), value)

    def enter(self, symbol: Symbol) -> None:
        """Nobody asks yet what runs."""

    def leave(self) -> None:
        """Nobody asks yet what runs."""
