"""A guest's program, and what a guest sees of its virtual machine.

The program is a Python function of one `Guest`, on a greenlet of its own. Each thing that it does to the machine is a
request, which the virtual CPU's host thread carries out in guest mode and answers, at once or after VM exits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from greenlet import getcurrent, greenlet

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "Compute",
    "Cpuid",
    "Guest",
    "GuestProgram",
    "GuestRequest",
    "GuestThread",
    "Halt",
    "Hypercall",
    "Load",
    "PortIn",
    "PortOut",
    "Store",
]

GuestProgram: TypeAlias = "Callable[[Guest], object]"
"""What a virtual CPU runs; when it returns, the CPU halts."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load of guest physical memory."""

    address: int
    size: int


@dataclass(frozen=True, slots=True)
class Store:
    """A store to guest physical memory."""

    address: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Cpuid:
    """CPUID of a leaf."""

    leaf: int


@dataclass(frozen=True, slots=True)
class Hypercall:
    """VMMCALL; `handler` is what KVM does for it in process context, for a call that this KVM has not of itself."""

    number: int
    arguments: tuple[int, ...]
    handler: Callable[[], int] | None = None


@dataclass(frozen=True, slots=True)
class PortOut:
    """OUT to an I/O port; `size` is 1, 2 or 4 bytes."""

    port: int
    value: int
    size: int


@dataclass(frozen=True, slots=True)
class PortIn:
    """IN from an I/O port."""

    port: int
    size: int


@dataclass(frozen=True, slots=True)
class Compute:
    """An instruction that accesses nothing."""


@dataclass(frozen=True, slots=True)
class Halt:
    """HLT."""


GuestRequest: TypeAlias = Load | Store | Cpuid | Hypercall | PortOut | PortIn | Compute | Halt
Answer: TypeAlias = bytes | int | tuple[int, int, int, int] | None


class GuestThread:
    """The greenlet of a guest's program; the host's greenlet steps it from request to request."""

    def __init__(self, program: GuestProgram, name: str) -> None:
        self._name = name
        self._host: greenlet | None = None
        self._greenlet = greenlet(self._run)
        self._program = program
        self.halted = False

    def step(self, answer: Answer) -> GuestRequest:
        """Give the program the answer to its last request; returns the next one, HLT for ever once it has returned."""
        if self.halted:
            return Halt()
        self._host = self._greenlet.parent = getcurrent()
        request: GuestRequest = self._greenlet.switch(answer)
        return request

    def ask(self, request: GuestRequest) -> Answer:
        """Have a request carried out; called by the program's `Guest`."""
        assert self._host is not None  # the host has switched here
        answer: Answer = self._host.switch(request)
        return answer

    def _run(self, _: Answer) -> Halt:
        try:
            self._program(Guest(self))
        except Exception as error:
            error.add_note(f"in {self._name}")
            raise
        self.halted = True
        return Halt()


class Guest:
    """The machine as one virtual CPU's program sees it. Addresses are guest physical, sizes in bytes."""

    def __init__(self, thread: GuestThread) -> None:
        self._thread = thread

    def load(self, address: int, size: int) -> bytes:
        """Read memory; what lies outside of the guest's memory the VMM emulates (MMIO)."""
        value = self._thread.ask(Load(address, size))
        return value if isinstance(value, bytes) else b""

    def store(self, address: int, data: bytes) -> None:
        """Write memory, or a device's registers."""
        self._thread.ask(Store(address, data))

    def load_u64(self, address: int) -> int:
        """Read a 64-bit number."""
        return int.from_bytes(self.load(address, 8), "little")

    def store_u64(self, address: int, value: int) -> None:
        """Write a 64-bit number."""
        self.store(address, value.to_bytes(8, "little"))

    def cpuid(self, leaf: int = 0) -> tuple[int, int, int, int]:
        """Execute CPUID, which KVM emulates; returns EAX, EBX, ECX, EDX."""
        value = self._thread.ask(Cpuid(leaf))
        return value if isinstance(value, tuple) else (0, 0, 0, 0)

    def hypercall(self, number: int, *arguments: int, handler: Callable[[], int] | None = None) -> int:
        """Call the hypervisor; returns minus an error for calls that KVM does not have (KVM_ENOSYS is 1000).

        :param handler: Kernel code that does the call's work and returns its result: in process context, so it may
            sleep, and reach the VMM's memory, as those of KVM's handlers do that read or write the guest's.
        """
        value = self._thread.ask(Hypercall(number, arguments, handler))
        return value if isinstance(value, int) else 0

    def outb(self, port: int, value: int) -> None:
        """Write a byte to an I/O port, which the VMM emulates."""
        self._thread.ask(PortOut(port, value, 1))

    def inb(self, port: int) -> int:
        """Read a byte from an I/O port, which the VMM emulates."""
        value = self._thread.ask(PortIn(port, 1))
        return value if isinstance(value, int) else 0

    def compute(self, instructions: int) -> None:
        """Execute instructions that access nothing."""
        for _ in range(instructions):
            self._thread.ask(Compute())

    def halt(self) -> None:
        """Execute HLT; goes on when the VMM runs the CPU again."""
        self._thread.ask(Halt())
