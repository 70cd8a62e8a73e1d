"""An NMI in every place of enter and exit, its handler touching a secret."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from asikit.machine.kernel import Act, Action, Machine, RoundRobin, Scripted
from asikit.protocol import AsiClass, ProtocolConfig
from tests.machine.kernel.core.running import Program, machine, secret, seen, spawn

if TYPE_CHECKING:
    from asikit.machine.kernel import MachineReport

MACHINES: dict[str, dict[str, Any]] = {
    "published": {},
    "generations": {"protocol": ProtocolConfig(noflush=True)},
    "pti": {"protocol": ProtocolConfig(pti=True)},
    "smt": {"cpus": 2, "smt": True},
    "off": {"asi": False},
}
NOISY: dict[str, dict[str, Any]] = {
    "siblings": {"cpus": 2, "smt": True},
    "two cores, generations, pti": {
        "cpus": 4,
        "smt": True,
        "protocol": ProtocolConfig(smt=True, pti=True, noflush=True, classes=frozenset(AsiClass)),
    },
    "three CPUs, generations": {"cpus": 3, "protocol": ProtocolConfig(noflush=True, exit_on_context_switch=False)},
}


def run(script: Scripted, fields: dict[str, Any]) -> tuple[list[object], MachineReport]:
    """A system call that exits, one that does not, and a fault that exits; returns what the program saw."""
    target = machine(interleaver=script, **fields)
    touched, by_nmi = secret(target), secret(target)
    target.on_nmi(lambda cpu: target.kernel.access.load(by_nmi, 8 + cpu - cpu))

    def program(user: Program) -> None:
        user.getpid()
        user.touch(touched)
        address = user.mmap(8192)
        user.store(address, b"hello")
        user.load(address, 5)

    task = spawn(target, program, pinned=True)
    return seen(task), target.run()


@pytest.mark.parametrize("name", MACHINES)
def test_an_nmi_after_every_micro_operation(name: str) -> None:
    """All places, enumerated from a run without: the invariants hold, and the program sees the same."""
    fields = MACHINES[name]
    script = Scripted([])
    script.record = True
    expected, report = run(script, fields)
    places = [
        (path, number)
        for path, times in Counter(point for point in script.passed if "." in point).items()
        for number in range(1, times + 1)
    ]
    assert len(places) >= (80 if fields.get("asi", True) else 5)
    if name != "published":  # the same programs with more in them; every other place will do
        places = places[::2]
    exits = []
    for path, number in places:
        script = Scripted([(path, number, "nmi")])
        got, report = run(script, fields)
        assert got == expected, (path, number)
        assert report.interrupts["nmi"] == 1, (path, number)
        assert script.unused == []
        exits.append(report.exits)
    if fields.get("asi", True):
        assert max(exits) > min(exits), "some NMIs cost an exit, some come where nothing is left to leave"


def test_an_nmi_between_any_two_accesses() -> None:
    """Also in the middle of the kernel's ordinary code, and in user mode."""
    script = Scripted([])
    script.record = True
    expected, _ = run(script, {})
    count = len(script.passed)
    for number in range(1, count + 1, 3):
        assert run(Scripted([("*", number, "nmi")]), {})[0] == expected


def test_nmis_do_not_nest() -> None:
    """A second NMI waits for the first one's IRET, and is not lost; a third is one with the second."""
    target = machine()
    depth, deepest, ran = 0, 0, 0

    def handler(cpu: int) -> None:
        nonlocal depth, deepest, ran
        depth += 1
        ran += 1
        deepest = max(deepest, depth)
        if ran == 1:
            target.inject_nmi(cpu)
            target.inject_nmi(cpu)
            target.kernel.point("in the handler")
        depth -= 1

    target.on_nmi(handler)
    target.inject_nmi(0)
    spawn(target, lambda user: user.getpid())
    report = target.run()
    assert (ran, deepest, report.interrupts["nmi"]) == (2, 1, 2)


def test_an_interrupt_waits_for_interrupts_on() -> None:
    """At a point with interrupts off it stays pending; it comes once they are on, never inside a transition."""
    target = machine(interleaver=Scripted([("asi_exit.write_cr3", 1, "interrupt")]))
    address = secret(target)
    frames = []
    target.on_interrupt(lambda cpu, vector: frames.append((cpu, vector, target.kernel.cpu.thread.frames[:-1])))
    spawn(target, lambda user: user.touch(address))
    target.run()
    assert frames == [(0, 0x24, ())]


class Noise(RoundRobin):
    """NMIs and interrupts anywhere, at any CPU, besides handing over anywhere."""

    every_point = True

    def __init__(self, seed: int, cpus: int) -> None:
        super().__init__(seed)
        self._noise = random.Random(seed)
        self._cpus = cpus

    def at(self, point: str, cpu: int) -> tuple[Action, ...]:
        """Do something at every 25th point or so."""
        del point, cpu
        if self._noise.random() > 0.04:
            return ()
        act = self._noise.choice((Act.NMI, Act.INTERRUPT))
        return (Action(act, self._noise.randrange(self._cpus)),)


@pytest.mark.parametrize("name", NOISY)
def test_nmis_and_interrupts_anywhere(name: str) -> None:
    """Several at once, on siblings too, each touching a secret: no invariant breaks, and everybody gets done."""
    fields = NOISY[name]
    nmis = 0
    for seed in range(4):
        target = machine(seed=seed, timer_period=300, interleaver=Noise(seed, fields["cpus"]), **fields)
        threads_and_a_stranger(target)
        nmis += target.run().interrupts["nmi"]
    assert nmis > 50


def threads_and_a_stranger(target: Machine) -> None:
    """A thread on each CPU and another process; handlers that touch secrets of their own."""
    touched, by_nmi, by_interrupt = secret(target), secret(target), secret(target)
    access = target.kernel.access
    target.on_nmi(lambda _: access.load(by_nmi, 8))
    target.on_interrupt(lambda _, __: access.store(by_interrupt, b"touched"))

    def program(user: Program) -> None:
        user.touch(touched)
        address = user.mmap(8192)
        user.store(address, b"hello")
        assert user.load(address, 5) == b"hello"
        user.munmap(address, 8192)

    first = spawn(target, program, cpu=0)
    for cpu in range(1, target.config.cpus):
        spawn(target, program, mm=first.mm, cpu=cpu)
    spawn(target, program, comm="other")


def test_with_every_class() -> None:
    """The idle class is among those of a machine with hyperthreads, so that an idle CPU lets its sibling run."""
    assert AsiClass.IDLE in machine(cpus=2, smt=True).kernel.protocol.config.classes
