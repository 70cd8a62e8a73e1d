"""Microarchitectural structures: what a core leaves behind, whose it is, and who can come by it.

Two kinds. A *data structure* holds values that passed through it (`Datum`); a *predictor* holds what was learnt
(`Training`). Each is described by the CPU model: how many entries, who shares it, what clears it. Nothing here decides
whether something leaks: `visible` says what a hardware thread's next access or prediction may come by.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, ClassVar, Generic, NamedTuple, TypeVar

from asikit.machine.x86.model import Sharing

if TYPE_CHECKING:
    from asikit.machine.x86.model import StructureModel

__all__ = [
    "Bhb",
    "Btb",
    "Datum",
    "Divider",
    "FillBuffer",
    "L1d",
    "LoadPort",
    "Pht",
    "Rsb",
    "StagingBuffer",
    "StoreBuffer",
    "Structure",
    "Training",
    "VectorRegisters",
]


class Datum(NamedTuple):
    """A value that stayed behind.

    :ivar owner: Whose code moved it (`Cpu.owner`).
    :ivar value: The bytes.
    :ivar paddr: Physical address of the first byte; None for a value that is not memory's.
    :ivar thread: Hardware thread that moved it, numbered within the core.
    """

    owner: str
    value: bytes
    paddr: int | None
    thread: int


class Training(NamedTuple):
    """Something learnt by a predictor.

    :ivar owner: Whose code taught it.
    :ivar source: Linear address of the branch.
    :ivar target: Where it went; for a direction predictor, 1 (taken) or 0.
    :ivar thread: Hardware thread on which it was taught.
    """

    owner: str
    source: int
    target: int
    thread: int


E = TypeVar("E", Datum, Training)


class Structure(Generic[E]):
    """A structure of one core (or of the uncore), with its threads' parts.

    A full part loses its oldest entry.
    """

    name: ClassVar[str]

    def __init__(self, model: StructureModel, threads: int) -> None:
        self.model = model
        own_parts = model.sharing in {Sharing.THREAD, Sharing.PARTITIONED}
        room = max(1, model.entries // threads) if model.sharing == Sharing.PARTITIONED else model.entries
        self._parts: tuple[deque[E], ...] = tuple(deque(maxlen=room) for _ in range(threads if own_parts else 1))

    def add(self, entry: E) -> None:
        """Record an entry, made by its thread."""
        self._part(entry.thread).append(entry)

    def visible(self, thread: int) -> tuple[E, ...]:
        """Return what a hardware thread may come by, newest first: its own part, or all of what is shared."""
        return tuple(reversed(self._part(thread)))

    def entries(self) -> tuple[E, ...]:
        """Return everything, of all threads."""
        return tuple(entry for part in self._parts for entry in part)

    def clear(self, thread: int) -> None:
        """Empty what the thread uses: its own part, or all of what is shared."""
        self._part(thread).clear()

    def sleep(self, sleeper: int) -> None:
        """A thread goes to sleep (HLT, MWAIT): a partitioned structure gives its part, and what is in it, to the other.

        Structures that are not partitioned stay as they are.
        """
        if self.is_shared_out:
            left = self._parts[sleeper]
            self._parts[1 - sleeper].extend(left)
            left.clear()

    def wake(self, waker: int) -> None:
        """A thread wakes up: of a partitioned structure it has a part again, with what the other left there.

        Documentation/arch/x86/mds.rst: the CPU that is back from idle could be exposed to its sibling's contents. Which
        entries lie in that part nobody has published, so any may.
        """
        if self.is_shared_out:
            self._parts[waker].extend(self._parts[1 - waker])

    @property
    def is_shared_out(self) -> bool:
        """Whether two threads have parts of it that change hands when one of them sleeps."""
        return self.model.sharing == Sharing.PARTITIONED and len(self._parts) > 1

    def _part(self, thread: int) -> deque[E]:
        return self._parts[thread if len(self._parts) > 1 else 0]


class _Data(Structure[Datum]):
    """A structure that holds values."""


class _Predictor(Structure[Training]):
    """A structure that holds what it learnt."""


class Btb(_Predictor):
    """Branch target buffer: targets of indirect branches (and, on AMD, of returns)."""

    name = "btb"

    def predict(self, thread: int, source: int) -> Training | None:
        """Return the newest training for a branch at a linear address."""
        return next((entry for entry in reversed(self._part(thread)) if entry.source == source), None)


class Bhb(_Predictor):
    """Branch history buffer: the last branches, which choose among a branch's targets."""

    name = "bhb"


class Rsb(_Predictor):
    """Return stack buffer: where the last calls will return to."""

    name = "rsb"

    def pop(self, thread: int) -> Training | None:
        """Predict a return and use the entry up; None on underflow."""
        part = self._part(thread)
        return part.pop() if part else None


class Pht(_Predictor):
    """Pattern history table: directions of conditional branches."""

    name = "pht"

    def predict(self, thread: int, source: int) -> Training | None:
        """Return the newest training for a branch at a linear address."""
        return next((entry for entry in reversed(self._part(thread)) if entry.source == source), None)


class L1d(_Data):
    """Level 1 data cache, by lines of 64 bytes; its threads have no parts of their own."""

    name = "l1d"
    line_bytes: ClassVar[int] = 64

    def __init__(self, model: StructureModel, threads: int) -> None:
        super().__init__(model, threads)
        self._lines: dict[int | None, Datum] = {}

    def add(self, entry: Datum) -> None:
        """Put a line in, in place of an older copy of it; a full cache loses the one that was put in first."""
        self._lines.pop(entry.paddr, None)
        if len(self._lines) >= self.model.entries:
            del self._lines[next(iter(self._lines))]
        self._lines[entry.paddr] = entry

    fill = add

    def visible(self, thread: int) -> tuple[Datum, ...]:  # all of it to every thread
        """Return all lines, newest first."""
        return tuple(reversed(self._lines.values()))

    def entries(self) -> tuple[Datum, ...]:
        """Return all lines."""
        return tuple(self._lines.values())

    def clear(self, thread: int) -> None:
        """Empty it."""
        self._lines.clear()

    def line(self, paddr: int) -> Datum | None:
        """Return the line that holds a physical address."""
        return self._lines.get(paddr & -self.line_bytes)


class FillBuffer(_Data):
    """Line fill buffers: lines on their way into the L1D."""

    name = "fill_buffer"


class StoreBuffer(_Data):
    """Store buffer: values on their way out."""

    name = "store_buffer"


class LoadPort(_Data):
    """Load ports: the last values that loads returned."""

    name = "load_port"


class VectorRegisters(_Data):
    """Vector register file and the buffers of gather: stale register contents."""

    name = "vector_registers"


class Divider(_Data):
    """Integer divider: the last quotient."""

    name = "divider"


class StagingBuffer(_Data):
    """Uncore staging buffer: results of RDRAND, RDSEED and the like, and MMIO data, of all cores."""

    name = "staging_buffer"
