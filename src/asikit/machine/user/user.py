"""What a program sees: memory, instructions that compute, and system calls.

A scenario's program is a Python function of one `User`. Everything it does to the machine goes through that: loads and
stores are user-mode instructions at CPL 3 through the CPU's current page tables; system calls enter the kernel by the
numbers of x86-64 Linux, take addresses in user memory and give back what Linux would. `User.syscall` is the bare
instruction; the other methods are what a C library makes of it: data as `bytes`, errors as `OSError`.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Final, NoReturn

from asikit.machine.mm import MapFlags, Prot
from asikit.machine.uapi.abi import CloneFlag, FutexOp, KvmIoctl, OpenFlag, Whence
from asikit.machine.uapi.errno import Errno
from asikit.machine.uapi.numbers import Nr
from asikit.machine.user.program import ProgramExit, ProgramReplaced
from asikit.machine.user.virtual_machine import VirtualMachine

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from asikit.machine.kernel.objects.process import UserThread
    from asikit.machine.user.guest import GuestProgram
    from asikit.machine.user.program import Program

__all__ = ["User"]

_ON_STACK: Final = 64 << 10
"""Buffers of up to so many bytes lie on the stack; larger ones get a mapping, as malloc does it (M_MMAP_THRESHOLD)."""
_THREAD_STACK: Final = 128 << 10
_ALIGNMENT: Final = 16
_WORDS: Final = 64
"""Bytes above a thread's stack, of which the first word says whether it runs."""
_READ_WRITE: Final = Prot.READ | Prot.WRITE
_ANONYMOUS: Final = MapFlags.PRIVATE | MapFlags.ANONYMOUS
_PTHREAD: Final = (
    CloneFlag.VM
    | CloneFlag.FS
    | CloneFlag.FILES
    | CloneFlag.SIGHAND
    | CloneFlag.THREAD
    | CloneFlag.SYSVSEM
    | CloneFlag.PARENT_SETTID
    | CloneFlag.CHILD_CLEARTID
)
"""What pthread_create asks of clone(), but for thread-local storage."""


class User:
    """The machine as one thread of a process sees it.

    Errors of system calls are raised as `OSError` with Linux' errno, as by the functions of `os`. An access to memory
    that is not there raises `SegmentationFault`, which a program may catch, as with a handler of SIGSEGV; uncaught it
    ends the process. SIGPIPE is ignored, as in Python.

    Addresses and sizes are in bytes.
    """

    def __init__(self, thread: UserThread) -> None:
        self._thread = thread
        self._process = thread.process
        self._kernel = thread.process.kernel

    # Instructions.

    def load(self, address: int, size: int) -> bytes:
        """Read memory."""
        self._check()
        value = self._kernel.entry.user_load(address, size) if size else b""
        self._thread.record("load", value)
        return value

    def store(self, address: int, data: bytes) -> None:
        """Write memory."""
        self._check()
        if data:
            self._kernel.entry.user_store(address, data)

    def load_u32(self, address: int) -> int:
        """Read a 32-bit number, as futexes are."""
        return int.from_bytes(self.load(address, 4), "little")

    def store_u32(self, address: int, value: int) -> None:
        """Write a 32-bit number."""
        self.store(address, value.to_bytes(4, "little"))

    def exchange_u32(self, address: int, value: int) -> int:
        """Write a 32-bit number and return what was there: XCHG, which nothing comes in the middle of."""
        self._check()
        old = self._kernel.entry.user_exchange(address, value.to_bytes(4, "little"))
        self._thread.record("exchange", old)
        return int.from_bytes(old, "little")

    def load_u64(self, address: int) -> int:
        """Read a 64-bit number."""
        return int.from_bytes(self.load(address, 8), "little")

    def store_u64(self, address: int, value: int) -> None:
        """Write a 64-bit number."""
        self.store(address, value.to_bytes(8, "little"))

    def fetch(self, address: int) -> None:
        """Execute an instruction at an address: call there, and come back."""
        self._check()
        self._kernel.entry.user_fetch(address)

    def compute(self, instructions: int) -> None:
        """Execute instructions that access nothing but the program's own text."""
        self.fetch(self._process.text)
        self._kernel.entry.user_compute(instructions)

    def syscall(self, number: int, *arguments: int) -> int:
        """Execute the SYSCALL instruction. Returns what the kernel leaves in RAX: the result, or minus an errno."""
        self._check()
        kernel, task = self._kernel, self._thread.task
        name = kernel.userland.name(number)
        handler = partial(kernel.userland.dispatch, task, number, arguments)
        result = kernel.entry.syscall(int(number), name, handler, arguments)
        self._thread.record(name, result)
        return result

    # Files.

    def open(self, path: str, flags: int = OpenFlag.RDONLY, mode: int = 0o644) -> int:
        """Open a file; returns its descriptor."""
        with self._string(path) as name:
            return self._call(Nr.OPEN, name, flags, mode, about=path)

    def close(self, fd: int) -> None:
        """Close a file."""
        self._call(Nr.CLOSE, fd)

    def dup(self, fd: int) -> int:
        """Return another descriptor of the same open file."""
        return self._call(Nr.DUP, fd)

    def read(self, fd: int, size: int) -> bytes:
        """Read up to `size` bytes from where the file is; empty at its end."""
        with self._buffer(size) as buffer:
            return self.load(buffer, self.read_into(fd, buffer, size))

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Read up to `size` bytes at an offset."""
        with self._buffer(size) as buffer:
            return self.load(buffer, self.pread_into(fd, buffer, size, offset))

    def write(self, fd: int, data: bytes) -> int:
        """Write data where the file is; returns how many bytes of it were written."""
        with self._data(data) as buffer:
            return self.write_from(fd, buffer, len(data))

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        """Write data at an offset; returns how many bytes of it were written."""
        with self._data(data) as buffer:
            return self.pwrite_from(fd, buffer, len(data), offset)

    def read_into(self, fd: int, address: int, size: int) -> int:
        """Read into memory at an address; returns the number of bytes."""
        return self._call(Nr.READ, fd, address, size)

    def write_from(self, fd: int, address: int, size: int) -> int:
        """Write memory at an address to a file; returns the number of bytes."""
        return self._call(Nr.WRITE, fd, address, size)

    def pread_into(self, fd: int, address: int, size: int, offset: int) -> int:
        """Read at an offset into memory at an address; returns the number of bytes."""
        return self._call(Nr.PREAD64, fd, address, size, offset)

    def pwrite_from(self, fd: int, address: int, size: int, offset: int) -> int:
        """Write memory at an address to an offset; returns the number of bytes."""
        return self._call(Nr.PWRITE64, fd, address, size, offset)

    def lseek(self, fd: int, offset: int, whence: int = Whence.SET) -> int:
        """Set where a file is; returns the new position."""
        return self._call(Nr.LSEEK, fd, offset, whence)

    def pipe(self, flags: int = 0) -> tuple[int, int]:
        """Make a pipe; returns the descriptors of its reading and its writing end."""
        with self._buffer(8) as ends:
            self._call(Nr.PIPE2, ends, flags)
            return self.load_u32(ends), self.load_u32(ends + 4)

    # Memory.

    def mmap(  # noqa: PLR0917 - mmap(2) has six parameters
        self,
        size: int,
        prot: int = _READ_WRITE,
        flags: int = _ANONYMOUS,
        fd: int = -1,
        offset: int = 0,
        address: int = 0,
    ) -> int:
        """Map memory; returns its address."""
        return self._call(Nr.MMAP, address, size, prot, flags, fd, offset)

    def munmap(self, address: int, size: int) -> None:
        """Unmap memory."""
        self._call(Nr.MUNMAP, address, size)

    def mprotect(self, address: int, size: int, prot: int) -> None:
        """Change the protection of memory."""
        self._call(Nr.MPROTECT, address, size, prot)

    def brk(self, address: int = 0) -> int:
        """Set the end of the heap, unless that is impossible; returns where it is now."""
        return self._call(Nr.BRK, address)

    def sbrk(self, increment: int) -> int:
        """Grow or shrink the heap; returns where its end was. Raises OSError ENOMEM."""
        old = self.brk()
        if self.brk(old + increment) != old + increment:
            raise OSError(Errno.ENOMEM, os.strerror(Errno.ENOMEM))
        return old

    # Processes and threads.

    def getpid(self) -> int:
        """Return the number of the process."""
        return self._call(Nr.GETPID)

    def getppid(self) -> int:
        """Return the number of the process' parent."""
        return self._call(Nr.GETPPID)

    def gettid(self) -> int:
        """Return the number of the thread."""
        return self._call(Nr.GETTID)

    def fork(self, program: Program) -> int:
        """Make a child process with a copy of the memory, which runs `program`; returns its number.

        A running Python function cannot be copied, so the child begins with another one.
        """
        self._thread.child_program = program
        return self._call(Nr.FORK)

    def thread(self, program: Program) -> int:
        """Make a thread of this process, which runs `program`; returns its number, for `join`."""
        word = self.mmap(_THREAD_STACK) + _THREAD_STACK - _WORDS
        self._thread.child_program = program
        tid = self._call(Nr.CLONE, _PTHREAD, word, word, word)
        self._process.thread_words[tid] = word
        return tid

    def join(self, tid: int) -> None:
        """Wait until a thread of this process has ended: the kernel then clears its word, as pthread_join knows."""
        word = self._process.thread_words[tid]
        while (value := self.load_u32(word)) != 0:
            self.syscall(Nr.FUTEX, word, FutexOp.WAIT, value)

    def execve(self, program: Program) -> NoReturn:
        """Replace this process' memory and program. The open files stay."""
        path = self._kernel.userland.vfs.install(program)
        with self._string(path) as name:
            self._call(Nr.EXECVE, name, 0, 0, about=path)
        raise ProgramReplaced(program)

    def exit(self, code: int = 0) -> NoReturn:
        """End the process, all its threads. A program that returns does the same with what it returns, or 0."""
        raise ProgramExit(code)

    def wait(self, pid: int = -1, options: int = 0) -> tuple[int, int]:
        """Wait until a child, or that one, has ended.

        Returns its number and exit code, or minus the number of the signal that ended it. With WNOHANG (0, 0) if none
        has ended yet. Raises ChildProcessError if there is no such child.
        """
        with self._buffer(4) as status:
            child = self._call(Nr.WAIT4, pid, status, options, 0)
            return (child, os.waitstatus_to_exitcode(self.load_u32(status))) if child else (0, 0)

    # Scheduling and waiting.

    def sched_yield(self) -> None:
        """Let others run."""
        self._call(Nr.SCHED_YIELD)

    def sched_setaffinity(self, cpus: Iterable[int], tid: int = 0) -> None:
        """Say on which CPUs a thread, or this one, may run; it is on one of them when this returns."""
        with self._data(sum(1 << cpu for cpu in set(cpus)).to_bytes(8, "little")) as mask:
            self._call(Nr.SCHED_SETAFFINITY, tid, 8, mask)

    def sched_getaffinity(self, tid: int = 0) -> set[int]:
        """Return on which CPUs a thread, or this one, may run."""
        with self._buffer(8) as mask:
            self._call(Nr.SCHED_GETAFFINITY, tid, 8, mask)
            bits = self.load_u64(mask)
        return {cpu for cpu in range(64) if bits >> cpu & 1}

    def getcpu(self) -> int:
        """Return on which CPU this thread runs."""
        with self._buffer(4) as cpu:
            self._call(Nr.GETCPU, cpu, 0, 0)
            return self.load_u32(cpu)

    def futex_wait(self, address: int, value: int) -> None:
        """Sleep until woken, if the number at an address is `value`. Raises BlockingIOError (EAGAIN) if it is not."""
        self._call(Nr.FUTEX, address, FutexOp.WAIT, value, 0, 0, 0)

    def futex_wake(self, address: int, count: int = 1) -> int:
        """Wake up to `count` threads that wait at an address; returns how many."""
        return self._call(Nr.FUTEX, address, FutexOp.WAKE, count, 0, 0, 0)

    # Virtual machines.

    def create_vm(self, memory: int) -> VirtualMachine:
        """Make a virtual machine with so many bytes of memory, which are mapped into this process too."""
        return VirtualMachine(self, memory)

    def ioctl(self, fd: int, request: int, argument: int = 0) -> int:
        """Ask something of a device."""
        return self._call(Nr.IOCTL, fd, request, argument)

    def set_guest_memory(self, fd: int, address: int, size: int, *, base: int = 0, slot: int = 0) -> None:
        """Give a virtual machine memory of this process, at guest physical address `base`; none if size is 0."""
        numbers = ((slot, 4), (0, 4), (base, 8), (size, 8), (address, 8))
        with self._data(b"".join(number.to_bytes(width, "little") for number, width in numbers)) as region:
            self.ioctl(fd, KvmIoctl.SET_USER_MEMORY_REGION, region)

    def create_vcpu(self, fd: int, program: GuestProgram) -> int:
        """Make a virtual CPU of a virtual machine's that runs a program; returns its descriptor."""
        self._thread.guest_program = program
        return self.ioctl(fd, KvmIoctl.CREATE_VCPU)

    # The C library's part, and how a program ends otherwise.

    def end(self, status: int) -> NoReturn:
        """End the process as a signal does; `status` is as wait4() has it."""
        self._kernel.userland.end_process(self._thread.task, status)

    def _check(self) -> None:
        """Go no further in a thread that has ended: what is left of its program is being unwound."""
        self._kernel.check_alive()
        if self._thread.exiting:
            self._kernel.userland.unwind()

    def _call(self, number: Nr, *arguments: int, about: str | None = None) -> int:
        result = self.syscall(number, *arguments)
        if result < 0:
            raise OSError(-result, os.strerror(-result), *([about] if about is not None else []))
        return result

    @contextmanager
    def _buffer(self, size: int) -> Iterator[int]:
        """Have memory for a while; gives its address."""
        if size > _ON_STACK:
            address = self.mmap(size)
            try:
                yield address
            finally:
                self.munmap(address, size)
            return
        thread, before = self._thread, self._thread.stack_pointer
        thread.stack_pointer = before - size & -_ALIGNMENT
        try:
            yield thread.stack_pointer
        finally:
            thread.stack_pointer = before

    @contextmanager
    def _data(self, data: bytes) -> Iterator[int]:
        """Have data in memory for a while; gives its address."""
        with self._buffer(len(data)) as address:
            self.store(address, data)
            yield address

    def _string(self, text: str) -> AbstractContextManager[int]:
        return self._data(text.encode() + b"\0")
