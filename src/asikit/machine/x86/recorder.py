"""What the structures of a core learn of what its threads do. Off unless asked for, as only attacks need it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.x86.structures import (
    Bhb,
    Btb,
    Datum,
    Divider,
    FillBuffer,
    L1d,
    LoadPort,
    Pht,
    Rsb,
    StoreBuffer,
    Structure,
    Training,
    VectorRegisters,
)

if TYPE_CHECKING:
    from asikit.machine.x86.memory import PhysicalMemory
    from asikit.machine.x86.model import CpuModel
    from asikit.machine.x86.structures import StagingBuffer

__all__ = ["Recorder"]


class Recorder:
    """The structures of one core. Cpu.load and Cpu.store feed it; the rest is told by who models the code."""

    def __init__(self, model: CpuModel, memory: PhysicalMemory, threads: int, staging: StagingBuffer) -> None:
        described = model.structures
        self._memory = memory
        self.btb = Btb(described.btb, threads)
        self.bhb = Bhb(described.bhb, threads)
        self.rsb = Rsb(described.rsb, threads)
        self.pht = Pht(described.pht, threads)
        self.l1d = L1d(described.l1d, threads)
        self.fill_buffer = FillBuffer(described.fill_buffer, threads)
        self.store_buffer = StoreBuffer(described.store_buffer, threads)
        self.load_port = LoadPort(described.load_port, threads)
        self.vector_registers = VectorRegisters(described.vector_registers, threads)
        self.divider = Divider(described.divider, threads)
        self.staging_buffer = staging

    @property
    def structures(self) -> tuple[Structure[Datum] | Structure[Training], ...]:
        """All structures, the uncore's last."""
        return (
            self.btb,
            self.bhb,
            self.rsb,
            self.pht,
            self.l1d,
            self.fill_buffer,
            self.store_buffer,
            self.load_port,
            self.vector_registers,
            self.divider,
            self.staging_buffer,
        )

    # Memory.

    def load(self, thread: int, owner: str, paddr: int, value: bytes) -> None:
        """Data was read: its lines come into the L1D through a fill buffer, the value through a load port."""
        self._touch_lines(thread, owner, paddr, len(value))
        self.load_port.add(Datum(owner, value, paddr, thread))

    def store(self, thread: int, owner: str, paddr: int, value: bytes) -> None:
        """Data was written: through the store buffer into a line of the L1D, which is fetched first."""
        self.store_buffer.add(Datum(owner, value, paddr, thread))
        self._touch_lines(thread, owner, paddr, len(value), changed=True)

    def prefetch(self, thread: int, owner: str, paddr: int) -> None:
        """A line is brought into the L1D and nowhere else, as by a prefetch or a load that never retires."""
        self._touch_lines(thread, owner, paddr, 1)

    # Predictors.

    def branch(self, thread: int, owner: str, source: int, target: int) -> None:
        """An indirect branch was taken: teaches its target, and becomes history."""
        self.btb.add(Training(owner, source, target, thread))
        self.bhb.add(Training(owner, source, target, thread))

    def condition(self, thread: int, owner: str, source: int, *, taken: bool) -> None:
        """A conditional branch was decided."""
        self.pht.add(Training(owner, source, int(taken), thread))
        if taken:
            self.bhb.add(Training(owner, source, 1, thread))

    def call(self, thread: int, owner: str, source: int, returns_to: int) -> None:
        """A call was made: its return address is remembered."""
        self.rsb.add(Training(owner, source, returns_to, thread))
        self.bhb.add(Training(owner, source, returns_to, thread))

    # Registers and units.

    def vector(self, thread: int, owner: str, value: bytes) -> None:
        """A vector register got a value."""
        self.vector_registers.add(Datum(owner, value, None, thread))

    def divide(self, thread: int, owner: str, quotient: int) -> None:
        """A division was done."""
        self.divider.add(Datum(owner, quotient.to_bytes(8, "little"), None, thread))

    def special(self, thread: int, owner: str, value: bytes) -> None:
        """RDRAND, RDSEED or MMIO data came from the uncore: through the staging buffer and a fill buffer."""
        self.staging_buffer.add(Datum(owner, value, None, thread))
        self.fill_buffer.add(Datum(owner, value, None, thread))

    def clear(self, primitive: str, thread: int) -> None:
        """Clear every structure that the CPU model says a primitive clears."""
        for structure in self.structures:
            if primitive in structure.model.cleared_by:
                structure.clear(thread)

    def sleep(self, sleeper: int) -> None:
        """A thread goes to sleep: its parts of partitioned structures pass to the other."""
        for structure in self.structures:
            structure.sleep(sleeper)

    def wake(self, waker: int) -> None:
        """A thread wakes up: it has parts of partitioned structures again."""
        for structure in self.structures:
            structure.wake(waker)

    def _touch_lines(self, thread: int, owner: str, paddr: int, size: int, *, changed: bool = False) -> None:
        size_of_line = self.l1d.line_bytes
        for base in range(paddr & -size_of_line, paddr + size, size_of_line):
            held = self.l1d.line(base)
            if held is None:
                line = Datum(owner, self._memory.read(base, size_of_line), base, thread)
                self.fill_buffer.add(line)
                self.l1d.fill(line)
            elif changed:
                self.l1d.fill(Datum(owner, self._memory.read(base, size_of_line), base, thread))
