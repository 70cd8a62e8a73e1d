"""Tasks: what the scheduler runs. A task is one greenlet: its user program and, below it, its kernel stack.

A task's kernel code is ordinary Python: it may block in the middle (`Scheduler.block`) with everything on its stack,
and goes on there, perhaps on another CPU. What a CPU's protocol state has of a task (`asi`, `frames`) goes with it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from asikit.protocol import TaskState

if TYPE_CHECKING:
    from collections.abc import Callable

    from greenlet import greenlet

    from asikit.machine.mm import MmStruct, Stack, Symbol
    from asikit.protocol import Frame

__all__ = ["Task", "TaskExit", "TaskStatus"]


class TaskStatus(StrEnum):
    """What the scheduler knows of a task, `__state`."""

    NEW = "new"
    RUNNABLE = "runnable"
    BLOCKED = "blocked"
    DEAD = "dead"


class TaskExit(BaseException):
    """Raised in a task's greenlet, in kernel mode, to end it: unwinds to the bottom of its stack, `do_exit()`.

    Not an `Exception`, so that programs and kernel code that catch errors let it through.
    """

    def __init__(self, code: int = 0) -> None:
        super().__init__(code)
        self.code = code


@dataclass(eq=False)
class Task:
    """`struct task_struct`.

    :ivar pid: 0 for idle tasks.
    :ivar tgid: The pid of the process that it is a thread of.
    :ivar comm: Its name, of at most 15 characters.
    :ivar mm: Its address space, None for kernel threads and idle tasks.
    :ivar on_cpu: A CPU runs it, or has not quite left it: nobody else may take it yet.
    :ivar active_mm: The address space whose page tables its CPU has loaded: a kernel thread borrows the one before it.
    :ivar run: What the greenlet runs, in user mode after the first return to it (in kernel mode if `mm` is None).
    :ivar cookie: Core scheduling: hyperthreads of one core run only tasks of one cookie, and idle ones.
    :ivar cpu: The CPU that it runs on, or ran on last.
    :ivar allowed: The CPUs that it may run on, None for all.
    :ivar idle: It is a CPU's idle task.
    :ivar waits_for: While blocked: what for, in words.
    :ivar asi: Its part of the protocol's state, `thread.asi_state`, while it is not running.
    :ivar frames: The protocol's frames on its kernel stack, while it is not running.
    :ivar stack: Bounds of its kernel stack, virtual addresses; 0 for none yet.
    :ivar calls: Kernel functions in progress, innermost last.
    :ivar uaccess: Depth of `copy_from_user` and the like: faults at user addresses have a fixup.
    :ivar uncounted: Depth of ASI's own doings, which do not count as time, while it is not running.
    :ivar owner: What the process layer keeps of it.
    """

    pid: int
    tgid: int
    comm: str
    mm: MmStruct | None
    run: Callable[[], object]
    cookie: int = 0
    cpu: int = 0
    idle: bool = False
    on_cpu: bool = False
    status: TaskStatus = TaskStatus.NEW
    active_mm: MmStruct | None = None
    waits_for: str = ""
    exit_code: int | None = None
    asi: TaskState = field(default_factory=TaskState)
    frames: tuple[Frame, ...] = ()
    stack: tuple[int, int] = (0, 0)
    kernel_stack: Stack | None = None
    calls: list[Symbol] = field(default_factory=list)
    uaccess: int = 0
    uncounted: int = 0
    allowed: frozenset[int] | None = None
    greenlet: greenlet | None = None
    owner: object = None

    def __str__(self) -> str:
        return f"{self.comm!r} (pid {self.pid})" if self.pid else self.comm

    def may_run_on(self, cpu: int) -> bool:
        """Return whether it may run on a CPU."""
        return self.allowed is None or cpu in self.allowed
