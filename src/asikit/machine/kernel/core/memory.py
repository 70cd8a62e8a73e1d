"""How the modelled kernel's code reaches memory: loads, stores and fetches at CPL 0, through the running CPU.

The fast path is an access that finds its translation: it counts the access and asks the processor. Everything else, a
point at which something is due, a fault to be handled and the access retried, a touch to be told, is off it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.x86 import Access, GeneralProtection, PageFault

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.text import KernelText
    from asikit.machine.mm import Symbol

    R = TypeVar("R")

__all__ = ["CurrentMemory"]

_READ, _WRITE, _FETCH = Access.READ, Access.WRITE, Access.FETCH


class _Kernel(doors.Processors, doors.Points, doors.Watched, doors.Attacked, doors.Transitions, Protocol):
    """What is needed of the kernel here."""

    text: KernelText


class CurrentMemory:
    """The current address space of whichever CPU runs; what `asikit.machine.mm` knows as its KernelMemory.

    :ivar watched: Somebody wants to be told of touches.
    """

    __slots__ = ("_address", "_kernel", "watched")

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        self._address = kernel.text.address
        self.watched = False

    def load(self, vaddr: int, size: int) -> bytes:
        """Read bytes, as one access."""
        kernel = self._kernel
        cpu = kernel.cpu
        cpu.clock += 1
        if cpu.clock >= cpu.due:
            kernel.at_point(cpu, "load")
        try:
            data = cpu.hw.load(vaddr, size)
        except (PageFault, GeneralProtection) as fault:
            if kernel.speculation is not None:
                kernel.speculation.faulted()
            data = self._retry(fault, vaddr, lambda hw_cpu: hw_cpu.hw.load(vaddr, size))
        if self.watched:
            kernel.touch(cpu, _READ, vaddr, size)
        return data

    def store(self, vaddr: int, data: bytes) -> None:
        """Write bytes, as one access: all of them or, if it ends in a fixup, none."""
        kernel = self._kernel
        cpu = kernel.cpu
        cpu.clock += 1
        if cpu.clock >= cpu.due:
            kernel.at_point(cpu, "store")
        try:
            cpu.hw.store(vaddr, data)
        except (PageFault, GeneralProtection) as fault:
            self._retry(fault, vaddr, lambda hw_cpu: hw_cpu.hw.store(vaddr, data))
        if self.watched:
            kernel.touch(cpu, _WRITE, vaddr, len(data))

    def load_u64(self, vaddr: int) -> int:
        """Read a number of 64 bits."""
        kernel = self._kernel
        cpu = kernel.cpu
        cpu.clock += 1
        if cpu.clock >= cpu.due:
            kernel.at_point(cpu, "load")
        try:
            value = cpu.hw.load_u64(vaddr)
        except (PageFault, GeneralProtection) as fault:
            if kernel.speculation is not None:
                kernel.speculation.faulted()
            value = self._retry(fault, vaddr, lambda hw_cpu: hw_cpu.hw.load_u64(vaddr))
        if self.watched:
            kernel.touch(cpu, _READ, vaddr, 8)
        return value

    def store_u64(self, vaddr: int, value: int) -> None:
        """Write a number of 64 bits."""
        kernel = self._kernel
        cpu = kernel.cpu
        cpu.clock += 1
        if cpu.clock >= cpu.due:
            kernel.at_point(cpu, "store")
        try:
            cpu.hw.store_u64(vaddr, value)
        except (PageFault, GeneralProtection) as fault:
            self._retry(fault, vaddr, lambda hw_cpu: hw_cpu.hw.store_u64(vaddr, value))
        if self.watched:
            kernel.touch(cpu, _WRITE, vaddr, 8)

    def enter(self, symbol: Symbol) -> None:
        """Begin a kernel function: fetch its text, and put it on the current task's call stack."""
        kernel = self._kernel
        cpu = kernel.cpu
        address = self._address(symbol)
        cpu.task.calls.append(symbol)
        cpu.clock += 1
        if cpu.clock >= cpu.due:
            kernel.at_point(cpu, "fetch")
        try:
            cpu.hw.fetch(address)
        except (PageFault, GeneralProtection) as fault:
            self._retry(fault, address, lambda hw_cpu: hw_cpu.hw.fetch(address))
        if self.watched:
            kernel.touch(cpu, _FETCH, address, 1)
        if kernel.speculation is not None:
            kernel.speculation.called(address)

    def leave(self) -> None:
        """End the kernel function that was entered last."""
        kernel = self._kernel
        calls = kernel.cpu.task.calls
        if calls:  # a task that was killed in the middle has none
            symbol = calls.pop()
            if kernel.speculation is not None:
                kernel.speculation.returning(self._address(symbol))

    def _retry(self, fault: PageFault | GeneralProtection, vaddr: int, again: Callable[[CpuContext], R]) -> R:
        """Let the fault be handled, and retry, until the access is done. Raises UserFixup."""
        kernel = self._kernel
        retries = 0
        while True:
            retries += 1
            if isinstance(fault, GeneralProtection):
                kernel.faults.general_protection(fault, vaddr)
            else:
                kernel.faults.kernel_fault(fault, retries)
            try:
                return again(kernel.cpu)
            except (PageFault, GeneralProtection) as next_fault:
                fault = next_fault
