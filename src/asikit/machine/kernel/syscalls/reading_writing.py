"""Reading and writing files (fs/read_write.c)."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.objects.process import thread_of
from asikit.machine.kernel.syscalls.calling import signed, signed32, syscall
from asikit.machine.mm import kernel_function
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.machine.uapi.numbers import Nr

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task
    from asikit.machine.kernel.objects.files import File

__all__ = ["CALLS", "opened"]


@contextmanager
def opened(task: Task, fd: int) -> Iterator[File]:
    """Hold what a descriptor refers to: `fdget()` and `fdput()`. Raises SyscallError EBADF."""
    file = thread_of(task).process.files.get(signed32(fd))
    try:
        yield file
    finally:
        file.fput()


@contextmanager
def _positioned(task: Task, fd: int) -> Iterator[File]:
    """Hold an open file, and its position if it has one: `fdget_pos()`."""
    with opened(task, fd) as file:
        if not file.seekable:
            yield file
            return
        with file.f_pos_lock:
            yield file


@kernel_function()
def ksys_read(kernel: Kernel, task: Task, fd: int, ubuf: int, count: int) -> int:  # noqa: ARG001 - runs as kernel
    """Read where the file is, and move on."""
    with _positioned(task, fd) as file:
        position = file.position if file.seekable else 0
        done = file.vfs_read(ubuf, count, position)
        if file.seekable:
            file.position = position + done
        return done


@kernel_function()
def ksys_write(kernel: Kernel, task: Task, fd: int, ubuf: int, count: int) -> int:  # noqa: ARG001 - runs as kernel
    """Write where the file is, or at its end if it appends, and move on."""
    with _positioned(task, fd) as file:
        position = file.write_position() if file.seekable else 0
        done = file.vfs_write(ubuf, count, position)
        if file.seekable:
            file.position = position + done
        return done


@syscall(Nr.READ)
def sys_read(kernel: Kernel, task: Task, fd: int, ubuf: int, count: int) -> int:
    """Read where the file is."""
    return ksys_read(kernel, task, fd, ubuf, count)


@syscall(Nr.WRITE)
def sys_write(kernel: Kernel, task: Task, fd: int, ubuf: int, count: int) -> int:
    """Write where the file is."""
    return ksys_write(kernel, task, fd, ubuf, count)


@syscall(Nr.PREAD64)
def sys_pread64(_: Kernel, task: Task, fd: int, ubuf: int, count: int, position: int) -> int:
    """Read at a position."""
    if signed(position) < 0:
        raise SyscallError(Errno.EINVAL)
    with opened(task, fd) as file:
        if not file.seekable:
            raise SyscallError(Errno.ESPIPE)
        return file.vfs_read(ubuf, count, position)


@syscall(Nr.PWRITE64)
def sys_pwrite64(_: Kernel, task: Task, fd: int, ubuf: int, count: int, position: int) -> int:
    """Write at a position; a file that appends is written at its end all the same, as Linux has it."""
    if signed(position) < 0:
        raise SyscallError(Errno.EINVAL)
    with opened(task, fd) as file:
        if not file.seekable:
            raise SyscallError(Errno.ESPIPE)
        return file.vfs_write(ubuf, count, file.write_position(position))


@syscall(Nr.LSEEK)
def sys_lseek(_: Kernel, task: Task, fd: int, offset: int, whence: int) -> int:
    """Set where the file is."""
    with _positioned(task, fd) as file:
        if whence > _SEEK_MAX:
            raise SyscallError(Errno.EINVAL)
        return file.llseek(signed(offset), whence)


_SEEK_MAX: Final = 4
CALLS = (sys_read, sys_write, sys_pread64, sys_pwrite64, sys_lseek)
