"""The numbers of x86-64 Linux's system calls (arch/x86/entry/syscalls/syscall_64.tbl) that this kernel has."""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Nr"]


class Nr(IntEnum):
    """A system call's number; its lower-case name is the call's."""

    READ = 0
    WRITE = 1
    OPEN = 2
    CLOSE = 3
    LSEEK = 8
    MMAP = 9
    MPROTECT = 10
    MUNMAP = 11
    BRK = 12
    IOCTL = 16
    PREAD64 = 17
    PWRITE64 = 18
    PIPE = 22
    SCHED_YIELD = 24
    DUP = 32
    GETPID = 39
    CLONE = 56
    FORK = 57
    EXECVE = 59
    EXIT = 60
    WAIT4 = 61
    GETPPID = 110
    GETTID = 186
    FUTEX = 202
    SCHED_SETAFFINITY = 203
    SCHED_GETAFFINITY = 204
    EXIT_GROUP = 231
    PIPE2 = 293
    GETCPU = 309

    @property
    def label(self) -> str:
        """The name of the call: `pread64`."""
        return self.name.lower()
