"""How a system call fails: errno, by Linux' numbers (include/uapi/asm-generic/errno*.h)."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Errno", "SyscallError"]


class Errno(IntEnum):
    """The error numbers that this kernel's system calls return, negated."""

    EPERM = 1
    ENOENT = 2
    ESRCH = 3
    EINTR = 4
    EIO = 5
    ENXIO = 6
    ENOEXEC = 8
    EBADF = 9
    ECHILD = 10
    EAGAIN = 11
    ENOMEM = 12
    EACCES = 13
    EFAULT = 14
    EEXIST = 17
    ENODEV = 19
    ENOTDIR = 20
    EISDIR = 21
    EINVAL = 22
    EMFILE = 24
    ENOTTY = 25
    EFBIG = 27
    ENOSPC = 28
    ESPIPE = 29
    EPIPE = 32
    ENAMETOOLONG = 36
    ENOSYS = 38
    ETIMEDOUT = 110


class SyscallError(Exception):
    """A system call fails; it returns `-errno`."""

    def __init__(self, errno: Errno) -> None:
        super().__init__(errno.name)
        self.errno = errno
