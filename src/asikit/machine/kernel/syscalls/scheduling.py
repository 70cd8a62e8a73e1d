"""Where and when tasks run (kernel/sched/core.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.syscalls.calling import signed32, syscall
from asikit.machine.mm import kernel_function
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.machine.uapi.numbers import Nr

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task

__all__ = ["CALLS"]

_MASK_BYTES: Final = 8
"""Bytes of a CPU mask: one word, for machines of up to 64 CPUs."""


@syscall(Nr.SCHED_YIELD)
def sys_sched_yield(kernel: Kernel, _: Task) -> int:
    """Let others run."""
    do_sched_yield(kernel)
    return 0


@kernel_function()
def do_sched_yield(kernel: Kernel) -> None:
    """Go to the end of the run queue."""
    kernel.sched.yield_()


@syscall(Nr.SCHED_SETAFFINITY)
def sys_sched_setaffinity(kernel: Kernel, task: Task, pid: int, length: int, umask: int) -> int:
    """Say on which CPUs a task may run."""
    mask = int.from_bytes(kernel.uaccess.from_user(umask, min(length, _MASK_BYTES)), "little")
    target = _find(kernel, task, signed32(pid))
    allowed = frozenset(cpu.number for cpu in kernel.cpus if mask >> cpu.number & 1)
    if not allowed:
        raise SyscallError(Errno.EINVAL)
    set_cpus_allowed(kernel, target, allowed)
    return 0


@kernel_function("__set_cpus_allowed_ptr")
def set_cpus_allowed(kernel: Kernel, task: Task, allowed: frozenset[int]) -> None:
    """Restrict a task to CPUs, and move it if it is on another."""
    task.allowed = allowed
    kernel.sched.migrate(task)


@syscall(Nr.SCHED_GETAFFINITY)
def sys_sched_getaffinity(kernel: Kernel, task: Task, pid: int, length: int, umask: int) -> int:
    """Store on which CPUs a task may run; returns the bytes of that."""
    if length % _MASK_BYTES or length * 8 < len(kernel.cpus):
        raise SyscallError(Errno.EINVAL)
    target = _find(kernel, task, signed32(pid))
    mask = sum(1 << cpu.number for cpu in kernel.cpus if target.may_run_on(cpu.number))
    kernel.uaccess.put_u64(umask, mask)
    return _MASK_BYTES


def _find(kernel: Kernel, task: Task, pid: int) -> Task:
    """Return a task, the caller's for 0. Raises SyscallError ESRCH."""
    found = kernel.tasks.get(pid) if pid else task
    if found is None:
        raise SyscallError(Errno.ESRCH)
    return found


@syscall(Nr.GETCPU)
def sys_getcpu(kernel: Kernel, _: Task, ucpu: int, unode: int, cache: int) -> int:  # noqa: ARG001 - unused, as in Linux
    """Store on which CPU the caller runs, and on which node, which is 0."""
    if ucpu:
        kernel.uaccess.put_u32(ucpu, kernel.cpu.number)
    if unode:
        kernel.uaccess.put_u32(unode, 0)
    return 0


CALLS = (sys_sched_yield, sys_sched_setaffinity, sys_sched_getaffinity, sys_getcpu)
