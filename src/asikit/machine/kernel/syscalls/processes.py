"""How processes and threads come and go (kernel/fork.c, fs/exec.c, kernel/exit.c)."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from asikit.machine.kernel.core.errors import ScenarioError
from asikit.machine.kernel.core.task import TaskExit
from asikit.machine.kernel.core.uaccess import UserAccessError
from asikit.machine.kernel.objects.futex import futex_wake
from asikit.machine.kernel.objects.process import (
    Process,
    SignalStruct,
    arguments,
    load_image,
    mm_of,
    new_thread,
    run_thread,
    stack_top,
    start_thread,
    thread_of,
)
from asikit.machine.kernel.syscalls.calling import signed32, syscall
from asikit.machine.kernel.syscalls.descriptors import getname
from asikit.machine.mm import OutOfMemoryError, kernel_function
from asikit.machine.uapi.abi import CloneFlag, WaitOption
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.machine.uapi.numbers import Nr

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task
    from asikit.machine.kernel.objects.process import UserThread
    from asikit.machine.user.program import Program

__all__ = ["CALLS", "do_group_exit", "kill_process"]

_THREAD: Final = CloneFlag.VM | CloneFlag.FS | CloneFlag.FILES | CloneFlag.SIGHAND | CloneFlag.THREAD
_TID_FLAGS: Final = CloneFlag.SYSVSEM | CloneFlag.PARENT_SETTID | CloneFlag.CHILD_CLEARTID
_ANY: Final = -1
_SIGNAL: Final = 0xFF


# Beginning.


@kernel_function("kernel_clone")
def clone_thread(  # noqa: PLR0917 - the parameters of clone(2)
    kernel: Kernel, task: Task, flags: CloneFlag, stack: int, parent_tid: int, child_tid: int
) -> int:
    """Make a thread of the same process; returns its number."""
    parent = thread_of(task)
    process, program = parent.process, _child_program(parent)
    process.thread_count += 1
    thread = new_thread(process, f"{process.name}:{process.thread_count}", stack)
    mm = mm_of(task)
    mm.get()
    try:
        child = kernel.new_task(
            partial(run_thread, thread, program), comm=task.comm, mm=mm, tgid=task.tgid, cookie=task.cookie
        )
    except OutOfMemoryError:
        thread.struct.free()
        kernel.contexts.put(mm)
        raise
    start_thread(thread, child)
    if flags & CloneFlag.CHILD_CLEARTID:
        thread.struct.clear_child_tid = child_tid
    if flags & CloneFlag.PARENT_SETTID:
        kernel.uaccess.copy_to_user(parent_tid, child.pid.to_bytes(4, "little"))
    if process.ending is not None:
        thread.killed = True
    kernel.start(child)
    return child.pid


@kernel_function("kernel_clone")
def fork_process(kernel: Kernel, task: Task) -> int:
    """Make a child process with a copy-on-write copy of the memory and the same open files; returns its number."""
    parent = thread_of(task)
    program = _child_program(parent)
    with ExitStack() as undo:
        files = parent.process.files.copy()
        undo.callback(files.close_all)
        shared = SignalStruct(kernel)
        undo.callback(shared.free)
        name = f"{parent.process.name}/{parent.process.offspring + 1}"
        process = Process(kernel, name, files, shared, parent=parent.process)
        thread = new_thread(process, name, parent.stack_pointer)
        undo.callback(thread.struct.free)
        mm = kernel.contexts.duplicate(mm_of(task))
        undo.callback(kernel.contexts.put, mm)
        child = kernel.new_task(partial(run_thread, thread, program), comm=task.comm, mm=mm)
        undo.pop_all()
    parent.process.offspring += 1
    start_thread(thread, child)
    parent.process.children.append(process)
    kernel.start(child)
    return child.pid


def _child_program(parent: UserThread) -> Program:
    program, parent.child_program = parent.child_program, None
    if program is None:
        raise ScenarioError(
            f"{parent.name}: fork and clone by number do not say what the child runs; use User.fork or User.thread"
        )
    return program


@syscall(Nr.FORK)
def sys_fork(kernel: Kernel, task: Task) -> int:
    """Make a child process."""
    return fork_process(kernel, task)


@syscall(Nr.CLONE)
def sys_clone(  # noqa: PLR0917 - clone(2) has five parameters
    kernel: Kernel, task: Task, flags: int, stack: int, parent_tid: int, child_tid: int, tls: int
) -> int:
    """Make a thread, with the flags that pthread_create gives, or a process, with none of them."""
    wanted = CloneFlag(flags & ~_SIGNAL)
    if not wanted:
        return fork_process(kernel, task)
    if wanted & _THREAD != _THREAD or wanted & ~(_THREAD | _TID_FLAGS) or tls:
        raise SyscallError(Errno.EINVAL)
    return clone_thread(kernel, task, wanted, stack, parent_tid, child_tid)


@syscall(Nr.EXECVE)
def sys_execve(kernel: Kernel, task: Task, upath: int, uargv: int, uenvp: int) -> int:  # noqa: ARG001 - no arguments
    """Replace memory and program; returns 0 into the new program."""
    return do_execve(kernel, task, getname(kernel, upath))


@kernel_function("do_execveat_common.isra.0")
def do_execve(kernel: Kernel, task: Task, path: str) -> int:
    """Load an executable file in the place of what runs."""
    thread = thread_of(task)
    kernel.userland.vfs.program(path)
    mm = kernel.contexts.new()
    try:
        load_image(kernel, mm, kernel.userland.vfs.lookup(path))
        de_thread(kernel, thread)
    except (OutOfMemoryError, SyscallError):
        kernel.contexts.put(mm)
        raise
    kernel.contexts.exec_mmap(task, mm)
    thread.process.files.close_for_exec()
    thread.process.thread_words.clear()
    thread.struct.clear_child_tid = 0
    # argc, argv, envp and the auxiliary vector, all empty (create_elf_tables).
    if kernel.uaccess.clear_user(arguments(kernel), stack_top(kernel) - arguments(kernel)):
        do_group_exit(kernel, task, int(signal.SIGKILL))
    return 0


@kernel_function()
def de_thread(_: Kernel, thread: UserThread) -> None:
    """End the other threads of a process and wait until they are gone. Raises SyscallError EINTR."""
    process = thread.process
    for other in tuple(process.threads):
        if other is not thread:
            other.kill()
    process.thread_exit.wait_event(lambda: process.threads == [thread])


# Ending.


@syscall(Nr.EXIT)
def sys_exit(kernel: Kernel, task: Task, code: int) -> int:
    """End a thread."""
    do_exit(kernel, task, (code & 0xFF) << 8)


@syscall(Nr.EXIT_GROUP)
def sys_exit_group(kernel: Kernel, task: Task, code: int) -> int:
    """End a process."""
    do_group_exit(kernel, task, (code & 0xFF) << 8)


@kernel_function()
def do_group_exit(kernel: Kernel, task: Task, status: int) -> NoReturn:
    """End a process, all its threads; the first to do so says with which status."""
    kill_process(thread_of(task).process, status)
    do_exit(kernel, task, status)


def kill_process(process: Process, status: int) -> None:
    """Let a process end, all its threads, when they are back in user mode; the first to say so gives the status."""
    if process.ending is None:
        process.ending = status
        for thread in tuple(process.threads):
            thread.kill()


@kernel_function()
def do_exit(kernel: Kernel, task: Task, status: int) -> NoReturn:
    """End a thread; the last one ends the process."""
    thread = thread_of(task)
    process = thread.process
    thread.exiting = True
    _mm_release(kernel, task)
    kernel.contexts.exit_mm(task)
    process.threads.remove(thread)
    if thread is process.leader:
        process.leader_status = status
    else:
        thread.struct.free()
    if process.threads:
        process.signal.nr_threads = len(process.threads)
        process.thread_exit.wake_up()
    else:
        process.files.close_all()
        exit_notify(kernel, process)
    raise TaskExit(status)


def _mm_release(kernel: Kernel, task: Task) -> None:
    """Tell who joins the thread: clear its word and wake them (`mm_release`, CLONE_CHILD_CLEARTID)."""
    word = thread_of(task).struct.clear_child_tid
    if word and mm_of(task).mm_users > 1:
        try:
            kernel.uaccess.put_u32(word, 0)
            futex_wake(kernel, task, word, 1)
        except (UserAccessError, SyscallError):
            return


@kernel_function()
def exit_notify(_: Kernel, process: Process) -> None:
    """Leave what the parent waits for; children without a parent wait for nobody."""
    for child in process.children:
        child.parent = None
        if child.status is not None:
            release_task(child)
    process.children.clear()
    process.status = process.leader_status if process.ending is None else process.ending
    process.leader.record("exit status", process.status)
    if process.parent is None:
        release_task(process)
    else:
        process.parent.child_exit.wake_up()


def release_task(process: Process) -> None:
    """Forget a process that has ended."""
    process.leader.struct.free()
    process.signal.free()


# Waiting.


@syscall(Nr.WAIT4)
def sys_wait4(  # noqa: PLR0917 - wait4(2) has four parameters
    kernel: Kernel, task: Task, pid: int, ustatus: int, options: int, usage: int
) -> int:
    """Wait until a child has ended; returns its number. All processes are of one group."""
    wanted = signed32(pid)
    if options & ~int(WaitOption.NOHANG):
        raise SyscallError(Errno.EINVAL)
    if usage:
        raise SyscallError(Errno.ENOSYS)
    child = do_wait(kernel, task, wanted, hang=not options & WaitOption.NOHANG)
    if child is None:
        return 0
    status = child.status or 0
    release_task(child)
    if ustatus:
        kernel.uaccess.put_u32(ustatus, status)
    return child.pid


@kernel_function()
def do_wait(_: Kernel, task: Task, pid: int, *, hang: bool) -> Process | None:
    """Return a child that has ended, which is nobody's child any more; None if none has and the caller does not wait.

    Raises SyscallError ECHILD or EINTR.
    """
    process = thread_of(task).process

    def candidates() -> list[Process]:
        return [child for child in process.children if pid in {child.pid, _ANY, 0}]

    def ended() -> bool:
        return not candidates() or any(child.status is not None for child in candidates())

    if hang:
        process.child_exit.wait_event(ended)
    if not candidates():
        raise SyscallError(Errno.ECHILD)
    for child in candidates():
        if child.status is not None:
            process.children.remove(child)
            return child
    return None


# Numbers.


@syscall(Nr.GETPID)
def sys_getpid(_: Kernel, task: Task) -> int:
    """Return the process' number, `task_tgid_vnr()`."""
    return thread_of(task).struct.tgid


@syscall(Nr.GETTID)
def sys_gettid(_: Kernel, task: Task) -> int:
    """Return the thread's number, `task_pid_vnr()`."""
    return thread_of(task).struct.pid


@syscall(Nr.GETPPID)
def sys_getppid(_: Kernel, task: Task) -> int:
    """Return the parent's number; 0 if the parent is none of the machine's processes."""
    parent = thread_of(task).process.parent
    return 0 if parent is None else parent.leader.struct.tgid


CALLS = (
    sys_fork,
    sys_clone,
    sys_execve,
    sys_exit,
    sys_exit_group,
    sys_wait4,
    sys_getpid,
    sys_gettid,
    sys_getppid,
)
