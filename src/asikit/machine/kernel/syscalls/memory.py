"""Address spaces (mm/mmap.c, mm/mprotect.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.objects.process import mm_of
from asikit.machine.kernel.syscalls.calling import signed, syscall
from asikit.machine.kernel.syscalls.reading_writing import opened
from asikit.machine.mm import PAGE_SIZE, MapFlags, OutOfMemoryError, Prot, SegvError
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.machine.uapi.numbers import Nr

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task
    from asikit.machine.mm import MmStruct

__all__ = ["CALLS"]

_POPULATE: Final = 0x8000
_PROTECTIONS: Final = int(Prot.READ | Prot.WRITE | Prot.EXEC)


@syscall(Nr.MMAP)
def sys_mmap(  # noqa: PLR0917 - mmap(2) has six parameters
    _: Kernel, task: Task, address: int, length: int, prot: int, flags: int, fd: int, offset: int
) -> int:
    """Map memory or a file; returns the address."""
    mm = mm_of(task)
    if offset % PAGE_SIZE:
        raise SyscallError(Errno.EINVAL)
    protection, kind = Prot(prot & _PROTECTIONS), MapFlags(flags & 0xFFFF_FFFF)
    if kind & MapFlags.ANONYMOUS:
        where = mm.mmap(length, protection, kind, address=address)
    else:
        with opened(task, fd) as file:
            if not length:
                raise SyscallError(Errno.EINVAL)
            writes = kind & MapFlags.SHARED and protection & Prot.WRITE
            if not file.readable or (writes and not file.writable):
                raise SyscallError(Errno.EACCES)
            where = mm.mmap(length, protection, kind, file.mapped(), offset, address=address)
    if flags & _POPULATE:
        _populate(mm, where, length, write=bool(protection & Prot.WRITE))
    return where


def _populate(mm: MmStruct, address: int, length: int, *, write: bool) -> None:
    """Fault a mapping's pages in; what cannot be is left for later: `mm_populate()`."""
    for page in range(address, address + length, PAGE_SIZE):
        try:
            mm.put_user_page(mm.get_user_page(page, write=write))
        except (SegvError, OutOfMemoryError):
            return


@syscall(Nr.MUNMAP)
def sys_munmap(_: Kernel, task: Task, address: int, length: int) -> int:
    """Unmap a range."""
    mm_of(task).munmap(address, length)
    return 0


@syscall(Nr.MPROTECT)
def sys_mprotect(_: Kernel, task: Task, address: int, length: int, prot: int) -> int:
    """Change what may be done with a range."""
    if address % PAGE_SIZE:
        raise SyscallError(Errno.EINVAL)
    if not length:
        return 0
    if signed(length) < 0:
        raise SyscallError(Errno.ENOMEM)
    if prot & ~_PROTECTIONS:
        raise SyscallError(Errno.EINVAL)
    mm_of(task).mprotect(address, length, Prot(prot))
    return 0


@syscall(Nr.BRK)
def sys_brk(_: Kernel, task: Task, brk: int) -> int:
    """Move the end of the heap; returns where it is then."""
    return mm_of(task).set_brk(brk)


CALLS = (sys_mmap, sys_munmap, sys_mprotect, sys_brk)
