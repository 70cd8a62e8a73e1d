"""Tasks and CPUs: sleeping, waking, slices, migration, deadlocks, determinism."""

from __future__ import annotations

from contextlib import suppress

import pytest

from asikit.machine.kernel import DeadlockError, Machine, RoundRobin, ScenarioError, Scripted, TaskExit
from asikit.machine.kernel.core.task import TaskStatus
from asikit.machine.mm import GFP_KERNEL, GFP_USER, OutOfMemoryError
from tests.machine.kernel.core.running import Program, Recorder, machine, secret, seen, spawn


def test_a_deadlock_names_who_waits_for_what() -> None:
    """Every task that is blocked, by name and reason."""
    target = machine(cpus=2)
    spawn(target, lambda user: user.block("a pipe to be filled"), comm="reader")
    spawn(target, lambda user: user.block("a futex"), comm="waiter")
    with pytest.raises(DeadlockError) as caught:
        target.run()
    assert "'reader' (pid 1) waits for a pipe to be filled" in str(caught.value)
    assert "'waiter' (pid 2) waits for a futex" in str(caught.value)


def test_a_lock_and_its_waiters() -> None:
    """First come first served; a task that takes it twice is a deadlock that is named."""
    target = machine(cpus=3, seed=2)
    lock = target.kernel.mutex("the lock")
    order: list[int] = []

    def program(user: Program) -> None:
        def handler() -> int:
            with lock:
                order.append(user.kernel.current.pid)
                for _ in range(30):
                    user.kernel.point("inside")
                assert order[-1] == user.kernel.current.pid, "nobody else came in"
            return 0

        for _ in range(3):
            user.call(handler)

    for cpu in range(3):
        spawn(target, program, cpu=cpu)
    target.run()
    assert sorted(order) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert lock.owner is None

    target = machine()
    again = target.kernel.mutex("the lock")

    def twice(user: Program) -> None:
        def handler() -> int:
            with again, again:
                return 0

        user.call(handler)

    spawn(target, twice)
    with pytest.raises(DeadlockError, match="takes the lock, which it holds"):
        target.run()


def test_a_wakeup_is_never_lost() -> None:
    """Two tasks wake one another in turn, on two CPUs, in many schedules."""
    for seed in range(15):
        assert _turns(seed) == 12


def _turns(seed: int) -> int:
    target = machine(cpus=2, seed=seed, debug=False)
    turn = 0

    def program(user: Program, me: int) -> None:
        def handler() -> None:
            nonlocal turn
            while turn % 2 != me:
                user.kernel.sched.block("its turn")
            turn += 1
            user.kernel.sched.wake(tasks[1 - me])

        for _ in range(6):
            user.call(handler)

    tasks = [spawn(target, lambda user: program(user, 0), cpu=0), spawn(target, lambda user: program(user, 1), cpu=1)]
    target.run()
    return turn


def test_slices() -> None:
    """On one CPU two programs that never block take turns, a timer period each."""
    target = machine(timer_period=50)
    recorder = Recorder()
    target.observe(recorder)
    for name in ("one", "two"):
        spawn(target, lambda user: user.compute(400), comm=name)
    report = target.run()
    switches = [event[2] for event in recorder.events if event[1] == "task"]
    assert switches.count("one") >= 4
    assert switches.count("two") >= 4
    assert report.interrupts["timer"] >= 14


def test_migration() -> None:
    """A task that may no longer run where it is goes on elsewhere, and sees the same memory there."""
    target = machine(cpus=2)
    cpus: list[int] = []

    def program(user: Program) -> None:
        address = user.mmap(4096)
        user.store(address, b"here")
        for cpu in (1, 0, 1):

            def move(cpu: int = cpu) -> int:
                task = user.kernel.current
                task.allowed = frozenset({cpu})
                user.kernel.sched.migrate(task)
                return 0

            user.call(move)
            cpus.append(user.kernel.cpu.number)
            user.load(address, 4)

    task = spawn(target, program, cpu=0)
    report = target.run()
    assert cpus == [1, 0, 1]
    assert [value for value in seen(task) if isinstance(value, bytes)] == [b"here"] * 3
    assert report.switches["migration"] >= 3


def test_an_idle_cpu_takes_waiting_tasks() -> None:
    """Four programs that begin on one CPU end up on all."""
    target = machine(cpus=4)
    ran: set[int] = set()

    def program(user: Program) -> None:
        for _ in range(20):
            user.compute(10)
            ran.add(user.kernel.cpu.number)

    for _ in range(4):
        spawn(target, program, cpu=0)
    target.run()
    assert len(ran) == 4


def test_a_kernel_thread_borrows_page_tables() -> None:
    """Lazy TLB: without an mm of its own it runs on the ones that are loaded, and the way back switches no mm."""
    target = machine()
    kernel = target.kernel
    recorder = Recorder()
    target.observe(recorder)
    woken = []

    def thread() -> None:
        woken.append(kernel.cpu.loaded_mm.id)
        raise TaskExit

    def program(user: Program) -> None:
        def handler() -> int:
            kernel.start(kernel.new_task(thread, comm="kthread", mm=None))
            kernel.sched.yield_()
            return 0

        user.getpid()
        user.call(handler)

    task = spawn(target, program)
    assert task.mm is not None
    mm = task.mm.id
    target.run()
    assert woken == [mm]
    assert [event for event in recorder.events if event[1] == "mm"] == [(0, "mm", mm)]
    assert [event[2] for event in recorder.events if event[1] == "task"] == [
        "program",
        "kthread",
        "program",
        "swapper/0",
    ]


def test_the_mm_of_an_ended_process_is_freed() -> None:
    """Also while a CPU still has it loaded, lazily: with the next mm that it loads, or the next process."""
    target = machine()
    kernel = target.kernel
    counts = kernel.tally.allocations

    def in_use() -> int:
        return counts["pages"] - counts["frees"]

    levels = []
    for _ in range(4):
        spawn(target, lambda user: user.store(user.mmap(1 << 16), b"x"))
        target.run()
        levels.append(in_use())
    assert levels[1] == levels[2] == levels[3]
    assert len(list(kernel.contexts)) <= 2


@pytest.mark.parametrize("cpus", [1, 3])
def test_a_run_can_be_repeated(cpus: int) -> None:
    """The same seed gives the same run to the last count; another seed, with several CPUs, another one."""

    def run(seed: int) -> tuple[dict[str, object], list[tuple[int, str]]]:
        target = machine(cpus=cpus, seed=seed)
        recorder = Recorder()
        target.observe(recorder)
        address = secret(target)
        for cpu in range(cpus):
            spawn(target, lambda user: [user.touch(address) for _ in range(5)], cpu=cpu)
        return target.run().to_dict(), recorder.ops

    assert run(5) == run(5)
    if cpus > 1:
        assert run(5) != run(6)


def calls_and_computes(user: Program) -> None:
    """Ten system calls, and something to do in between."""
    for _ in range(10):
        user.getpid()
        user.compute(30)


def test_a_limit_and_going_on() -> None:
    """A run may stop after some time, and go on later, as if nothing had been."""
    whole, parts = machine(), machine()
    for target in (whole, parts):
        spawn(target, calls_and_computes)
    expected = whole.run()
    stops = 0
    while parts.kernel.tasks:
        report = parts.run(limit=40)
        stops += 1
    assert stops > 5
    assert report == expected


@pytest.mark.parametrize("cpus", [1, 2])
def test_nothing_is_set_up_while_programs_are_stopped(cpus: int) -> None:
    """A CPU may have stopped in user mode, or in a critical section: kernel code cannot begin there."""
    target = Machine(cpus=cpus, debug=True)
    made = (
        lambda: target.file("/late", b"late"),
        lambda: target.allocate(b"late"),
        lambda: target.process(lambda user: user.getpid()),
    )
    target.process(lambda user: [user.getpid() for _ in range(20)])
    target.run(limit=60)
    for make in made:
        with pytest.raises(ScenarioError, match="before a run or after all processes have ended, not in between"):
            make()
    target.run()
    for make in made:
        make()
    target.run()


def test_programs_make_nothing_from_outside() -> None:
    """A program that takes the machine for its own means is told."""
    target = Machine()
    target.process(lambda _: target.file("/inside", b"inside"))
    with pytest.raises(ScenarioError, match="a file can be made before a run"):
        target.run()


@pytest.mark.parametrize("smt", [False, True])
def test_setting_up_after_a_run_is_like_setting_up_before(smt: bool) -> None:
    """Sensitive memory is touched in no critical section, and pageblocks change hands with all CPUs at rest."""
    target = Machine(cpus=2, smt=smt, debug=True, memory=16 << 20, pageblock_order=4)
    for gfp in (GFP_KERNEL, GFP_USER):
        for _ in range(2):
            target.process(lambda user: user.getpid())
            target.run()
        allocator, pages = target.kernel.allocator, []
        with suppress(OutOfMemoryError):
            while True:
                pages.append(allocator.alloc_pages(gfp))
        assert len(pages) > 2500
        assert target.report().allocations["flips"] > 0
        for pfn in pages:
            allocator.free_pages(pfn)


def test_programs_can_be_added_after_a_run() -> None:
    """The machine goes on as it was."""
    target = machine(cpus=2, smt=True)
    for _ in range(3):
        task = spawn(target, lambda user: user.getpid())
        target.run()
        assert task.status is TaskStatus.DEAD


def test_a_mistake_in_a_program_ends_the_run() -> None:
    """Its exception comes out of `run`; the machine is of no use afterwards, and says so."""
    target = machine()
    spawn(target, lambda _: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        target.run()
    with pytest.raises(Exception, match="make another machine"):
        target.run()


def test_a_script_moves_between_cpus() -> None:
    """`switch K` at a named point; what was not used is known."""
    script = Scripted([("user instruction", 3, "switch 1"), ("no such point", 1, "nmi")])
    target = machine(cpus=2, interleaver=script)
    order: list[int] = []

    def program(user: Program) -> None:
        for _ in range(4):
            user.compute(1)
            order.append(user.kernel.cpu.number)

    for cpu in (0, 1):
        spawn(target, program, cpu=cpu)
    target.run()
    assert order[:2] == [0, 0]
    assert order[2] == 1
    assert script.unused == [("no such point", 1)]


@pytest.mark.parametrize("text", ["nothing", "switch", "nmi x", "switch -1"])
def test_a_script_that_makes_no_sense(text: str) -> None:
    """One line that says what could be there."""
    with pytest.raises(ScenarioError, match='use "nmi", "interrupt" or "switch K"'):
        Scripted([("load", 1, text)])


def test_round_robin_is_random_and_repeatable() -> None:
    """Slices differ, and are the same for the same seed."""
    first, second = RoundRobin(7), RoundRobin(7)
    slices = [first.slice(0) for _ in range(50)]
    assert slices == [second.slice(0) for _ in range(50)]
    assert len(set(slices)) > 5
    assert first.choose(1, [0, 2]) == 2
    assert first.choose(2, [0, 1]) == 0
    with pytest.raises(ScenarioError, match="at least one point"):
        RoundRobin(longest=0)
