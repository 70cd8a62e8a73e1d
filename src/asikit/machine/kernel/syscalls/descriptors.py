"""Descriptors: opening, closing, pipes, devices (fs/open.c, fs/file.c, fs/ioctl.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.objects.pipe import create_pipe_files
from asikit.machine.kernel.objects.process import thread_of
from asikit.machine.kernel.syscalls.calling import signed32, syscall
from asikit.machine.kernel.syscalls.reading_writing import opened
from asikit.machine.mm import kernel_function
from asikit.machine.uapi.abi import OpenFlag
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.machine.uapi.numbers import Nr

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task

__all__ = ["CALLS", "getname"]

_PATH_MAX: Final = 4096
_PIPE_FLAGS: Final = OpenFlag.NONBLOCK | OpenFlag.CLOEXEC


@kernel_function()
def getname(kernel: Kernel, upath: int) -> str:
    """Copy a path from user memory; paths that do not begin at the root are taken as if they did.

    Raises UserAccessError, SyscallError ENAMETOOLONG or ENOENT.
    """
    name = kernel.uaccess.string_from_user(upath, _PATH_MAX)
    if name is None:
        raise SyscallError(Errno.ENAMETOOLONG)
    if not name:
        raise SyscallError(Errno.ENOENT)
    path = name.decode(errors="surrogateescape")
    return path if path.startswith("/") else f"/{path}"


@kernel_function("do_sys_openat2")
def do_sys_open(kernel: Kernel, task: Task, upath: int, flags: int) -> int:
    """Open a file; returns its descriptor."""
    path = getname(kernel, upath)
    files = thread_of(task).process.files
    files.check_room()
    file = kernel.userland.vfs.open(path, OpenFlag(flags))
    return files.install(file, close_on_exec=bool(flags & OpenFlag.CLOEXEC))


@syscall(Nr.OPEN)
def sys_open(kernel: Kernel, task: Task, upath: int, flags: int, mode: int) -> int:  # noqa: ARG001 - root may all
    """Open a file; returns its descriptor."""
    return do_sys_open(kernel, task, upath, flags)


@syscall(Nr.CLOSE)
def sys_close(_: Kernel, task: Task, fd: int) -> int:
    """Close a descriptor."""
    thread_of(task).process.files.close(signed32(fd))
    return 0


@syscall(Nr.DUP)
def sys_dup(_: Kernel, task: Task, fd: int) -> int:
    """Return another descriptor of an open file."""
    files = thread_of(task).process.files
    file = files.get(signed32(fd))
    try:
        return files.install(file)
    except SyscallError:
        file.fput()
        raise


@kernel_function()
def do_pipe2(kernel: Kernel, task: Task, uends: int, flags: int) -> int:
    """Make a pipe and store the descriptors of its two ends."""
    if flags & ~_PIPE_FLAGS:
        raise SyscallError(Errno.EINVAL)
    files = thread_of(task).process.files
    files.check_room(2)
    ends = create_pipe_files(kernel, OpenFlag(flags) & OpenFlag.NONBLOCK)
    fds = [files.install(end, close_on_exec=bool(flags & OpenFlag.CLOEXEC)) for end in ends]
    if kernel.uaccess.copy_to_user(uends, b"".join(fd.to_bytes(4, "little") for fd in fds)):
        for fd in fds:
            files.close(fd)
        raise SyscallError(Errno.EFAULT)
    return 0


@syscall(Nr.PIPE)
def sys_pipe(kernel: Kernel, task: Task, uends: int) -> int:
    """Make a pipe."""
    return do_pipe2(kernel, task, uends, 0)


@syscall(Nr.PIPE2)
def sys_pipe2(kernel: Kernel, task: Task, uends: int, flags: int) -> int:
    """Make a pipe, perhaps one that never sleeps."""
    return do_pipe2(kernel, task, uends, flags)


@syscall(Nr.IOCTL)
def sys_ioctl(_: Kernel, task: Task, fd: int, request: int, argument: int) -> int:
    """Ask something of a device."""
    with opened(task, fd) as file:
        return file.ioctl(request & 0xFFFF_FFFF, argument)


CALLS = (sys_open, sys_close, sys_dup, sys_pipe, sys_pipe2, sys_ioctl)
