"""Interrupts and NMIs: delivery on top of what a CPU is doing, and their handlers.

An interrupt from user mode is an entry (`asikit.machine.kernel.core.entry`); one that comes in kernel mode is a nested
call on the current greenlet's stack. Vectors are those of arch/x86/include/asm/irq_vectors.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.kernel.core.report import RoundTrip
from asikit.protocol import Happening

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.smp import Smp

__all__ = [
    "ASI_STUN_VECTOR",
    "CALL_FUNCTION_VECTOR",
    "DEVICE_VECTOR",
    "LOCAL_TIMER_VECTOR",
    "NMI_VECTOR",
    "RESCHEDULE_VECTOR",
    "VECTOR_NAMES",
    "Interrupts",
]

NMI_VECTOR: Final = 2
DEVICE_VECTOR: Final = 0x24
"""What a scenario's device raises unless it says otherwise."""
LOCAL_TIMER_VECTOR: Final = 0xEC
ASI_STUN_VECTOR: Final = 0xF5
"""Free in Linux 6.1; the patches do not say which the stun would have."""
CALL_FUNCTION_VECTOR: Final = 0xFC
RESCHEDULE_VECTOR: Final = 0xFD

_NAMES: Final = {
    LOCAL_TIMER_VECTOR: ("timer", "sysvec_apic_timer_interrupt"),
    ASI_STUN_VECTOR: ("stun", "sysvec_asi_stun"),
    CALL_FUNCTION_VECTOR: ("call_function", "sysvec_call_function"),
    RESCHEDULE_VECTOR: ("reschedule", "sysvec_reschedule_ipi"),
}
VECTOR_NAMES: Final = {vector: name for vector, (name, _) in _NAMES.items()} | {DEVICE_VECTOR: "device"}
"""What each vector is called in reports."""
VM_EXIT_INTERRUPT: Final = 0x60
"""VMEXIT_INTR (AMD manual volume 2, appendix C), as `asikit.machine.kernel.kvm.vcpu.SvmExit` has it."""


class _Kernel(doors.Processors, doors.Watched, doors.Transitions, doors.Scheduled, Protocol):
    """What is needed of the kernel here."""

    smp: Smp


class Interrupts:
    """All CPUs' interrupts.

    :ivar on_nmi: Body of the NMI handler: what a scenario lets an NMI do. Takes the CPU's number.
    :ivar on_interrupt: Body of device interrupts' handlers. Takes the CPU's number and the vector.
    """

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel
        self.on_nmi: Callable[[int], object] | None = None
        self.on_interrupt: Callable[[int, int], object] | None = None

    # Sending.

    def post(self, cpu: CpuContext, vector: int) -> None:
        """Raise an interrupt at a CPU."""
        cpu.hw.apic.request(vector)
        cpu.due = 0

    def post_nmi(self, cpu: CpuContext) -> None:
        """Raise an NMI at a CPU."""
        cpu.hw.apic.request_nmi()
        cpu.due = 0

    def post_stun(self, cpu: CpuContext) -> None:
        """Interrupt untrusted code on a sibling."""
        self.post(cpu, ASI_STUN_VECTOR)

    def pending(self, cpu: CpuContext | None = None) -> bool:
        """Return whether something waits to be delivered to a CPU, the running one by default."""
        apic = (cpu or self._kernel.cpu).hw.apic
        return apic.pending is not None or apic.nmi_pending

    def deliverable(self, cpu: CpuContext) -> bool:
        """Return whether a CPU would take an interrupt or NMI at its next point."""
        hw = cpu.hw
        return hw.apic.nmi_pending or (hw.interrupts_enabled and hw.apic.pending is not None)

    # Delivery.

    def deliver(self, cpu: CpuContext) -> None:
        """Deliver what is pending and may be, at a point that the running CPU passes; a guest's exit is KVM's part."""
        apic, hw = cpu.hw.apic, cpu.hw
        if cpu.in_guest:
            return
        while True:
            if apic.nmi_pending:
                self._nmi(cpu)
            elif hw.interrupts_enabled and apic.pending is not None:
                self._interrupt(cpu, apic.acknowledge())
                # The handler's task may have been preempted on the way back to user mode, and go on elsewhere.
                if self._kernel.cpu is not cpu:
                    return
            else:
                return

    def poll(self) -> None:
        """Deliver what is pending on the running CPU, interrupts enabled for a moment: `local_irq_enable()`."""
        hw = self._kernel.cpu.hw
        enabled, hw.interrupts_enabled = hw.interrupts_enabled, True
        self.deliver(self._kernel.cpu)
        self._kernel.cpu.hw.interrupts_enabled = enabled

    def deliver_while_waiting(self, cpu: CpuContext, *, resuming: bool) -> bool:
        """Deliver an NMI or, before untrusted code, an interrupt to a CPU that spins. Returns whether it did.

        Before untrusted code the interrupt came, for everybody but ASI, from the untrusted code that would run by now.
        """
        apic = cpu.hw.apic
        if apic.nmi_pending:
            self._nmi(cpu)
            return True
        if not resuming or apic.pending is None:
            return False
        vector = apic.acknowledge()
        if vector == ASI_STUN_VECTOR:
            self._nested(cpu, "interrupt", vector, Happening.NESTED_INTERRUPT, report=False)
            return True
        self._interrupt_while_stunned(cpu, vector)
        return True

    def _interrupt_while_stunned(self, cpu: CpuContext, vector: int) -> None:
        kernel = self._kernel
        guest = cpu.resuming_guest
        cpu.returned = False
        cpu.touched.clear()
        for observer in kernel.observers:
            if guest:
                observer.vm_exit(cpu.number, VM_EXIT_INTERRUPT)
            else:
                observer.entry(cpu.number, "interrupt", vector)
        cpu.trip = RoundTrip("vm_exit", VM_EXIT_INTERRUPT) if guest else RoundTrip("interrupt", vector)
        self._nested(cpu, "interrupt", vector, Happening.NESTED_INTERRUPT, report=guest)
        if not cpu.need_resched:
            kernel.entry.about_to_resume(cpu)

    def _nmi(self, cpu: CpuContext) -> None:
        cpu.hw.apic.take_nmi()
        if cpu.hw.cpl:
            self._kernel.entry.interrupt("nmi", NMI_VECTOR, Happening.NMI_ENTRY)
        else:
            cpu.touched.clear()
            self._nested(cpu, "nmi", NMI_VECTOR, Happening.NESTED_NMI)
            cpu.touched.clear()

    def _interrupt(self, cpu: CpuContext, vector: int) -> None:
        if cpu.hw.cpl:
            self._kernel.entry.interrupt(
                "interrupt", vector, Happening.INTERRUPT_ENTRY, report=vector != ASI_STUN_VECTOR
            )
        else:
            self._nested(cpu, "interrupt", vector, Happening.NESTED_INTERRUPT, report=vector != ASI_STUN_VECTOR)

    def _nested(self, cpu: CpuContext, kind: str, vector: int, happening: Happening, *, report: bool = True) -> None:
        """Run a handler on top of kernel code."""
        kernel, hw = self._kernel, cpu.hw
        enabled, ac = hw.interrupts_enabled, hw.ac
        hw.interrupts_enabled = hw.ac = False
        if report:
            for observer in kernel.observers:
                observer.nested_entry(cpu.number, kind, vector)
        else:
            cpu.asi_only += 1
        cpu.hardirq += 1
        kernel.asi.interrupt(happening)
        self.handle(cpu, kind, vector)
        cpu.hardirq -= 1
        if report:
            for observer in kernel.observers:
                observer.nested_return(cpu.number)
        kernel.asi.leave()
        if not report:
            cpu.asi_only -= 1
        hw.interrupts_enabled, hw.ac = enabled, ac

    def handle(self, cpu: CpuContext, kind: str, vector: int) -> None:
        """Run the body of a handler, then EOI or, for an NMI, its IRET."""
        kernel = self._kernel
        if kind == "nmi":
            kernel.tally.interrupts["nmi"] += 1
            with kernel.function("exc_nmi"):
                if self.on_nmi is not None:
                    self.on_nmi(cpu.number)
            cpu.hw.apic.iret()
            return
        name, symbol = _NAMES.get(vector, ("device", "common_interrupt"))
        kernel.tally.interrupts[name] += 1
        with kernel.function(symbol):
            if vector == LOCAL_TIMER_VECTOR:
                kernel.sched.tick(cpu)
            elif vector == RESCHEDULE_VECTOR:
                cpu.need_resched = True
            elif vector == CALL_FUNCTION_VECTOR:
                kernel.smp.run_calls(cpu)
            elif vector != ASI_STUN_VECTOR and self.on_interrupt is not None:
                self.on_interrupt(cpu.number, vector)
        cpu.hw.apic.eoi()
