"""The running CPU as memory management sees it, interrupts on and off, and sleeping locks."""

from __future__ import annotations

from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.kernel.core.errors import DeadlockError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.task import Task

__all__ = ["KernelContext", "Mutex"]


class _Kernel(doors.Processors, doors.Points, doors.Interruptible, doors.Scheduled, Protocol):
    """What is needed of the kernel here."""


class KernelContext:
    """What `asikit.machine.mm` knows as its Context."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel

    @property
    def cpu_number(self) -> int:
        """The running CPU."""
        return self._kernel.cpu.number

    @property
    def irqs_enabled(self) -> bool:
        """Whether it takes interrupts."""
        return self._kernel.cpu.hw.interrupts_enabled

    @property
    def may_block(self) -> bool:
        """Whether the running code may sleep."""
        cpu = self._kernel.cpu
        return not cpu.hardirq and (cpu.task is not cpu.idle or not self._kernel.running)

    def cpu_relax(self) -> None:
        """Let other CPUs make progress while this one spins."""
        kernel = self._kernel
        if kernel.interrupts.deliverable(kernel.cpu):
            kernel.interrupts.deliver(kernel.cpu)
        kernel.wait_for(kernel.cpu, "a spin lock", lambda: True)

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Accesses inside are ASI's own doing: they take no logical time, and are no touches."""
        self._begin(self._kernel.cpu)
        try:
            yield
        finally:
            self._end(self._kernel.cpu)

    @staticmethod
    def _begin(cpu: CpuContext) -> None:
        if not cpu.uncounted:
            cpu.uncounted_from = cpu.clock
        cpu.uncounted += 1

    @staticmethod
    def _end(cpu: CpuContext) -> None:
        cpu.uncounted -= 1
        if not cpu.uncounted:
            cpu.lost += cpu.clock - cpu.uncounted_from

    def suspend_uncounted(self, cpu: CpuContext) -> int:
        """Take from a CPU what its task has of it; returns the depth."""
        depth = cpu.uncounted
        if depth:
            cpu.uncounted = 1
            self._end(cpu)
        return depth

    def resume_uncounted(self, cpu: CpuContext, depth: int) -> None:
        """Give a CPU what its next task had."""
        if depth:
            self._begin(cpu)
            cpu.uncounted = depth


class Mutex:
    """A lock whose holder may sleep, `struct mutex`; also stands for reader-writer semaphores. First come first served.

    :ivar owner: The task that holds it.
    """

    def __init__(self, kernel: _Kernel, name: str) -> None:
        self._kernel = kernel
        self.name = name
        self.owner: Task | None = None
        self._waiters: deque[Task] = deque()

    def lock(self) -> None:
        """Take it, sleeping until it is free."""
        kernel = self._kernel
        task = kernel.current
        if self.owner is task:
            kernel.crash(DeadlockError(f"{task} takes {self.name}, which it holds"))
        if self.owner is None:
            self.owner = task
            return
        self._waiters.append(task)
        while self.owner is not task:
            kernel.sched.block(f"{self.name}, held by {self.owner}")

    def unlock(self) -> None:
        """Give it to the next one who waits."""
        self.owner = self._waiters.popleft() if self._waiters else None
        if self.owner is not None:
            self._kernel.sched.wake(self.owner)

    def __enter__(self) -> None:
        self.lock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.unlock()
