"""Linux' user-space constants that the system calls take (include/uapi/**, x86-64's values)."""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import Final

__all__ = [
    "MAX_RW_COUNT",
    "PIPE_BUFFERS",
    "CloneFlag",
    "FutexOp",
    "KvmExit",
    "KvmIoctl",
    "OpenFlag",
    "WaitOption",
    "Whence",
]

MAX_RW_COUNT: Final = 0x7FFFF000
"""Longest single read or write, in bytes (include/linux/fs.h)."""
PIPE_BUFFERS: Final = 16
"""Pages that a pipe holds (PIPE_DEF_BUFFERS)."""


class OpenFlag(IntFlag):
    """Flags of open() and pipe2() (include/uapi/asm-generic/fcntl.h)."""

    RDONLY = 0o0
    WRONLY = 0o1
    RDWR = 0o2
    ACCMODE = 0o3
    CREAT = 0o100
    EXCL = 0o200
    TRUNC = 0o1000
    APPEND = 0o2000
    NONBLOCK = 0o4000
    CLOEXEC = 0o2000000


class Whence(IntEnum):
    """Where lseek() counts from."""

    SET = 0
    CUR = 1
    END = 2


class CloneFlag(IntFlag):
    """Flags of clone() (include/uapi/linux/sched.h)."""

    VM = 0x100
    FS = 0x200
    FILES = 0x400
    SIGHAND = 0x800
    THREAD = 0x10000
    SYSVSEM = 0x40000
    PARENT_SETTID = 0x100000
    CHILD_CLEARTID = 0x200000


class WaitOption(IntFlag):
    """Options of wait4()."""

    NOHANG = 1


class FutexOp(IntEnum):
    """Operations of futex()."""

    WAIT = 0
    WAKE = 1


class KvmIoctl(IntEnum):
    """The KVM API's requests (include/uapi/linux/kvm.h)."""

    GET_API_VERSION = 0xAE00
    CREATE_VM = 0xAE01
    CREATE_VCPU = 0xAE41
    SET_USER_MEMORY_REGION = 0x4020AE46
    RUN = 0xAE80


class KvmExit(IntEnum):
    """Why KVM_RUN came back: `kvm_run.exit_reason` (include/uapi/linux/kvm.h)."""

    UNKNOWN = 0
    IO = 2
    HYPERCALL = 3
    HLT = 5
    MMIO = 6
    SHUTDOWN = 8
    INTR = 10
    INTERNAL_ERROR = 17
