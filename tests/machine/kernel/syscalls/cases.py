"""Little programs, each run on the model and on the real Linux under the tests, which must answer alike.

A case is a function of one `User` and of a list that it notes things in. Numbers of processes and addresses differ
between the two and are not noted.
"""

from __future__ import annotations

import errno
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from asikit.machine.mm import MapFlags, Prot
from asikit.machine.uapi.abi import OpenFlag, Whence
from asikit.machine.uapi.numbers import Nr

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.user.user import User

Note: TypeAlias = "Callable[[object], None]"
Case: TypeAlias = "Callable[[User, Note], object]"

PAGE = 4096
CONTENT = bytes(range(256)) * 40
"""What the file /dir/data holds at first: two pages and a half."""
ANONYMOUS = MapFlags.PRIVATE | MapFlags.ANONYMOUS
BAD = 0x10


def attempt(note: Note, action: Callable[[], object]) -> None:
    """Note what an action returns, or its errno's name."""
    try:
        note(action())
    except OSError as error:
        note(errno.errorcode[error.errno or 0])


def reading_past_the_end(user: User, note: Note) -> None:
    """Reads stop at the end of the file, and then are empty."""
    fd = user.open("/dir/data")
    size = len(CONTENT)
    attempt(note, lambda: user.pread(fd, 100, size - 10))
    attempt(note, lambda: user.pread(fd, 100, size))
    attempt(note, lambda: user.pread(fd, 100, size + 5000))
    attempt(note, lambda: user.pread(fd, 100, -1))
    attempt(note, lambda: user.pread(fd, 0, 0))
    attempt(note, lambda: len(user.read(fd, size + 100)))
    attempt(note, lambda: user.read(fd, 1))
    attempt(note, lambda: user.pread(fd, 6000, 3000) == CONTENT[3000:9000])


def positions(user: User, note: Note) -> None:
    """Reading and writing move on; lseek goes anywhere but before the beginning; dup and fork share the position."""
    fd = user.open("/dir/data", OpenFlag.RDWR)
    attempt(note, lambda: user.read(fd, 3))
    attempt(note, lambda: user.lseek(fd, 0, Whence.CUR))
    attempt(note, lambda: user.lseek(fd, 10, Whence.SET))
    attempt(note, lambda: user.write(fd, b"written"))
    attempt(note, lambda: user.lseek(fd, -8, Whence.CUR))
    attempt(note, lambda: user.read(fd, 9))
    attempt(note, lambda: user.lseek(fd, 10, Whence.END))
    attempt(note, lambda: user.lseek(fd, -1, Whence.SET))
    attempt(note, lambda: user.lseek(fd, 0, 9))
    again = user.dup(fd)
    attempt(note, lambda: user.lseek(again, 5, Whence.SET))
    attempt(note, lambda: user.read(fd, 2))

    def child(user: User) -> None:
        user.read(fd, 4)

    user.fork(child)
    user.wait()
    attempt(note, lambda: user.lseek(again, 0, Whence.CUR))
    attempt(note, lambda: user.pwrite(fd, b"x", 0))
    attempt(note, lambda: user.lseek(fd, 0, Whence.CUR))


def writing_makes_holes(user: User, note: Note) -> None:
    """A file grows; what was skipped reads as zeroes."""
    fd = user.open("/dir/new", OpenFlag.RDWR | OpenFlag.CREAT)
    attempt(note, lambda: user.pwrite(fd, b"end", 9000))
    attempt(note, lambda: user.pread(fd, 10000, 0) == bytes(9000) + b"end")
    attempt(note, lambda: user.pwrite(fd, b"", 20000))
    attempt(note, lambda: user.lseek(fd, 0, Whence.END))
    attempt(note, lambda: user.pwrite(fd, b"x" * 5000, 4000))
    attempt(note, lambda: user.lseek(fd, 0, Whence.END))
    attempt(note, lambda: user.pread(fd, 8, 3996))


def appending(user: User, note: Note) -> None:
    """O_APPEND writes at the end, pwrite too."""
    fd = user.open("/dir/data", OpenFlag.RDWR | OpenFlag.APPEND)
    attempt(note, lambda: user.write(fd, b"tail"))
    attempt(note, lambda: user.lseek(fd, 0, Whence.CUR) - len(CONTENT))
    attempt(note, lambda: user.pwrite(fd, b"more", 0))
    attempt(note, lambda: user.pread(fd, 100, len(CONTENT)))


def opening(user: User, note: Note) -> None:
    """The errors of open, and the lowest free descriptor."""
    attempt(note, lambda: user.open("/dir/missing"))
    attempt(note, lambda: user.open("/dir/data/below"))
    attempt(note, lambda: user.open("/dir/missing/below", OpenFlag.CREAT | OpenFlag.RDWR))
    attempt(note, lambda: user.open("/dir/data", OpenFlag.CREAT | OpenFlag.EXCL))
    attempt(note, lambda: user.open("/dir", OpenFlag.WRONLY))
    attempt(note, lambda: user.open("/dir/" + "n" * 256))
    attempt(note, lambda: user.open("/dir/" + "n/" * 2100))
    attempt(note, lambda: user.open("/dir/data/"))
    attempt(note, lambda: user.open("/dir/fresh/", OpenFlag.CREAT | OpenFlag.RDWR))
    note(-user.syscall(Nr.OPEN, BAD, 0, 0))
    first, second = user.open("/dir/data"), user.open("/dir/data")
    note((first, second))
    user.close(first)
    attempt(note, lambda: user.open("/dir/data"))
    attempt(note, lambda: user.close(99))
    attempt(note, lambda: user.dup(99))
    attempt(note, lambda: user.dup(second))
    fd = user.open("/dir/data", OpenFlag.RDWR | OpenFlag.TRUNC)
    attempt(note, lambda: user.lseek(fd, 0, Whence.END))
    attempt(note, lambda: user.read(second, 10))


def wrong_descriptors(user: User, note: Note) -> None:
    """What was not opened for it is EBADF."""
    reading, writing = user.open("/dir/data"), user.open("/dir/data", OpenFlag.WRONLY)
    attempt(note, lambda: user.write(reading, b"x"))
    attempt(note, lambda: user.read(writing, 1))
    attempt(note, lambda: user.pread(writing, 1, 0))
    attempt(note, lambda: user.pwrite(reading, b"x", 0))
    for fd in (-1, 50, 1 << 20):
        attempt(note, partial(user.read, fd, 1))
        attempt(note, partial(user.write, fd, b"x"))
        attempt(note, partial(user.lseek, fd, 0))
        attempt(note, partial(user.mmap, PAGE, Prot.READ, MapFlags.PRIVATE, fd))


def bad_addresses(user: User, note: Note) -> None:
    """EFAULT, and how much was done before it."""
    fd = user.open("/dir/data", OpenFlag.RDWR)
    attempt(note, lambda: user.read_into(fd, BAD, 10))
    attempt(note, lambda: user.read_into(fd, 1 << 47, 10))
    attempt(note, lambda: user.read_into(fd, 1 << 63, 0))
    attempt(note, lambda: user.write_from(fd, BAD, 10))
    area = user.mmap(3 * PAGE)
    user.munmap(area + PAGE, PAGE)
    user.store(area, b"m" * PAGE)
    attempt(note, lambda: user.pread_into(fd, area + PAGE - 100, 300, 0))
    attempt(note, lambda: user.pread_into(fd, area + PAGE - 100, 300, PAGE - 50))
    attempt(note, lambda: user.load(area + PAGE - 100, 100) == CONTENT[PAGE - 50 : PAGE + 50])
    attempt(note, lambda: user.pwrite_from(fd, area + PAGE, 10, 0))
    attempt(note, lambda: user.pwrite_from(fd, area + PAGE - 30, 100, 0))
    attempt(note, lambda: user.pread(fd, 32, 0))
    user.mprotect(area, PAGE, Prot.READ)
    attempt(note, lambda: user.pread_into(fd, area, 10, 0))
    attempt(note, lambda: user.pwrite_from(fd, area, 10, 0))
    user.mprotect(area, PAGE, Prot.NONE)
    attempt(note, lambda: user.pwrite_from(fd, area, 10, 0))


def pipes(user: User, note: Note) -> None:
    """End of file, EPIPE, EAGAIN, ESPIPE, and how much goes in."""
    reading, writing = user.pipe()
    note((reading, writing))
    attempt(note, lambda: user.write(writing, b"one"))
    attempt(note, lambda: user.write(writing, b"two"))
    attempt(note, lambda: user.read(reading, 4))
    attempt(note, lambda: user.read(reading, 0))
    attempt(note, lambda: user.write(writing, b""))
    attempt(note, lambda: user.read(reading, 100))
    attempt(note, lambda: user.read(writing, 1))
    attempt(note, lambda: user.write(reading, b"x"))
    attempt(note, lambda: user.pread(reading, 1, 0))
    attempt(note, lambda: user.lseek(reading, 0))
    attempt(note, lambda: user.write_from(writing, BAD, 10))
    attempt(note, lambda: user.write(writing, b"last"))
    attempt(note, lambda: user.read_into(reading, BAD, 10))
    user.close(writing)
    attempt(note, lambda: user.read(reading, 100))
    attempt(note, lambda: user.read(reading, 100))
    reading, writing = user.pipe()
    user.close(reading)
    attempt(note, lambda: user.write(writing, b"x"))
    attempt(note, lambda: user.write(writing, b""))
    attempt(note, lambda: user.pipe(OpenFlag.APPEND))
    note(-user.syscall(Nr.PIPE2, BAD, 0))
    attempt(note, lambda: user.dup(0) - writing)


def full_pipes(user: User, note: Note) -> None:
    """A pipe takes 64 KiB, less if its pages are not full; without blocking the rest is EAGAIN."""
    reading, writing = user.pipe(OpenFlag.NONBLOCK)
    attempt(note, lambda: user.read(reading, 1))
    attempt(note, lambda: user.write(writing, b"a" * 100_000))
    attempt(note, lambda: user.write(writing, b"b"))
    attempt(note, lambda: len(user.read(reading, 100)))
    attempt(note, lambda: user.write(writing, b"b"))
    attempt(note, lambda: len(user.read(reading, PAGE)))
    attempt(note, lambda: user.write(writing, b"c" * 10_000))
    total = 0
    while True:
        try:
            total += len(user.read(reading, 7000))
        except OSError:
            break
    note(total)
    for _ in range(3):
        attempt(note, lambda: user.write(writing, b"x" * 3000))
    attempt(note, lambda: user.write(writing, b"y" * 60_000))
    area = user.mmap(2 * PAGE)
    user.munmap(area + PAGE, PAGE)
    reading, writing = user.pipe(OpenFlag.NONBLOCK)
    attempt(note, lambda: user.write_from(writing, area + 2048, PAGE))
    attempt(note, lambda: user.write_from(writing, area, 2 * PAGE))
    attempt(note, lambda: len(user.read(reading, 3 * PAGE)))
    attempt(note, lambda: user.write(writing, b"z" * PAGE))
    attempt(note, lambda: user.read_into(reading, area + 2048, PAGE))
    attempt(note, lambda: len(user.read(reading, 3 * PAGE)))


def small_writes(user: User, note: Note) -> None:
    """What does not fill a page goes to the last page, if all of it fits there: so many writes go in."""
    for size in (1000, 1500, 5000):
        reading, writing = user.pipe(OpenFlag.NONBLOCK)
        count = 0
        try:
            while True:
                note(user.write(writing, bytes([count]) * size))
                count += 1
        except BlockingIOError:
            note(count)
        data = b""
        try:
            while True:
                data += user.read(reading, 999)
        except BlockingIOError:
            note(data)


def pipe_between_processes(user: User, note: Note) -> None:
    """Sleeping on both sides: a writer that fills the pipe, a reader that empties it."""
    reading, writing = user.pipe()

    def child(user: User) -> int:
        user.close(reading)
        total = sum(user.write(writing, bytes([number]) * 30_000) for number in range(5))
        return total == 150_000

    user.fork(child)
    user.close(writing)
    data = b""
    while part := user.read(reading, 9000):
        data += part
    note(data == b"".join(bytes([number]) * 30_000 for number in range(5)))
    note(user.wait()[1])


def mapping_files(user: User, note: Note) -> None:
    """A shared mapping is the file; a private one is not."""
    fd = user.open("/dir/data", OpenFlag.RDWR)
    shared = user.mmap(PAGE, flags=MapFlags.SHARED, fd=fd)
    private = user.mmap(PAGE, flags=MapFlags.PRIVATE, fd=fd)
    user.store(shared, b"by store")
    note(user.pread(fd, 8, 0))
    note(user.load(private, 8))
    user.pwrite(fd, b"by pwrite", 0)
    note(user.load(shared, 9))
    user.store(private, b"mine")
    note((user.pread(fd, 9, 0), user.load(shared, 9), user.load(private, 9)))
    user.pwrite(fd, b"again", 0)
    note(user.load(private, 9))
    second = user.mmap(PAGE, flags=MapFlags.PRIVATE, fd=fd, offset=2 * PAGE)
    note(user.load(second + len(CONTENT) - 2 * PAGE - 4, 8))
    user.close(fd)
    user.store(shared, b"still")
    note(user.pread(user.open("/dir/data"), 5, 0))


def mmap_errors(user: User, note: Note) -> None:
    """EINVAL, EACCES, EBADF, ENOMEM, EEXIST and ENODEV."""
    reading, writing = user.open("/dir/data"), user.open("/dir/data", OpenFlag.WRONLY)
    pipe, _ = user.pipe()
    attempt(note, lambda: user.mmap(0))
    attempt(note, lambda: user.mmap(PAGE, flags=MapFlags.ANONYMOUS))
    attempt(note, lambda: user.mmap(PAGE, flags=MapFlags.PRIVATE, fd=-1))
    attempt(note, lambda: user.mmap(PAGE, flags=MapFlags.PRIVATE, fd=reading, offset=100))
    attempt(note, lambda: user.mmap(PAGE, flags=MapFlags.SHARED, fd=reading))
    attempt(note, lambda: user.mmap(PAGE, Prot.READ, MapFlags.PRIVATE, writing))
    attempt(note, lambda: user.mmap(PAGE, Prot.READ, MapFlags.PRIVATE, pipe))
    attempt(note, lambda: user.mmap(1 << 50))
    attempt(note, lambda: user.mmap(PAGE, flags=ANONYMOUS | MapFlags.FIXED, address=100))
    area = user.mmap(2 * PAGE)
    attempt(note, lambda: user.mmap(PAGE, flags=ANONYMOUS | MapFlags.FIXED_NOREPLACE, address=area))
    attempt(note, lambda: user.mmap(PAGE, flags=ANONYMOUS | MapFlags.FIXED, address=area) - area)
    attempt(note, lambda: user.munmap(area, 0))
    attempt(note, lambda: user.munmap(area + 1, PAGE))
    attempt(note, lambda: user.munmap(area, PAGE))
    attempt(note, lambda: user.munmap(area, PAGE))
    attempt(note, lambda: user.mprotect(area, 2 * PAGE, Prot.READ))
    attempt(note, lambda: user.mprotect(area + 1, PAGE, Prot.READ))
    attempt(note, lambda: user.mprotect(area + PAGE, 0, Prot.READ))
    attempt(note, lambda: user.mprotect(area + PAGE, PAGE, 0x100))


def anonymous_memory(user: User, note: Note) -> None:
    """Zeroes at first; a hole in the middle; a fixed mapping replaces."""
    area = user.mmap(8 * PAGE)
    note(user.load(area + 4090, 12))
    user.store(area + 4090, b"across pages")
    note(user.load(area + 4090, 12))
    user.munmap(area + 2 * PAGE, PAGE)
    user.store(area + PAGE, b"below")
    user.store(area + 3 * PAGE, b"above")
    user.mmap(PAGE, flags=ANONYMOUS | MapFlags.FIXED, address=area)
    note((user.load(area, 4), user.load(area + PAGE, 5), user.load(area + 3 * PAGE, 5)))
    again = user.mmap(PAGE, flags=ANONYMOUS, address=area + 2 * PAGE)
    note(again - area)


def heap(user: User, note: Note) -> None:
    """Brk grows and shrinks; what was given back is gone; below the heap's start nothing happens."""
    start = user.brk()
    note(user.brk(start + 3 * PAGE) - start)
    user.store(start, b"heap")
    user.store(start + 2 * PAGE, b"high")
    note(user.brk(start + PAGE) - start)
    fd = user.open("/dir/new", OpenFlag.RDWR | OpenFlag.CREAT)
    attempt(note, lambda: user.write_from(fd, start + 2 * PAGE, 4))
    note(user.brk(start + 3 * PAGE) - start)
    note((user.load(start, 4), user.load(start + 2 * PAGE, 4)))
    note(user.brk(1) - start)
    note(user.brk(1 << 47) - start)
    note(user.brk(start + 100) - start)
    note(user.sbrk(8) - start)


def fork_copies_memory(user: User, note: Note) -> None:
    """Parent and child do not see one another's writes, but in shared memory they do."""
    private, shared = user.mmap(2 * PAGE), user.mmap(PAGE, flags=MapFlags.SHARED | MapFlags.ANONYMOUS)
    user.store(private, b"parent")
    user.store(shared, b"0")

    def grandchild(user: User) -> int:
        user.store(private, b"grand")
        return user.load(private, 6) == b"grand!"

    def child(user: User) -> int:
        user.store(private, b"child!")
        user.store(shared, b"1")
        user.fork(grandchild)
        _, code = user.wait()
        return code == 1 and user.load(private, 6) == b"child!"

    user.fork(child)
    user.store(private + PAGE, b"other")
    note(user.wait()[1])
    note((user.load(private, 6), user.load(private + PAGE, 5), user.load(shared, 1)))


def waiting(user: User, note: Note) -> None:
    """ECHILD, exit codes, WNOHANG, a bad place for the status."""
    attempt(note, user.wait)
    attempt(note, lambda: user.wait(options=0x100))
    first, second = user.fork(lambda _: 3), user.fork(lambda child: child.exit(258))
    attempt(note, lambda: user.wait(second)[1])
    attempt(note, lambda: user.wait(second))
    attempt(note, lambda: user.wait(first)[1])
    attempt(note, user.wait)
    attempt(note, lambda: user.wait(options=1))
    reading, writing = user.pipe()

    def sleeper(child: User) -> None:
        child.close(writing)
        child.read(reading, 1)

    pid = user.fork(sleeper)
    attempt(note, lambda: user.wait(options=1))
    user.close(writing)
    note(user.syscall(Nr.WAIT4, pid, BAD, 0, 0))
    attempt(note, user.wait)
    note(user.syscall(Nr.WAIT4, (1 << 64) - 1, 0, 0, 0))


def segmentation_faults(user: User, note: Note) -> None:
    """What kills a process: reading nothing, writing what may only be read, executing data."""
    area = user.mmap(PAGE, Prot.READ)
    for wrong in (
        lambda child: child.load(BAD, 1),
        lambda child: child.store(area, b"x"),
        lambda child: child.load((1 << 47) - PAGE, 1),
        lambda child: child.load(1 << 63, 1),
    ):
        user.fork(wrong)
        note(user.wait()[1])
    note(user.load(area, 1))


def bus_errors(user: User, note: Note) -> None:
    """A mapping beyond the end of its file is SIGBUS, and EFAULT for a system call."""
    fd = user.open("/dir/data", OpenFlag.RDWR)
    area = user.mmap(5 * PAGE, flags=MapFlags.SHARED, fd=fd)
    note(user.load(area + 2 * PAGE + 2048, 4))
    user.fork(lambda child: child.load(area + 3 * PAGE, 1))
    note(user.wait()[1])
    attempt(note, lambda: user.pwrite_from(fd, area + 3 * PAGE, 1, 0))
    user.pwrite(fd, b"now", 3 * PAGE)
    note(user.load(area + 3 * PAGE, 3))


def orphans(user: User, note: Note) -> None:
    """A child whose parent has ended is nobody's to wait for."""
    reading, writing = user.pipe()

    def grandchild(child: User) -> None:
        child.write(writing, b"done")

    def child(child: User) -> None:
        child.fork(grandchild)

    user.fork(child)
    note(user.wait()[1])
    note(user.read(reading, 10))
    attempt(note, user.wait)


def executing(user: User, note: Note) -> None:
    """Exec replaces memory and program and keeps open files, but for those that are to be closed."""
    reading, writing = user.pipe()
    kept = user.open("/dir/data")
    closed = user.open("/dir/data", OpenFlag.CLOEXEC)
    user.read(kept, 5)

    def replaced(child: User) -> int:
        child.write(writing, child.read(kept, 3))
        try:
            child.read(closed, 1)
        except OSError as error:
            return error.errno or 0
        return 0

    user.fork(lambda child: child.execve(replaced))
    note(user.wait()[1])
    note(user.read(reading, 10))


def futexes(user: User, note: Note) -> None:
    """EAGAIN when the word has changed, EINVAL and EFAULT for bad places, nobody to wake."""
    word = user.mmap(PAGE)
    user.store_u32(word, 7)
    attempt(note, lambda: user.futex_wait(word, 8))
    attempt(note, lambda: user.futex_wait(word + 1, 7))
    attempt(note, lambda: user.futex_wait(BAD, 7))
    attempt(note, lambda: user.futex_wait(1 << 48, 7))
    attempt(note, lambda: user.futex_wake(word))
    attempt(note, lambda: user.futex_wake(word + 2))
    attempt(note, lambda: user.futex_wake(word, 0))


def futex_between_processes(user: User, note: Note) -> None:
    """A futex in shared memory is the same one at another address in another process."""
    area = user.mmap(2 * PAGE, flags=MapFlags.SHARED | MapFlags.ANONYMOUS)

    def child(child: User) -> int:
        child.store_u32(area + 8, 1)
        while child.load_u32(area + 4) == 0:
            try:
                child.futex_wait(area + 4, 0)
            except BlockingIOError:
                break
        return 5

    user.fork(child)
    while user.load_u32(area + 8) == 0:
        user.sched_yield()
    user.store_u32(area + 4, 1)
    user.futex_wake(area + 4)
    note(user.wait()[1])


def threads(user: User, note: Note) -> None:
    """Threads share memory and files, have the process' number, and are joined."""
    area = user.mmap(PAGE)
    pid = user.getpid()

    def thread(user: User) -> None:
        user.store(area, b"thread")
        user.store_u32(area + 16, user.getpid() == pid)
        user.store_u32(area + 20, user.gettid() != pid)
        user.store_u32(area + 24, user.open("/dir/data"))

    user.join(user.thread(thread))
    note((user.load(area, 6), user.load_u32(area + 16), user.load_u32(area + 20)))
    attempt(note, lambda: user.read(user.load_u32(area + 24), 4))
    note(user.gettid() == pid)


def affinity(user: User, note: Note) -> None:
    """A mask without a CPU that exists is EINVAL; there is no process with that number."""
    attempt(note, lambda: user.sched_setaffinity([]))
    attempt(note, lambda: user.sched_setaffinity([63]))
    attempt(note, lambda: user.sched_setaffinity([0]))
    attempt(note, user.sched_getaffinity)
    attempt(note, user.getcpu)
    attempt(note, lambda: user.sched_setaffinity([0], 1 << 22))
    note(-user.syscall(Nr.SCHED_SETAFFINITY, 0, 8, BAD))
    note(-user.syscall(Nr.SCHED_GETAFFINITY, 0, 4, BAD))


def unknown_calls(user: User, note: Note) -> None:
    """ENOSYS and ENOTTY."""
    note(user.syscall(1000))
    attempt(note, lambda: user.ioctl(user.open("/dir/data"), 0xAE01))
    attempt(note, lambda: user.ioctl(77, 0xAE01))


CASES: dict[str, Case] = {
    case.__name__: case
    for case in (
        reading_past_the_end,
        positions,
        writing_makes_holes,
        appending,
        opening,
        wrong_descriptors,
        bad_addresses,
        pipes,
        full_pipes,
        small_writes,
        pipe_between_processes,
        mapping_files,
        mmap_errors,
        anonymous_memory,
        heap,
        fork_copies_memory,
        waiting,
        segmentation_faults,
        bus_errors,
        orphans,
        executing,
        futexes,
        futex_between_processes,
        threads,
        affinity,
        unknown_calls,
    )
}
