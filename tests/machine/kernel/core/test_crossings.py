"""Entries and returns as observers and reports have them: round trips, guests, interrupts, double faults."""

from __future__ import annotations

from typing import Any

import pytest

from asikit.machine.kernel import Machine, Observer
from asikit.protocol import AsiClass, Happening, ProtocolConfig, Space
from tests.machine.kernel.core.running import Program, Recorder, machine, secret, spawn


class Guests(Recorder):
    """Notes crossings of guests too."""

    def vm_entry(self, cpu: int) -> None:
        """Keep it."""
        self.events.append((cpu, "vm entry"))

    def vm_exit(self, cpu: int, code: int) -> None:
        """Keep it."""
        self.events.append((cpu, "vm exit", code))


class Touches(Observer):
    """Notes touches of one page."""

    def __init__(self, address: int) -> None:
        self.page = address >> 12
        self.seen: list[tuple[str, int]] = []

    def touch(self, cpu: int, access: Any, vaddr: int, paddr: int) -> None:  # noqa: ANN401 - Access
        """Keep it, if it is the page's."""
        del cpu
        if vaddr >> 12 == self.page:
            self.seen.append((access.name, paddr))


def test_events_of_a_round_trip() -> None:
    """Entry and return, by SYSRET after a system call and by IRET after a fault; nested ones inside."""
    target = machine(timer_period=10_000)
    recorder = Recorder()
    target.observe(recorder)

    def program(user: Program) -> None:
        address = user.mmap(4096)
        user.store(address, b"x")

    spawn(target, program)
    target.run()
    assert [event for event in recorder.events if event[1] not in {"mm", "task"}] == [
        (0, "return", False),
        (0, "entry", "syscall", 9),
        (0, "return", False),
        (0, "entry", "exception", 14),
        (0, "return", True),
        (0, "entry", "syscall", 60),
    ]


def test_a_touch_is_the_first_of_its_kind() -> None:
    """Once for each kind of access and crossing; again after an NMI, with the physical address behind it."""
    target = machine()
    address = secret(target)
    touches = Touches(address)
    target.observe(touches)
    kernel = target.kernel

    def program(user: Program) -> None:
        def handler() -> int:
            kernel.access.load(address, 8)
            kernel.access.load(address + 100, 8)
            kernel.access.store(address, b"again")
            target.inject_nmi()
            kernel.point("here")
            kernel.access.load(address, 8)
            return 0

        user.call(handler)
        user.touch(address)

    spawn(target, program)
    target.run()
    paddr = kernel.layout.phys(address)
    assert touches.seen == [("READ", paddr), ("WRITE", paddr), ("READ", paddr), ("READ", paddr)]


@pytest.mark.parametrize("smt", [False, True])
def test_guests(smt: bool) -> None:
    """Into a guest and back: the restricted space of KVM, and round trips of its own."""
    target = machine(cpus=2 if smt else 1, smt=smt)
    guests = Guests()
    target.observe(guests)
    address = secret(target)
    kernel = target.kernel
    spaces: list[Space] = []

    def program(user: Program) -> None:
        def run_guest(touch: bool) -> int:
            kernel.domains.init(kernel.contexts.of(user.mm), AsiClass.KVM)
            for _ in range(3):
                while not kernel.entry.vm_entry():
                    kernel.sched.cond_resched()
                spaces.append(Space(kernel.cpu.thread.cpu.cr3))
                assert kernel.cpu.hw.cr3 == kernel.asi.cr3(kernel.cpu, Space.KVM)
                kernel.entry.vm_exit(12)
                kernel.irq_enable()
                if touch:
                    kernel.access.load(address, 8)
            return 0

        user.call(lambda: run_guest(touch=False), 16)
        user.call(lambda: run_guest(touch=True), 16)

    spawn(target, program, pinned=True)
    report = target.run()
    assert spaces == [Space.KVM] * 6
    trips = report.by_entry["vm_exit", 12]
    # The last exit of each system call ends with a return to user mode: a round trip too.
    assert trips == (6, 3, 3)
    assert report.by_entry["syscall", 16][0] == 2
    assert guests.events.count((0, "vm entry")) == guests.events.count((0, "vm exit", 12)) == 6


def test_an_interrupt_for_a_guest_waits_for_its_exit() -> None:
    """In a guest nothing is delivered at a point; whoever runs it sees what is pending, exits, and takes it then."""
    target = machine()
    kernel = target.kernel
    got: list[str] = []
    target.on_nmi(lambda _: got.append("nmi"))
    target.on_interrupt(lambda _, __: got.append("interrupt"))

    def program(user: Program) -> None:
        def handler() -> int:
            kernel.domains.init(kernel.contexts.of(user.mm), AsiClass.KVM)
            assert kernel.entry.vm_entry()
            target.inject_nmi()
            target.inject_interrupt()
            kernel.point("guest")
            assert got == []
            assert kernel.interrupts.pending()
            kernel.entry.vm_exit(1)
            kernel.interrupts.poll()
            kernel.irq_enable()
            assert got == ["nmi", "interrupt"]
            return 0

        user.call(handler)

    spawn(target, program)
    target.run()


def test_exits_are_counted_with_their_round_trip() -> None:
    """By entry: how many trips, how many exits in them, how many without; the sums are the totals."""
    target = machine(timer_period=100)
    address = secret(target)

    def program(user: Program) -> None:
        for _ in range(4):
            user.getpid()
            user.touch(address)
        user.store(user.mmap(4096), b"x")
        user.compute(200)

    spawn(target, program)
    report = target.run()
    assert report.by_entry["syscall", 0] == (4, 4, 0)
    assert report.by_entry["syscall", 39] == (4, 0, 4)
    assert report.by_entry["exception", 14] == (1, 1, 0)
    assert report.by_entry["interrupt", 0xEC][0] >= 2
    assert sum(trips for trips, _, _ in report.by_entry.values()) == report.round_trips
    assert sum(without for _, _, without in report.by_entry.values()) == report.round_trips_without_exit
    assert sum(report.exits_by_reason.values()) == report.exits
    assert report.flushes["ibpb"] == report.exits


def test_domains_that_are_not_protected_from() -> None:
    """With one class only, round trips of the other are counted apart, as a replay does."""
    target = machine(protocol=ProtocolConfig(classes=frozenset({AsiClass.KVM})))
    spawn(target, lambda user: user.getpid())
    report = target.run()
    assert (report.round_trips, report.unprotected_round_trips, report.exits) == (0, 1, 0)


def test_a_double_fault_exits_explicitly() -> None:
    """#DF from kernel mode, whatever made it: its transition exits before its handler runs, and its return goes on."""
    target = machine()
    kernel = target.kernel

    def program(user: Program) -> None:
        def handler() -> int:
            assert kernel.cpu.thread.cpu.cr3 == Space.USERSPACE
            kernel.asi.interrupt(Happening.DOUBLE_FAULT)
            assert kernel.cpu.thread.cpu.cr3 == Space.UNRESTRICTED
            kernel.asi.leave()
            return 0

        user.getpid()
        user.call(handler)

    spawn(target, program)
    assert target.run().exits_by_reason["misc"] == 1


def test_time_goes_by_and_timers_tick() -> None:
    """A timer interrupt for each period of logical time, on each CPU that does something."""
    target = Machine(timer_period=100)
    spawn(target, lambda user: user.compute(1000))
    before = target.report().clock[0]
    report = target.run()
    assert report.interrupts["timer"] == (report.clock[0] - before) // 100
