"""How a system call is called, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Concatenate, ParamSpec

from asikit.machine.kernel.core.uaccess import UserAccessError
from asikit.machine.mm import MmapError, OutOfMemoryError, UserCopyError, kernel_function
from asikit.machine.uapi.errno import Errno, SyscallError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task
    from asikit.machine.uapi.numbers import Nr

__all__ = ["Syscall", "signed", "signed32", "syscall"]

P = ParamSpec("P")
_REGISTER = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Syscall:
    """A system call.

    :ivar function: What does it; raises SyscallError, or another error that stands for an errno.
    :ivar parameters: How many arguments it takes.
    """

    number: Nr
    function: Callable[..., int]
    parameters: int

    def __call__(self, kernel: Kernel, task: Task, arguments: Sequence[int]) -> int:
        """Do it; returns the result, or minus an errno."""
        registers = [argument & _REGISTER for argument in arguments[: self.parameters]]
        registers += [0] * (self.parameters - len(registers))
        try:
            return self.function(kernel, task, *registers)
        except SyscallError as error:
            return -error.errno
        except (UserAccessError, UserCopyError):
            return -Errno.EFAULT
        except OutOfMemoryError:
            return -Errno.ENOMEM
        except MmapError as error:
            return -Errno[error.errno_name]


def syscall(number: Nr) -> Callable[[Callable[Concatenate[Kernel, Task, P], int]], Syscall]:
    """Decorate what does a system call: it runs as `__x64_sys_NAME`."""

    def decorate(function: Callable[Concatenate[Kernel, Task, P], int]) -> Syscall:
        parameters = function.__code__.co_argcount - 2
        return Syscall(number, kernel_function(f"__x64_sys_{number.label}")(function), parameters)

    return decorate


def signed(register: int) -> int:
    """Return a register's content as a signed 64-bit number."""
    return register - (1 << 64) if register >> 63 else register


def signed32(register: int) -> int:
    """Return a register's lower half as a signed number, an `int`."""
    half = register & 0xFFFF_FFFF
    return half - (1 << 32) if half >> 31 else half
