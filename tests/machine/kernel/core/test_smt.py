"""Two hyperthreads of a core: the stun, core scheduling, the idle class."""

from __future__ import annotations

from typing import Any

import pytest

from asikit.machine.kernel import DeadlockError, Machine, Observer
from asikit.protocol import AsiClass, ProtocolConfig
from tests.machine.kernel.core.running import SECRET, Program, Recorder, machine, secret, seen, spawn

ALL = frozenset(AsiClass)
LOADED = int.from_bytes(SECRET[:8], "little")
MACHINES: dict[str, dict[str, Any]] = {
    "published": {"cpus": 2},
    "two cores": {"cpus": 4},
    "generations": {
        "cpus": 2,
        "protocol": ProtocolConfig(smt=True, noflush=True, classes=ALL, exit_on_context_switch=False),
    },
    "off": {"cpus": 2, "asi": False},
}


class Siblings(Observer):
    """Notes when both threads of a core are in untrusted code, and of whom."""

    def __init__(self) -> None:
        self.together = 0
        self.strangers = 0
        self.machine: Machine | None = None

    def attached(self, machine: object) -> None:
        """Know the machine."""
        assert isinstance(machine, Machine)
        self.machine = machine

    def return_user(self, cpu: int, *, by_iret: bool) -> None:
        """Keep it."""
        del by_iret
        assert self.machine is not None
        context = self.machine.kernel.cpus[cpu]
        sibling = context.sibling
        if sibling is not None and sibling.hw.cpl:
            self.together += 1
            self.strangers += sibling.task.cookie != context.task.cookie


def scenario(seed: int, **fields: Any) -> tuple[Machine, Siblings, list[list[object]]]:  # noqa: ANN401 - any field
    """Threads of one process on all CPUs, each touching secrets, and another process that wants a turn."""
    target = machine(seed=seed, smt=True, timer_period=300, **fields)
    siblings = Siblings()
    target.observe(siblings)
    address = secret(target)

    def program(user: Program) -> None:
        for _ in range(3):
            user.getpid()
            user.touch(address)
            user.compute(5)
        mapped = user.mmap(8192)
        user.store(mapped, b"hello")
        user.load(mapped, 5)
        user.munmap(mapped, 8192)

    first = spawn(target, program, cpu=0)
    tasks = [first, *(spawn(target, program, mm=first.mm, cpu=cpu) for cpu in range(1, target.config.cpus))]
    tasks.append(spawn(target, program, comm="other", cpu=target.config.cpus - 1))
    target.run()
    return target, siblings, [[value for value in seen(task) if value in {LOADED, b"hello"}] for task in tasks]


@pytest.mark.parametrize("name", MACHINES)
def test_many_schedules(name: str) -> None:
    """No invariant breaks, everybody gets done, and strangers never share a core."""
    together = stuns = 0
    for seed in range(12):
        target, siblings, results = scenario(seed, **MACHINES[name])
        assert results == [[LOADED] * 3 + [b"hello"]] * len(results)
        assert siblings.strangers == 0
        together += siblings.together
        report = target.report()
        stuns += report.stuns
        assert report.stuns == (report.exits if target.config.asi else 0)
        if target.config.asi:
            assert report.interrupts.get("stun", 0) <= report.stuns
    assert together > 0, "siblings do run at the same time"
    assert bool(stuns) == MACHINES[name].get("asi", True)


def test_the_stun_interrupts_untrusted_code_only() -> None:
    """Seen over many schedules: some stuns need an interrupt, some find the sibling in the kernel."""
    reports = [scenario(seed, cpus=2)[0].report() for seed in range(6)]
    interrupts = sum(report.interrupts.get("stun", 0) for report in reports)
    assert 0 < interrupts < sum(report.stuns for report in reports)


def test_an_idle_sibling_does_not_stun_for_ever() -> None:
    """One process alone on a core: its sibling's idle task is in a restricted address space of its own."""
    target = machine(cpus=2, smt=True)
    spawn(target, lambda user: user.getpid(), pinned=True)
    assert target.run().round_trips == 1
    idle = target.kernel.cpus[1]
    assert idle.thread.cpu.curr_asi == AsiClass.IDLE + 1


def test_without_the_idle_class_the_machine_deadlocks() -> None:
    """What the class is for: an idle sibling that stays unrestricted stuns this one for ever."""
    config = ProtocolConfig(smt=True)
    target = machine(cpus=2, smt=True, protocol=config)
    spawn(target, lambda user: user.getpid(), pinned=True)
    with pytest.raises(DeadlockError, match=r"cpu 0 \('program' \(pid 1\)\) waits for cpu 1 to enter"):
        target.run()


def test_a_stunned_cpu_may_reschedule() -> None:
    """It spins before user mode with interrupts on; if one wants another task to run, it gives the return up."""
    gave_up = 0
    for seed in range(8):
        target = machine(seed=seed, timer_period=40, cpus=2, smt=True)
        recorder = Recorder()
        target.observe(recorder)
        address = secret(target)

        def in_the_kernel(user: Program, address: int = address) -> None:
            for _ in range(3):
                user.call(lambda: [user.kernel.access.load(address, 8) for _ in range(300)])

        def in_user_mode(user: Program) -> None:
            for _ in range(20):
                user.getpid()
                user.compute(10)

        first = spawn(target, in_the_kernel, cpu=0, pinned=True)
        for _ in range(2):
            spawn(target, in_user_mode, mm=first.mm, cpu=1, pinned=True)
        target.run()
        gave_up += sum(path.startswith("stop_waiting") for _, path in recorder.ops)
    assert gave_up > 0
