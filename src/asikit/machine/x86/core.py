"""Cores and processors: logical processors that share caches, predictors and buffers."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TYPE_CHECKING

from asikit.machine.x86.apic import ApicBus
from asikit.machine.x86.cpu import Cpu
from asikit.machine.x86.model import CLEARING
from asikit.machine.x86.recorder import Recorder
from asikit.machine.x86.structures import StagingBuffer

if TYPE_CHECKING:
    from asikit.machine.x86.memory import PhysicalMemory
    from asikit.machine.x86.model import CpuModel

__all__ = ["Core", "Processor", "Uncore"]


class Uncore:
    """What all cores of a package share: the staging buffer, and the APICs' connection."""

    def __init__(self, model: CpuModel) -> None:
        self.bus = ApicBus()
        self.staging_buffer = StagingBuffer(model.structures.staging_buffer, threads=1)


class Core:
    """A core with one or two hardware threads.

    :ivar number: Number of the core in the machine.
    :ivar threads: Its logical processors.
    :ivar done: How often each primitive was done, by name.
    :ivar recorder: What its structures hold, None unless `record` is on.
    """

    def __init__(
        self,
        number: int,
        model: CpuModel,
        memory: PhysicalMemory,
        *,
        threads: int = 1,
        first_cpu: int | None = None,
        levels: int = 4,
        seed: int = 0,
        uncore: Uncore | None = None,
    ) -> None:
        """Make a core.

        :param threads: 1 or 2, no more than the model has.
        :param first_cpu: Number of its first logical processor; `number * threads` if not given.
        :param levels: Levels of the page tables that paging starts with, 4 or 5.
        :param seed: Of the evictions from its TLBs.
        :param uncore: What it shares with other cores; its own if not given.
        """
        if not 1 <= threads <= model.threads:
            raise ValueError(f"a core of CPU model {model.name} has at most {model.threads} threads, not {threads}")
        self.number = number
        self.model = model
        self.memory = memory
        self.uncore = uncore or Uncore(model)
        self.done: Counter[str] = Counter()
        self.recorder: Recorder | None = None
        first = number * threads if first_cpu is None else first_cpu
        seeds = Random(seed)
        self.threads = tuple(
            Cpu(first + thread, self, thread, levels=levels, seed=seeds.getrandbits(32)) for thread in range(threads)
        )

    @property
    def record(self) -> bool:
        """Whether the structures record what passes through them. Turning it on or off forgets what they hold."""
        return self.recorder is not None

    @record.setter
    def record(self, value: bool) -> None:
        self.recorder = (
            Recorder(self.model, self.memory, len(self.threads), self.uncore.staging_buffer) if value else None
        )
        for cpu in self.threads:
            cpu.recorder = self.recorder
            # Accesses that need no check would otherwise pass the recorder by.
            cpu.tlb.clear_views()

    def do(self, primitive: str, thread: int = 0) -> None:
        """Do what clears structures: a primitive, by the name of its effect (`asikit.protocol.PRIMITIVES`).

        :param thread: The hardware thread that does it; what each thread has for itself is cleared for it alone.
        :raises ValueError: There is no such primitive.
        """
        if primitive not in CLEARING:
            raise ValueError(f'no primitive "{primitive}" (there are {", ".join(CLEARING)})')
        self.done[str(primitive)] += 1
        if self.recorder is not None:
            self.recorder.clear(primitive, thread)


class Processor:
    """A package of equal cores.

    :ivar cores: The cores.
    :ivar cpus: The logical processors of all cores, by number: the threads of core 0, then those of core 1...
    """

    def __init__(
        self,
        model: CpuModel,
        memory: PhysicalMemory,
        *,
        cores: int = 1,
        threads: int = 1,
        levels: int = 4,
        seed: int = 0,
    ) -> None:
        """Make a processor of `cores` cores with `threads` hardware threads each; the rest as for a Core."""
        self.uncore = Uncore(model)
        seeds = Random(seed)
        self.cores = tuple(
            Core(number, model, memory, threads=threads, levels=levels, seed=seeds.getrandbits(32), uncore=self.uncore)
            for number in range(cores)
        )
        self.cpus = tuple(cpu for core in self.cores for cpu in core.threads)
