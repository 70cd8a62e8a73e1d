"""futex() (kernel/futex/syscalls.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.objects.futex import futex_wait, futex_wake
from asikit.machine.kernel.syscalls.calling import signed32, syscall
from asikit.machine.uapi.abi import FutexOp
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.machine.uapi.numbers import Nr

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task

__all__ = ["CALLS"]

_PRIVATE: Final = 128
_WORD: Final = 0xFFFF_FFFF


@syscall(Nr.FUTEX)
def sys_futex(  # noqa: PLR0917 - futex(2) has six parameters
    kernel: Kernel, task: Task, address: int, operation: int, value: int, timeout: int, address2: int, value3: int
) -> int:
    """Wait at a word, without a timeout, or wake who waits."""
    private = bool(operation & _PRIVATE)
    match operation & ~_PRIVATE:
        case FutexOp.WAIT if not timeout:
            futex_wait(kernel, task, address, value & _WORD, private=private)
            return 0
        case FutexOp.WAKE:
            return futex_wake(kernel, task, address, signed32(value), private=private)
        case _:
            del address2, value3
            raise SyscallError(Errno.ENOSYS)


CALLS = (sys_futex,)
