"""Sleeping until something is true: wait queues (kernel/sched/wait.c)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.uapi.errno import Errno, SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel.core.task import Task

__all__ = ["Killable", "WaitQueue", "fatal_signal_pending"]


class _Kernel(doors.Processors, doors.Scheduled, Protocol):
    """What is needed of the kernel here."""


@dataclass(eq=False, slots=True)
class _Waiter:
    """A task in a queue; `woken` since it last looked at its condition."""

    task: Task
    woken: bool = False


class Killable:
    """What a task belongs to and may be ended with; see `Task.owner`.

    :ivar killed: It is to end as soon as it is back in user mode.
    :ivar exiting: It is ending.
    """

    killed: bool = False
    exiting: bool = False


def fatal_signal_pending(task: Task) -> bool:
    """Return whether a task is to end, and so must not sleep any more."""
    owner = task.owner
    return isinstance(owner, Killable) and owner.killed and not owner.exiting


class WaitQueue:
    """Tasks that sleep until a condition holds, in the order in which they came."""

    def __init__(self, kernel: _Kernel, waits_for: str) -> None:
        self._kernel = kernel
        self._waits_for = waits_for
        self._waiters: list[_Waiter] = []

    def __len__(self) -> int:
        return len(self._waiters)

    def wait_event(self, condition: Callable[[], bool]) -> None:
        """Sleep until `condition` holds. Raises SyscallError EINTR if the task is to end instead.

        The condition may access memory. A wakeup between looking and sleeping is not lost: the task is in the queue
        before it looks.
        """
        task = self._kernel.current
        waiter = _Waiter(task)
        self._waiters.append(waiter)
        try:
            while not condition():
                if fatal_signal_pending(task):
                    raise SyscallError(Errno.EINTR)
                if not waiter.woken:
                    self._kernel.sched.block(self._waits_for)
                waiter.woken = False
        finally:
            self._waiters.remove(waiter)

    def wake_up(self, count: int | None = None) -> int:
        """Wake the first `count` of those who sleep, or all; returns how many."""
        woken = [waiter for waiter in self._waiters if not waiter.woken][:count]
        for waiter in woken:
            waiter.woken = True
            self._kernel.sched.wake(waiter.task)
        return len(woken)
