"""Entry into the kernel and return to user mode (arch/x86/entry, kernel/entry/common.c), and what user code does.

A user program is Python code; what it does to the machine are these methods: an access is an instruction at CPL 3, with
faults handled as the hardware and the kernel would; `syscall` is the SYSCALL instruction and all that comes of it.
"""

from __future__ import annotations

from signal import SIGSEGV
from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.kernel.core.fault import SegmentationFault
from asikit.machine.kernel.core.report import RoundTrip
from asikit.machine.x86 import GeneralProtection, PageFault, PfError
from asikit.protocol import Happening

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.task import Task

__all__ = ["Crossings"]

_PT_REGS = bytes(168)
"""What entry code pushes: `struct pt_regs` (arch/x86/include/asm/ptrace.h)."""
_PAGE_FAULT_VECTOR = 14
_GENERAL_PROTECTION_VECTOR = 13


class _Kernel(
    doors.Processors,
    doors.Points,
    doors.Watched,
    doors.Attacked,
    doors.Interruptible,
    doors.Memory,
    doors.Transitions,
    doors.Scheduled,
    Protocol,
):
    """What is needed of the kernel here."""

    exit_work: Callable[[Task], bool] | None


class Crossings:
    """Crossings between user mode, guests and the kernel, of the running CPU's current task."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel

    # What user code does.

    def user_load(self, vaddr: int, size: int) -> bytes:
        """Read user memory as user code does. Raises SegmentationFault in user mode."""
        kernel = self._kernel
        kernel.point("user load")
        while True:
            try:
                return kernel.cpu.hw.load(vaddr, size)
            except (PageFault, GeneralProtection) as fault:
                self._user_fault(fault, vaddr)

    def user_store(self, vaddr: int, data: bytes) -> None:
        """Write user memory as user code does. Raises SegmentationFault in user mode."""
        kernel = self._kernel
        kernel.point("user store")
        while True:
            try:
                kernel.cpu.hw.store(vaddr, data)
            except (PageFault, GeneralProtection) as fault:
                self._user_fault(fault, vaddr)
            else:
                return

    def user_exchange(self, vaddr: int, data: bytes) -> bytes:
        """Write user memory and return what was there, as one step: XCHG. Raises SegmentationFault in user mode."""
        kernel = self._kernel
        kernel.point("user store")
        while True:
            hw = kernel.cpu.hw
            try:
                old = hw.load(vaddr, len(data))
                hw.store(vaddr, data)
            except (PageFault, GeneralProtection) as fault:
                self._user_fault(fault, vaddr)
            else:
                return old

    def user_fetch(self, vaddr: int) -> None:
        """Execute an instruction at an address. Raises SegmentationFault in user mode."""
        kernel = self._kernel
        kernel.point("user fetch")
        while True:
            try:
                kernel.cpu.hw.fetch(vaddr)
            except (PageFault, GeneralProtection) as fault:
                self._user_fault(fault, vaddr)
            else:
                return

    def user_compute(self, instructions: int) -> None:
        """Execute instructions that access nothing."""
        for _ in range(instructions):
            self._kernel.point("user instruction")

    def syscall(self, number: int, name: str, handler: Callable[[], int], arguments: Sequence[object] = ()) -> int:
        """Execute SYSCALL: enter, run `handler` in kernel mode, return to user mode. Returns what the handler does."""
        kernel = self._kernel
        kernel.point("syscall")
        self._enter("syscall", number, Happening.SYSCALL_ENTRY)
        kernel.irq_enable()
        with kernel.function("do_syscall_64"):
            result = handler()
        for observer in kernel.observers:
            observer.syscall(kernel.cpu.number, number, name, arguments, result)
        self._exit(by_iret=False)
        return result

    def return_from_fork(self) -> None:
        """Go to user mode for the first time: `ret_from_fork()`."""
        self._exit(by_iret=False)

    # Interrupts and exceptions.

    def interrupt(self, kind: str, number: int, happening: Happening, *, report: bool = True) -> None:
        """Take an interrupt or NMI from user mode. ASI's own are not reported, unless something else comes of them."""
        kernel, cpu = self._kernel, self._kernel.cpu
        self._enter(kind, number, happening, report=report)
        cpu.hardirq += 1
        kernel.interrupts.handle(cpu, kind, number)
        cpu.hardirq -= 1
        if not report and cpu.need_resched:
            self._report_entry(cpu, kind, number)
            report = True
        self._exit(by_iret=True, report=report)

    def _user_fault(self, fault: PageFault | GeneralProtection, vaddr: int) -> None:
        """Handle a fault of user code; raises SegmentationFault, back in user mode, if there is nothing to map."""
        kernel = self._kernel
        if isinstance(fault, PageFault):
            vaddr = fault.vaddr
            kernel.tally.faults["user"] += 1
            self._enter("exception", _PAGE_FAULT_VECTOR, Happening.EXCEPTION_ENTRY)
            kernel.irq_enable()
            with kernel.function("exc_page_fault"):
                signal = kernel.faults.handle_user(
                    vaddr, write=bool(fault.error_code & PfError.W), fetch=bool(fault.error_code & PfError.I)
                )
        else:
            self._enter("exception", _GENERAL_PROTECTION_VECTOR, Happening.EXCEPTION_ENTRY)
            signal = SIGSEGV
        self._exit(by_iret=True)
        if signal:
            raise SegmentationFault(vaddr, signal)

    # Crossings.

    def _enter(self, kind: str, number: int, happening: Happening, *, report: bool = True) -> None:
        kernel, cpu = self._kernel, self._kernel.cpu
        hw = cpu.hw
        hw.cpl = 0
        hw.interrupts_enabled = hw.ac = False
        if report:
            self._report_entry(cpu, kind, number)
        else:
            cpu.asi_only += 1
        if kernel.speculation is not None:
            kernel.speculation.entered()
        kernel.asi.run(happening)
        top = cpu.task.stack[1]
        if top:
            kernel.access.store(top - len(_PT_REGS), _PT_REGS)
        if not report:
            cpu.asi_only -= 1

    def _report_entry(self, cpu: CpuContext, kind: str, number: int) -> None:
        cpu.touched.clear()
        cpu.trip = RoundTrip(kind, number)
        for observer in self._kernel.observers:
            observer.entry(cpu.number, kind, number)

    def _exit(self, *, by_iret: bool, report: bool = True) -> None:
        """Go back to user mode: `exit_to_user_mode_loop()` until nothing is left to do, then the protocol's return."""
        kernel = self._kernel
        while True:
            kernel.cpu.hw.interrupts_enabled = False
            self._exit_work()
            cpu = kernel.cpu
            cpu.returned = not report
            cpu.by_iret = by_iret
            cpu.resuming_guest = False
            if kernel.asi.run(Happening.RETURN_USER):
                break
            if not report:  # the stun ends in something that happens without ASI too
                self._report_entry(cpu, "interrupt", 0)
                report = True
        self.about_to_resume(cpu)
        cpu.hw.cpl = 3
        cpu.hw.interrupts_enabled = True
        cpu.due = 0

    def _exit_work(self) -> None:
        kernel = self._kernel
        while True:
            task = kernel.current
            if kernel.cpu.need_resched:
                kernel.irq_enable()
                kernel.sched.schedule()
                kernel.cpu.hw.interrupts_enabled = False
            elif kernel.exit_work is not None and kernel.exit_work(task):
                kernel.cpu.hw.interrupts_enabled = False
            else:
                return

    def about_to_resume(self, cpu: CpuContext) -> None:
        """Say that untrusted code goes on, once for each return, though it may still have to wait for its sibling."""
        if cpu.returned:
            return
        cpu.returned = True
        kernel = self._kernel
        if cpu.trip is not None:
            kernel.tally.close(cpu.trip)
            cpu.trip = None
        for observer in kernel.observers:
            if cpu.resuming_guest:
                observer.vm_entry(cpu.number)
            else:
                observer.return_user(cpu.number, by_iret=cpu.by_iret)

    # Guests.

    def vm_entry(self) -> bool:
        """Go into a guest. Returns False if the CPU had to give up waiting for its sibling, to reschedule."""
        kernel = self._kernel
        cpu = kernel.cpu
        cpu.hw.interrupts_enabled = False
        cpu.returned = False
        cpu.resuming_guest = True
        cpu.host_cr3 = cpu.hw.cr3
        if not kernel.asi.run(Happening.VM_ENTRY):
            cpu.resuming_guest = False
            cpu.hw.interrupts_enabled = True
            return False
        self.about_to_resume(cpu)
        cpu.in_guest = True
        cpu.due = 0
        return True

    def vm_exit(self, code: int) -> None:
        """Come back from a guest, because of `code`, the hardware's exit reason. Interrupts are off afterwards."""
        kernel = self._kernel
        cpu = kernel.cpu
        cpu.in_guest = cpu.resuming_guest = False
        cpu.touched.clear()
        cpu.trip = RoundTrip("vm_exit", code)
        if cpu.hw.cr3 != cpu.host_cr3:
            cpu.hw.write_cr3(cpu.host_cr3)  # the VM exit loads HOST_CR3
        for observer in kernel.observers:
            observer.vm_exit(cpu.number, code)
        kernel.asi.run(Happening.VM_EXIT)
