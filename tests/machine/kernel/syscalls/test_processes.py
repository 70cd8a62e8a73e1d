"""Processes and threads: how they end, whom that wakes, and what is left of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.machine.kernel import DeadlockError, Guest, Machine, RoundRobin, SegmentationFault
from asikit.machine.mm import MapFlags, Prot
from asikit.machine.uapi.abi import OpenFlag
from asikit.machine.uapi.numbers import Nr
from tests.machine.kernel.syscalls.running import run

if TYPE_CHECKING:
    from asikit.machine.user.user import User

PAGE = 4096
both = pytest.mark.parametrize("asi", [True, False], ids=["asi", "no-asi"])
seeds = pytest.mark.parametrize("seed", range(4))


def test_numbers_of_processes_and_parents() -> None:
    """getpid, getppid and gettid of a parent and its child; a scenario's process has no parent."""
    seen: dict[str, tuple[int, int, int]] = {}

    def numbers(user: User) -> tuple[int, int, int]:
        return user.getpid(), user.getppid(), user.gettid()

    def child(user: User) -> None:
        seen["child"] = numbers(user)

    def parent(user: User) -> None:
        seen["parent"] = numbers(user)
        user.fork(child)
        user.wait()

    run(parent)
    assert seen == {"parent": (1, 0, 1), "child": (2, 1, 2)}


def replacement(_: User) -> int:
    """End at once."""
    return 0


@both
def test_everything_is_freed(*, asi: bool) -> None:
    """After a process with children, threads, pipes, mappings and a guest has ended, no frame and no object is lost."""

    def busy(user: User) -> None:
        reading, writing = user.pipe()
        user.write(writing, b"left in the pipe" * 1000)
        area = user.mmap(16 * PAGE, flags=MapFlags.SHARED | MapFlags.ANONYMOUS)
        user.store(area + 5 * PAGE, b"shared")
        user.fork(lambda child: child.store(area, b"child"))
        user.thread(lambda thread: thread.read(reading, 100))
        user.fork(lambda child: child.execve(replacement))
        vm = user.create_vm(1 << 16)
        vm.vcpu(lambda guest: guest.store(0x3000, b"guest")).run()
        user.wait()

    machine = Machine(asi=asi, debug=True)
    machine.file("/dir/data", b"data")
    for _ in range(2):
        machine.process(busy)
        machine.run()
    kernel = machine.kernel
    before = _in_use(machine)
    machine.process(busy)
    machine.run()
    assert _in_use(machine) == before
    assert kernel.tasks == {}


def _in_use(machine: Machine) -> dict[str, int]:
    """Return how many objects of each slab cache are in use, and how many page frames are free."""
    machine.kernel.vmalloc.vm_unmap_aliases()  # stacks of tasks that have ended are freed lazily
    objects = {cache.name: cache.in_use for cache in machine.kernel.slab}
    return objects | {"free": machine.kernel.allocator.free_frames}


@seeds
@pytest.mark.parametrize("cpus", [1, 2])
def test_exit_group_ends_threads_that_sleep_and_that_compute(cpus: int, seed: int) -> None:
    """exit() in one thread ends one that reads from an empty pipe and one that never stops."""

    def program(user: User) -> None:
        reading, _ = user.pipe()
        area = user.mmap(PAGE)

        def computes(thread: User) -> None:
            while True:
                thread.store_u32(area, thread.load_u32(area) + 1)

        user.thread(lambda thread: thread.read(reading, 1))
        user.thread(computes)
        user.thread(lambda thread: thread.futex_wait(area + 8, 0))
        user.compute(50)
        user.exit(9)

    machine, process = run(program, cpus=cpus, seed=seed, timer_period=200)
    assert process.exit_code == 9
    assert machine.kernel.tasks == {}


def test_exit_group_interrupts_a_thread_on_another_cpu() -> None:
    """A thread that runs in user mode elsewhere is not left to run until the next timer interrupt."""

    def program(user: User) -> None:
        def computes(thread: User) -> None:
            while True:
                thread.compute(1)

        user.thread(computes)
        user.compute(200)
        user.exit(0)

    machine = Machine(debug=True, cpus=2, timer_period=1 << 40)
    machine.process(program)
    machine.run(limit=100_000)
    assert machine.kernel.tasks == {}


@pytest.mark.parametrize("seed", range(4))
def test_descriptors_are_not_torn_between_threads(seed: int) -> None:
    """Threads that open, close and fork at once: no file is used after it was closed, no open one is lost."""

    def program(user: User) -> None:
        def opens(thread: User) -> None:
            for _ in range(30):
                fd = thread.open("/data")
                assert thread.pread(fd, 4, 0) == b"data"
                thread.close(fd)

        others = [user.thread(opens) for _ in range(2)]
        for _ in range(8):
            user.fork(lambda child: child.getpid())
            user.wait()
        for other in others:
            user.join(other)

    machine = Machine(debug=True, cpus=3, interleaver=RoundRobin(seed, longest=6))
    machine.file("/data", b"data")
    machine.process(program)
    machine.run()
    assert machine.kernel.slab.cache("filp", 232).in_use == 0


@seeds
def test_exec_ends_the_other_threads(seed: int) -> None:
    """Exec leaves one thread, with the number of the process."""
    seen: list[int] = []

    def replaced(user: User) -> int:
        seen.append(user.getpid())
        return 4

    def program(user: User) -> None:
        reading, _ = user.pipe()
        user.thread(lambda thread: thread.read(reading, 1))
        user.execve(replaced)

    machine, process = run(program, cpus=2, seed=seed)
    assert (process.exit_code, seen, machine.kernel.tasks) == (4, [process.pid], {})


def test_a_killed_program_is_unwound_without_running_on() -> None:
    """What a program does on its way out after it was killed does nothing any more."""
    unwound: list[str] = []

    def program(user: User) -> None:
        reading, _ = user.pipe()

        def sleeper(thread: User) -> None:
            try:
                thread.read(reading, 1)
            finally:
                unwound.append("begins")
                thread.getpid()
                unwound.append("goes on")

        user.thread(sleeper)
        user.sched_yield()
        user.exit(0)

    run(program)
    assert unwound == ["begins"]


def test_segmentation_fault_can_be_caught() -> None:
    """A program may catch it, as with a handler of SIGSEGV, and goes on."""
    seen: list[int] = []

    def program(user: User) -> int:
        area = user.mmap(PAGE, Prot.READ)
        try:
            user.store(area, b"x")
        except SegmentationFault as fault:
            seen.extend([fault.address - area, fault.signal])
        return user.getpid()

    _, process = run(program)
    assert (process.exit_code, seen) == (1, [0, 11])


def test_uncaught_segmentation_fault_is_the_signal() -> None:
    """Uncaught it ends the process with SIGSEGV."""
    _, process = run(lambda user: user.fetch(user.mmap(PAGE)))
    assert process.exit_code == -11


@both
def test_out_of_memory_kills_the_process_and_no_other(*, asi: bool) -> None:
    """A process whose page fault finds no memory is killed; what it had serves others."""

    def glutton(user: User) -> None:
        area = user.mmap(1 << 30)
        for page in range(1 << 18):
            user.store(area + page * PAGE, b"mine")

    def parent(user: User) -> int:
        for _ in range(2):
            user.fork(glutton)
            _, code = user.wait()
            if code != -9:
                return 1
        area = user.mmap(64 * PAGE)
        for page in range(64):
            user.store(area + page * PAGE, b"fine")
        return 0

    machine = Machine(asi=asi, debug=True, memory=16 << 20)
    machine.file("/dir/ballast", bytes(6 << 20))
    process = machine.process(parent)
    machine.run()
    assert process.exit_code == 0


def test_out_of_memory_is_an_errno_for_system_calls() -> None:
    """Writing to files and pipes fails with ENOMEM when there is nothing left, and goes on when there is."""
    seen: list[str] = []

    def program(user: User) -> None:
        pipes = [user.pipe(OpenFlag.NONBLOCK) for _ in range(4)]
        fd = user.open("/big", OpenFlag.RDWR | OpenFlag.CREAT)
        chunk = user.mmap(16 * PAGE)
        user.store(chunk, b"x")
        offset = 0
        try:
            while True:
                offset += user.pwrite_from(fd, chunk, 16 * PAGE, offset)
        except OSError as error:
            seen.append(type(error).__name__ + str(error.errno))
        try:
            for _, writing in pipes:
                user.write_from(writing, chunk, 16 * PAGE)
        except OSError as error:
            seen.append(type(error).__name__ + str(error.errno))
        user.open("/big", OpenFlag.RDWR | OpenFlag.TRUNC)
        seen.append(str(user.pwrite_from(fd, chunk, 16 * PAGE, 0)))

    _, process = run(program, memory=16 << 20)
    assert (seen, process.exit_code) == (["OSError12", "OSError12", "65536"], 0)


def test_a_programs_mistake_ends_the_run_and_says_where() -> None:
    """An exception that a program lets out comes out of run(), with the process' name."""

    def wrong(user: User) -> None:
        def child(user: User) -> None:
            raise KeyError(f"missing {user.getpid()}")

        user.fork(child)
        user.wait()

    with pytest.raises(KeyError, match="missing") as caught:
        run(wrong)
    assert caught.value.__notes__ == ["in process 'wrong/1' (pid 2)"]


def test_deadlock_names_who_waits_for_what() -> None:
    """A process that reads from its own empty pipe waits for ever."""

    def reader(user: User) -> None:
        reading, _ = user.pipe()
        user.read(reading, 1)

    with pytest.raises(DeadlockError, match=r"'reader' \(pid 1\) waits for a pipe to be written"):
        run(reader)


def test_results_are_what_programs_saw_in_their_order() -> None:
    """Return values, loaded bytes, exit status, files and console are in the architectural results."""

    def program(user: User) -> int:
        user.store(user.brk(user.brk() + PAGE) - PAGE, b"abc")
        user.load(user.brk() - PAGE, 3)
        user.write(1, b"to the console")
        return 3

    machine, _ = run(program)
    results = machine.report().results
    for part in (b"load abc", b"write 14", b"exit status 768", b"to the console"):
        assert part in results
    assert results.index(b"load abc") < results.index(b"write 14")


@both
@seeds
@pytest.mark.parametrize("cpus", [2, 4])
def test_migration(cpus: int, seed: int, *, asi: bool) -> None:
    """A process is on the CPU that it asked for, with its memory."""
    seen: list[int] = []

    def program(user: User) -> None:
        area = user.mmap(PAGE)
        for round_ in range(6):
            user.store_u32(area, round_)
            user.sched_setaffinity([round_ % cpus])
            seen.extend([user.getcpu(), user.load_u32(area)])

    run(program, cpus=cpus, seed=seed, asi=asi)
    assert seen == [number for round_ in range(6) for number in (round_ % cpus, round_)]


@seeds
def test_futex_mutex_between_threads(seed: int) -> None:
    """Three threads on two CPUs count under a mutex made of a futex; no increment is lost."""
    rounds = 8

    def program(user: User) -> int:
        area = user.mmap(PAGE)

        def counts(thread: User) -> None:
            for _ in range(rounds):
                while thread.exchange_u32(area, 1):
                    try:
                        thread.futex_wait(area, 1)
                    except BlockingIOError:
                        continue
                thread.store_u32(area + 8, thread.load_u32(area + 8) + 1)
                thread.store_u32(area, 0)
                thread.futex_wake(area)

        tids = [user.thread(counts) for _ in range(3)]
        for tid in tids:
            user.join(tid)
        return user.load_u32(area + 8)

    _, process = run(program, cpus=2, seed=seed)
    assert process.exit_code == 3 * rounds


def test_fork_by_number_says_what_to_use() -> None:
    """The bare system call cannot know what the child is to run."""
    with pytest.raises(Exception, match=r"use User\.fork or User\.thread"):
        run(lambda user: user.syscall(Nr.FORK))


@both
@pytest.mark.parametrize(("cpus", "smt"), [(1, False), (2, False), (2, True)])
@pytest.mark.parametrize("after", [0, 50, 300])
def test_a_mistake_is_not_hidden_by_what_it_interrupts(after: int, cpus: int, *, smt: bool, asi: bool) -> None:
    """Tasks in the middle of anything are unwound; what comes out of run() is the mistake."""

    def program(user: User) -> None:
        reading, writing = user.pipe()

        def reader(thread: User) -> None:
            try:
                while True:
                    thread.read(reading, 100)
            finally:
                thread.getpid()

        def guest(guest: Guest) -> None:
            try:
                while True:
                    guest.store(guest.load_u64(0) % 4 * PAGE + 8, b"data")
            finally:
                guest.cpuid()

        user.thread(reader)
        user.fork(lambda child: [child.write(writing, b"x" * 9000) for _ in range(1000)])
        user.fork(lambda child: child.create_vm(4 * PAGE).vcpu(guest).run())
        user.compute(after)
        raise LookupError("the mistake")

    with pytest.raises(LookupError, match="the mistake"):
        run(program, cpus=cpus, smt=smt, asi=asi)


def test_processes_of_one_name_are_told_apart() -> None:
    """Results of two processes with one program have different names."""
    machine = Machine(debug=True)
    names = [machine.process(replacement).name for _ in range(2)]
    machine.run()
    assert names == ["replacement", "replacement 2"]
    assert b"replacement 2\0" in machine.report().results
