"""Interrupts, NMIs and the timer."""

from __future__ import annotations

import pytest

from asikit.machine.x86 import ApicBus, LocalApic, PhysicalMemory, Processor, load_cpu


def pair() -> tuple[LocalApic, LocalApic]:
    """Two connected APICs, 0 and 1."""
    bus = ApicBus()
    return LocalApic(0, bus), LocalApic(1, bus)


def test_ipis() -> None:
    """An IPI waits at its target, once however often it is sent; one to oneself too."""
    first, second = pair()
    first.send_ipi(1, 0xF0)
    first.send_ipi(1, 0xF0)
    first.send_ipi(0, 0x30)
    assert (first.pending, second.pending) == (0x30, 0xF0)
    assert second.acknowledge() == 0xF0
    assert (second.pending, second.requested, second.in_service) == (None, frozenset(), (0xF0,))
    second.eoi()
    second.eoi()
    assert second.in_service == ()
    with pytest.raises(ValueError, match=r"^no interrupt is pending on CPU 1$"):
        second.acknowledge()


def test_priorities() -> None:
    """The highest vector first; in a handler only a higher class (bits 7:4); the rest after its EOI."""
    apic, _ = pair()
    for vector in (0x31, 0x52, 0x50):
        apic.request(vector)
    assert apic.acknowledge() == 0x52
    apic.request(0x5F)
    assert apic.pending is None
    apic.request(0x60)
    assert apic.acknowledge() == 0x60
    assert apic.in_service == (0x52, 0x60)
    apic.eoi()
    assert apic.pending is None
    apic.eoi()
    taken = []
    for _ in range(3):
        taken.append(apic.acknowledge())
        apic.eoi()
    assert taken == [0x5F, 0x50, 0x31]


def test_nmis() -> None:
    """One is remembered while another is handled, not two; any IRET unblocks."""
    first, second = pair()
    first.send_nmi(1)
    first.send_nmi(1)
    assert (first.nmi_pending, second.nmi_pending) == (False, True)
    second.take_nmi()
    with pytest.raises(ValueError, match=r"^no NMI is pending on CPU 1$"):
        second.take_nmi()
    second.request_nmi()
    second.request_nmi()
    while_blocked = second.nmi_pending
    second.iret()
    unblocked = second.nmi_pending
    second.take_nmi()
    second.iret()
    assert (while_blocked, unblocked, second.nmi_pending) == (False, True, False)


def test_periodic_timer() -> None:
    """An interrupt every period of the logical clock, in step with the start, however coarsely time passes."""
    apic, _ = pair()
    apic.start_timer(10, 0xEC)
    fired = [apic.advance() for _ in range(30)]
    assert [number + 1 for number, did in enumerate(fired) if did] == [10, 20, 30]
    assert apic.timer_due == 40
    assert apic.advance(35)
    assert (apic.now, apic.timer_due, apic.requested) == (65, 70, frozenset({0xEC}))
    apic.stop_timer()
    expired = apic.advance(1000)
    assert (expired, apic.requested) == (False, frozenset({0xEC}))


def test_one_shot_timer() -> None:
    """Once and no more."""
    apic, _ = pair()
    apic.start_timer(3, 0xEC, periodic=False)
    assert [apic.advance(2), apic.advance(2), apic.advance(100)] == [False, True, False]
    assert apic.timer_due is None


def test_refusals() -> None:
    """Vectors, CPUs and periods that there are not."""
    apic, _ = pair()
    for vector in (15, 256):
        with pytest.raises(ValueError, match=f"^an interrupt's vector is 16 to 255, not {vector}$"):
            apic.request(vector)
    with pytest.raises(ValueError, match=r"^there is no CPU 2 \(there are 0, 1\)$"):
        apic.send_ipi(2, 0xF0)
    with pytest.raises(ValueError, match=r"^a timer's period is at least 1, not 0$"):
        apic.start_timer(0, 0xEC)
    with pytest.raises(ValueError, match=r"^there are two CPUs with number 7$"):
        bus = ApicBus()
        LocalApic(7, bus)
        LocalApic(7, bus)


def test_in_a_processor() -> None:
    """CPUs of different cores reach each other by number."""
    processor = Processor(load_cpu("generic"), PhysicalMemory(4096), cores=2, threads=2)
    assert [(cpu.number, cpu.core.number, cpu.thread) for cpu in processor.cpus] == [
        (0, 0, 0),
        (1, 0, 1),
        (2, 1, 0),
        (3, 1, 1),
    ]
    processor.cpus[0].apic.send_ipi(3, 0x80)
    assert [cpu.apic.pending for cpu in processor.cpus] == [None, None, None, 0x80]
