"""What the kernel offers to programs: system calls, files, futexes, signals that kill. One for each machine."""

from __future__ import annotations

import signal
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, NoReturn

from asikit.machine.kernel.core.task import TaskExit
from asikit.machine.kernel.core.waiting import fatal_signal_pending
from asikit.machine.kernel.kvm.device import KvmDevice
from asikit.machine.kernel.objects.files import Vfs
from asikit.machine.kernel.objects.futex import FutexTable
from asikit.machine.kernel.objects.process import thread_of
from asikit.machine.kernel.syscalls.processes import do_exit, do_group_exit, kill_process
from asikit.machine.kernel.syscalls.table import SYSCALLS
from asikit.machine.uapi.errno import Errno
from asikit.machine.uapi.numbers import Nr

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task

__all__ = ["Userland"]


class Userland:
    """The side of a kernel that programs see.

    :ivar vfs: Files and the console.
    :ivar futexes: Who waits where.
    """

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._names = Counter[str]()
        self.vfs = Vfs(kernel)
        self.vfs.add_device("/dev/kvm", KvmDevice)
        self.futexes = FutexTable(kernel)
        kernel.exit_work = self._get_signal
        kernel.out_of_memory = self._pagefault_out_of_memory
        kernel.at_report.append(self._report_files)

    def unique_name(self, name: str) -> str:
        """Return a name that no other of the scenario's processes has: `reader`, then `reader 2`."""
        self._names[name] += 1
        return name if self._names[name] == 1 else f"{name} {self._names[name]}"

    # System calls.

    @staticmethod
    def name(number: int) -> str:
        """Return a system call's name, as Linux has it; a number without a name is its own."""
        return SYSCALLS[number].number.label if number in SYSCALLS else str(number)

    def dispatch(self, task: Task, number: int, arguments: Sequence[int]) -> int:
        """Do a system call, in kernel mode: `do_syscall_x64()`."""
        call = SYSCALLS.get(number)
        return -Errno.ENOSYS if call is None else call(self._kernel, task, arguments)

    # Signals, of which there are those that kill.

    @staticmethod
    def unwind() -> NoReturn:
        """Leave the rest of a program whose thread has ended. Raises TaskExit."""
        raise TaskExit

    def end_process(self, task: Task, status: int) -> NoReturn:
        """End the current task's process from user mode, as a signal does; `status` is as wait4() has it."""
        handler = partial(do_group_exit, self._kernel, task, status)
        self._kernel.entry.syscall(int(Nr.EXIT_GROUP), Nr.EXIT_GROUP.label, handler, (status,))
        raise AssertionError("a process goes on after its end")

    def _get_signal(self, task: Task) -> bool:
        """Deliver a signal on the way back to user mode. Raises TaskExit."""
        if fatal_signal_pending(task):
            self._kernel.irq_enable()
            with self._kernel.function("get_signal"):
                do_exit(self._kernel, task, thread_of(task).process.ending or 0)
        return False

    def _pagefault_out_of_memory(self, task: Task) -> None:
        """Kill the process that finds no memory; Linux chooses the largest."""
        kill_process(thread_of(task).process, int(signal.SIGKILL))

    def _report_files(self) -> None:
        """What files hold in the end, and what was written to the console, are results."""
        for path in self.vfs.data_paths:
            self._kernel.report_result(f"file {path}", self.vfs.content(path))
        self._kernel.report_result("console", bytes(self.vfs.console))
