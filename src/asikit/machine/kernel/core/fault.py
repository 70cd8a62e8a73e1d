"""Page faults: the kernel's own, most of which ASI makes, and those of user code (arch/x86/mm/fault.c).

Every page fault in kernel mode runs the protocol's NESTED_PAGE_FAULT: it exits, then the tables that CR3 points at by
now are walked. If the access is possible the handler returns and the access is retried: that is all there is to a fault
that only ASI made. Otherwise it is a fault like any other: a user address to be mapped, an entry of the exception
table, or an oops.
"""

from __future__ import annotations

from signal import SIGBUS, SIGSEGV
from typing import TYPE_CHECKING, Final, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.kernel.core.errors import InvariantError, KernelOopsError
from asikit.machine.kernel.core.uaccess import UserFixup
from asikit.machine.mm import OutOfMemoryError
from asikit.machine.mm.fault import SegvError, SigbusError
from asikit.machine.x86 import Access, GeneralProtection, PageFault, PfError, walk
from asikit.protocol import Happening, Role, Space

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.machine.kernel.core.task import Task
    from asikit.protocol import Protocol as AsiProtocol

__all__ = ["PageFaults", "SegmentationFault"]

_VECTOR: Final = 14
_DOUBLE_FAULT_VECTOR: Final = 8
MAX_RETRIES: Final = 16
"""Faults of one access before something is wrong: I5 says that they end. Each but the first needs another CPU to take a
mapping away meanwhile, or an NMI to restore the restricted address space."""


class _Kernel(
    doors.Processors,
    doors.Points,
    doors.Watched,
    doors.Interruptible,
    doors.Described,
    doors.AddressSpaces,
    doors.Transitions,
    Protocol,
):
    """What is needed of the kernel here."""

    protocol: AsiProtocol
    out_of_memory: Callable[[Task], None]


class SegmentationFault(Exception):  # noqa: N818 - SIGSEGV, which a program may catch
    """User code accessed what it may not: SIGSEGV, or SIGBUS for a page that a mapped file does not have.

    :ivar address: Where.
    :ivar signal: The signal's number.
    """

    def __init__(self, address: int, signal: int = SIGSEGV) -> None:
        super().__init__(f"segmentation fault at {address:#x}" if signal == SIGSEGV else f"bus error at {address:#x}")
        self.address = address
        self.signal = int(signal)


class PageFaults:
    """The page-fault handler."""

    def __init__(self, kernel: _Kernel) -> None:
        self._kernel = kernel

    # In kernel mode.

    def kernel_fault(self, fault: PageFault, retries: int) -> None:
        """Handle a fault of kernel code; returns for the access to be retried.

        Raises UserFixup if the exception table has an entry, KernelOopsError (which ends the run) if not.
        """
        kernel = self._kernel
        cpu = kernel.cpu
        access = access_of(fault)
        asi_only = self._is_asi_only(cpu, fault.vaddr, access)
        if retries > MAX_RETRIES:
            where = f"{access.name.lower()} of {fault.vaddr:#x} faulted {retries} times, in {kernel.running_function()}"
            kernel.crash(InvariantError("I5", where, cpu=cpu.number, after="a retried access"))
        if asi_only and self._check_stack(cpu):
            return
        if asi_only:
            kernel.tally.faults["asi"] += 1
            kernel.touch(cpu, access, fault.vaddr, 1)
            for observer in kernel.observers:
                observer.asi_fault(cpu.number, access, fault.vaddr)
            self._asi_fault(cpu, fault, access)
        else:
            self._nested_fault(cpu, fault, access)

    def _asi_fault(self, cpu: CpuContext, fault: PageFault, access: Access) -> None:
        hw = cpu.hw
        enabled, ac = hw.interrupts_enabled, hw.ac
        hw.interrupts_enabled = hw.ac = False
        cpu.asi_only += 1
        accessible = self._enter(cpu, fault.vaddr, access, ac=ac)
        self._check_critical_section(cpu, fault.vaddr, access)
        cpu.asi_only -= 1
        self._kernel.asi.leave()
        hw.interrupts_enabled, hw.ac = enabled, ac
        if not accessible:
            what = f"{access.name.lower()} of {fault.vaddr:#x} is possible without ASI, but not after its exit"
            self._kernel.crash(InvariantError("I5", what, cpu=cpu.number, after=self._walk))

    def _nested_fault(self, cpu: CpuContext, fault: PageFault, access: Access) -> None:
        kernel, hw = self._kernel, cpu.hw
        enabled, ac = hw.interrupts_enabled, hw.ac
        hw.interrupts_enabled = hw.ac = False
        for observer in kernel.observers:
            observer.nested_entry(cpu.number, "exception", _VECTOR)
        accessible = self._enter(cpu, fault.vaddr, access, ac=ac)
        fixup: UserFixup | None = None
        if accessible:
            kernel.tally.faults["spurious"] += 1
        else:
            kernel.tally.faults["kernel"] += 1
            with kernel.function("exc_page_fault"):
                fixup = self._real_fault(cpu, fault, access, irqs=enabled)
        cpu = kernel.cpu  # it may have slept, and gone on elsewhere
        cpu.hw.interrupts_enabled = False
        for observer in kernel.observers:
            observer.nested_return(cpu.number)
        kernel.asi.leave()
        cpu.hw.interrupts_enabled, cpu.hw.ac = enabled, ac
        if fixup is not None:
            raise fixup

    def _enter(self, cpu: CpuContext, vaddr: int, access: Access, *, ac: bool) -> bool:
        """Run the protocol's part; returns whether the access is possible by now."""
        cpu.walks.append((vaddr, int(access) | ac << 2))
        self._kernel.asi.interrupt(Happening.NESTED_PAGE_FAULT)
        self.walk(cpu)  # with ASI off nothing has asked for it
        return bool(cpu.walks.pop())

    def walk(self, cpu: CpuContext) -> None:
        """Look whether the innermost fault's access is possible in the tables that CR3 points at, `pgtbl_walk`."""
        asked = cpu.walks[-1] if cpu.walks else True
        if isinstance(asked, tuple):
            vaddr, bits = asked
            cpu.walks[-1] = self._possible(cpu, cpu.hw.root, vaddr, Access(bits & 3), ac=bool(bits & 4))

    def _real_fault(self, cpu: CpuContext, fault: PageFault, access: Access, *, irqs: bool) -> UserFixup | None:
        """Map what is missing; returns the fixup if that is impossible. Runs with interrupts as the access had them."""
        kernel, task = self._kernel, cpu.task
        vaddr = fault.vaddr
        mm = task.mm
        if vaddr >= kernel.layout.user_end or not task.uaccess or cpu.hardirq or mm is None:
            why = f"kernel {access.name.lower()} of {vaddr:#x} in {kernel.running_function(handler=True)}: {fault}"
            kernel.crash(KernelOopsError(why))
        assert mm is not None  # crash does not return
        if irqs:
            kernel.irq_enable()
        try:
            mm.handle_mm_fault(vaddr, write=access is Access.WRITE, fetch=access is Access.FETCH)
        except (SegvError, SigbusError, OutOfMemoryError):
            return UserFixup(vaddr)
        return None

    def general_protection(self, fault: GeneralProtection, vaddr: int) -> None:
        """Handle #GP of a kernel access: an address that is not canonical. Raises UserFixup or KernelOopsError."""
        kernel = self._kernel
        if kernel.current.uaccess:
            raise UserFixup(vaddr)
        kernel.crash(KernelOopsError(f"kernel access of {vaddr:#x} in {kernel.running_function()}: {fault}"))

    # In user mode.

    def handle_user(self, vaddr: int, *, write: bool, fetch: bool) -> int:
        """Map what user code touched; returns the number of a signal if it may not, else 0."""
        kernel = self._kernel
        mm = kernel.current.mm
        if mm is None or vaddr >= kernel.layout.user_end:
            return SIGSEGV
        try:
            mm.handle_mm_fault(vaddr, write=write, fetch=fetch)
        except SegvError:
            return SIGSEGV
        except SigbusError:
            return SIGBUS
        except OutOfMemoryError:
            kernel.out_of_memory(kernel.current)
        return 0

    # What only ASI makes.

    def _is_asi_only(self, cpu: CpuContext, vaddr: int, access: Access) -> bool:
        """Whether the access would be possible in the unrestricted address space, which is not loaded."""
        if cpu.thread.cpu.cr3 == Space.UNRESTRICTED:
            return False
        return self._possible(cpu, cpu.loaded_mm.pgd << 12, vaddr, access, ac=cpu.hw.ac)

    def _possible(self, cpu: CpuContext, root: int, vaddr: int, access: Access, *, ac: bool) -> bool:
        try:
            walk(cpu.hw.memory, root, vaddr, access, cpu.hw.mode._replace(ac=ac), mark=False)
        except (PageFault, GeneralProtection):
            return False
        return True

    def _check_stack(self, cpu: CpuContext) -> bool:
        """Take a double fault if the processor cannot push the fault's frame. Returns whether it did.

        A kernel stack that the restricted address space lacks is one of the few things that ASI cannot do without; the
        handler exits explicitly, on a stack of its own.
        """
        top = cpu.task.stack[1]
        if not top or self._possible(cpu, cpu.hw.root, top - 8, Access.WRITE, ac=False):
            return False
        kernel, hw = self._kernel, cpu.hw
        enabled, ac = hw.interrupts_enabled, hw.ac
        hw.interrupts_enabled = hw.ac = False
        kernel.tally.faults["double"] += 1
        cpu.asi_only += 1
        kernel.asi.interrupt(Happening.DOUBLE_FAULT)
        kernel.asi.leave()
        cpu.asi_only -= 1
        hw.interrupts_enabled, hw.ac = enabled, ac
        return True

    @property
    def _walk(self) -> str:
        """The path of the micro-operation after which it is known whether an access is possible."""
        return ", ".join(self._kernel.protocol.having(Role.WALK, Happening.NESTED_PAGE_FAULT))

    def _check_critical_section(self, cpu: CpuContext, vaddr: int, access: Access) -> None:
        """The kernel's debug warning "ASI-sensitive data access from critical section": the return will enter again."""
        task = cpu.thread.task
        if not task.target or task.intr_nest_depth != 1 or self._kernel.invariants is None:
            return
        target = self._kernel.domains.pgd(cpu.loaded_mm, Space(task.target), user_half=False) << 12
        if not self._possible(cpu, target, vaddr, access, ac=True):
            what = f"{access.name.lower()} of sensitive {vaddr:#x} in a critical section"
            self._kernel.crash(InvariantError("I1", what, cpu=cpu.number, after=self._walk))


def access_of(fault: PageFault) -> Access:
    """Return what an access was that faulted."""
    if fault.error_code & PfError.I:
        return Access.FETCH
    return Access.WRITE if fault.error_code & PfError.W else Access.READ
