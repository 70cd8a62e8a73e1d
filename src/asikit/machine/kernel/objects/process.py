"""Processes and threads: what the scheduler's tasks belong to, and how a program is loaded and run.

How they come and go, fork to wait, is in `asikit.machine.kernel.syscalls.processes`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.core.fault import SegmentationFault
from asikit.machine.kernel.core.waiting import Killable, WaitQueue
from asikit.machine.kernel.objects.files import FilesStruct
from asikit.machine.kernel.objects.kernel_object import KernelObject, Word
from asikit.machine.mm import DEFAULT_MAP_WINDOW, PAGE_SIZE, MapFlags, Prot
from asikit.machine.uapi.abi import OpenFlag
from asikit.machine.uapi.numbers import Nr
from asikit.machine.user.program import ProgramExit, ProgramReplaced
from asikit.machine.user.user import User

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.core.task import Task
    from asikit.machine.mm import Inode, MmStruct
    from asikit.machine.user.guest import GuestProgram
    from asikit.machine.user.program import Program

__all__ = ["Process", "UserThread", "create_process", "load_image", "mm_of", "new_thread", "run_thread", "thread_of"]

TEXT: Final = 0x400000
"""Where a program's text is mapped, as of a static executable."""
TEXT_BYTES: Final = 2 * PAGE_SIZE
DATA: Final = TEXT + TEXT_BYTES
DATA_BYTES: Final = PAGE_SIZE
HEAP: Final = DATA + DATA_BYTES + PAGE_SIZE
_ARGUMENTS: Final = 256
"""Bytes above the stack for argc, argv, envp and the auxiliary vector."""
_STANDARD_FILES: Final = 3
_COMM: Final = 15
"""Longest name of a task (TASK_COMM_LEN)."""
STACK_BYTES: Final = 33 * PAGE_SIZE
"""What the kernel maps of a stack at first: 128 KiB and the page of the arguments."""


class TaskStruct(KernelObject):
    """`struct task_struct`: what system calls look up of the running task."""

    cache_name = "task_struct"
    size = 9536
    pid = Word(0x990)
    tgid = Word(0x998)
    clear_child_tid = Word(0xA60)
    """Where the kernel clears a word, and wakes who waits for it, when the thread ends; 0 for nowhere."""


class SignalStruct(KernelObject):
    """`struct signal_struct`: what the threads of a process share."""

    cache_name = "signal_cache"
    size = 1152
    nr_threads = Word(0x08)


@dataclass(eq=False)
class Process:
    """A process, its threads and children.

    :ivar name: What results and messages call it: the name of the scenario's process, `name/2` for its second child.
    :ivar parent: Who waits for it; None if nobody does, so that it goes without.
    :ivar threads: Those that have not ended.
    :ivar leader: Its first thread.
    :ivar offspring: How many children it had so far, `thread_count` threads besides the first,
        `vm_count` virtual machines.
    :ivar thread_words: The C library's: where the words are that say whether threads run, by their number.
    :ivar returned: What its program returned, None if it has not.
    :ivar status: Once it has ended: the status as wait4() has it.
    :ivar ending: Set when it is to end: with which status. `leader_status` is what its first thread ended with.
    """

    kernel: Kernel
    name: str
    files: FilesStruct
    signal: SignalStruct
    parent: Process | None = None
    pid: int = 0
    threads: list[UserThread] = field(default_factory=list)
    children: list[Process] = field(default_factory=list)
    offspring: int = 0
    returned: object = None
    status: int | None = None
    ending: int | None = None
    leader_status: int = 0
    thread_count: int = 0
    vm_count: int = 0
    thread_words: dict[int, int] = field(default_factory=dict)
    leader: UserThread = field(init=False)

    def __post_init__(self) -> None:
        self.child_exit = WaitQueue(self.kernel, "a child to end")
        self.thread_exit = WaitQueue(self.kernel, "other threads to end")

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or minus the number of the signal that ended it; None while it runs."""
        return None if self.status is None else os.waitstatus_to_exitcode(self.status)

    @property
    def text(self) -> int:
        """Where its program's text is."""
        return TEXT


@dataclass(eq=False)
class UserThread(Killable):
    """A thread of a process: what a user task has besides what the scheduler knows.

    :ivar name: What results and messages call it.
    :ivar stack_pointer: Where its user stack has got to, which grows down.
    :ivar child_program: What the thread or process that it is about to make will run.
    :ivar guest_program: What the virtual CPU that it is about to make will run.
    """

    process: Process
    name: str
    struct: TaskStruct
    stack_pointer: int
    task: Task = field(init=False)
    child_program: Program | None = None
    guest_program: GuestProgram | None = None

    def record(self, what: str, value: bytes | int) -> None:
        """Note something that the program saw, for the run's architectural results."""
        self.process.kernel.report_result(
            self.name, what.encode() + b" " + (value if isinstance(value, bytes) else b"%d" % value)
        )

    def kill(self) -> None:
        """Make it end: SIGKILL."""
        kernel = self.process.kernel
        self.killed = True
        if not kernel.sched.wake(self.task) and self.task is not kernel.current:
            kernel.sched.resched(kernel.cpus[self.task.cpu])  # kick_process(): out of user mode


def thread_of(task: Task) -> UserThread:
    """Return the thread that a user task is."""
    owner = task.owner
    if not isinstance(owner, UserThread):
        raise TypeError(f"{task} is no thread of a process")
    return owner


def new_thread(process: Process, name: str, stack_pointer: int) -> UserThread:
    """Make a thread that has no task yet. Raises OutOfMemoryError."""
    return UserThread(process, name, TaskStruct(process.kernel), stack_pointer)


def start_thread(thread: UserThread, task: Task) -> None:
    """Put a thread and its task together; it is one of its process' from now on."""
    process = thread.process
    task.owner, thread.task = thread, task
    process.threads.append(thread)
    if not process.pid:
        process.pid, process.leader = task.pid, thread
    thread.struct.pid, thread.struct.tgid = task.pid, process.pid
    process.signal.nr_threads = len(process.threads)


def load_image(kernel: Kernel, mm: MmStruct, binary: Inode) -> None:
    """Map a program, a heap and a stack into an empty address space, as `load_elf_binary()` does.

    Raises OutOfMemoryError.
    """
    fixed = MapFlags.PRIVATE | MapFlags.FIXED
    stack = stack_top(kernel) - STACK_BYTES
    mm.mmap(TEXT_BYTES, Prot.READ | Prot.EXEC, fixed, binary, address=TEXT)
    mm.mmap(DATA_BYTES, Prot.READ | Prot.WRITE, fixed, binary, TEXT_BYTES, address=DATA)
    mm.mmap(STACK_BYTES, Prot.READ | Prot.WRITE, fixed | MapFlags.ANONYMOUS, address=stack)
    mm.init_brk(HEAP)


def stack_top(kernel: Kernel) -> int:
    """Return the address where the stack of a program's first thread begins; it grows down."""
    return min(kernel.layout.user_end, DEFAULT_MAP_WINDOW) - PAGE_SIZE


def arguments(kernel: Kernel) -> int:
    """Return the address of a program's arguments, above its stack."""
    return stack_top(kernel) - _ARGUMENTS


def create_process(
    kernel: Kernel,
    program: Program,
    *,
    name: str = "",
    cpu: int | None = None,
    pinned: bool = False,
    cookie: int | None = None,
) -> Process:
    """Make a process that runs a program, its first descriptors open on the console. Raises OutOfMemoryError.

    :param cpu: Where it begins; the scheduler's choice if None.
    :param pinned: It stays there.
    :param cookie: Core scheduling: who may run on the sibling hyperthread meanwhile.
    """
    path = kernel.userland.vfs.install(program, name)
    name = kernel.userland.unique_name(name or path.rpartition("/")[2])
    mm = kernel.contexts.new()
    load_image(kernel, mm, kernel.userland.vfs.lookup(path))
    process = Process(kernel, name, FilesStruct(kernel), SignalStruct(kernel))
    console = kernel.userland.vfs.open("/dev/console", OpenFlag.RDWR)
    process.files.install(console)
    for _ in range(_STANDARD_FILES - 1):
        console.get()
        process.files.install(console)
    thread = new_thread(process, name, arguments(kernel))
    run = partial(run_thread, thread, program)
    task = kernel.new_task(run, comm=name[:_COMM], mm=mm, cpu=cpu, pinned=pinned, cookie=cookie)
    start_thread(thread, task)
    kernel.start(task)
    return process


def run_thread(thread: UserThread, program: Program) -> None:
    """Run a program in user mode and then end the thread: what is at the bottom of every user task's stack.

    What a program raises otherwise is a mistake in the scenario and ends the run.
    """
    while True:
        user = User(thread)
        try:
            returned = program(user)
        except ProgramReplaced as replaced:
            program, thread.stack_pointer = replaced.program, arguments(thread.process.kernel)
        except ProgramExit as end:
            user.syscall(Nr.EXIT_GROUP, end.code)
        except SegmentationFault as fault:
            user.end(fault.signal)
        except Exception as error:
            error.add_note(f"in process {thread.name!r} (pid {thread.task.pid})")
            raise
        else:
            code = returned if isinstance(returned, int) else 0
            if thread is thread.process.leader:
                thread.process.returned = returned
                user.syscall(Nr.EXIT_GROUP, code)
            user.syscall(Nr.EXIT, code)


def mm_of(task: Task) -> MmStruct:
    """Return a user task's address space."""
    if task.mm is None:
        raise TypeError(f"{task} has no address space")
    return task.mm
