"""A virtual CPU: KVM_RUN, VM entries and exits, and what KVM emulates (arch/x86/kvm/x86.c, arch/x86/kvm/svm/svm.c).

The host is an AMD one as far as VM exits are concerned: exit codes and the VMCB are SVM's (AMD manual volume 2,
appendices B and C).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, ClassVar, Final

from asikit.machine.kernel.core.errors import ScenarioError
from asikit.machine.kernel.core.waiting import fatal_signal_pending
from asikit.machine.kernel.objects.kernel_object import KernelObject, Word
from asikit.machine.mm import (
    GFP_KERNEL_ACCOUNT,
    PAGE_SHIFT,
    PAGE_SIZE,
    Gfp,
    OutOfMemoryError,
    SegvError,
    SigbusError,
    kernel_function,
    page_parts,
)
from asikit.machine.uapi.abi import KvmExit
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.machine.user.guest import (
    Compute,
    Cpuid,
    GuestThread,
    Halt,
    Hypercall,
    Load,
    PortIn,
    PortOut,
    Store,
)
from asikit.machine.x86 import Access, PageFault, PfError, walk

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.kernel.kvm.nested_paging import NestedPageTables
    from asikit.machine.mm import Inode, KernelMemory
    from asikit.machine.user.guest import Answer, GuestProgram, GuestRequest

__all__ = ["RUN_BYTES", "Vcpu"]

RUN_BYTES: Final = 2 * PAGE_SIZE
"""What a VMM maps of a virtual CPU: `struct kvm_run`, and the page with the data of port I/O."""
_KVM_ENOSYS: Final = 1000
_VAPIC_POLL_IRQ: Final = 1
_REGISTER: Final = (1 << 64) - 1
_WORD: Final = 8


class SvmExit(IntEnum):
    """VMCB exit codes, of the kinds that this KVM intercepts."""

    INTR = 0x60
    NMI = 0x61
    CPUID = 0x72
    HLT = 0x78
    IOIO = 0x7B
    VMMCALL = 0x81
    NPF = 0x400


class VcpuStruct(KernelObject):
    """`struct kvm_vcpu` with its `arch`: RAX to RDX are the words that instructions' results are in."""

    cache_name = "kvm_vcpu"
    size = 9216
    rax = Word(0x180)
    rbx = Word(0x188)
    rcx = Word(0x190)
    rdx = Word(0x198)
    exits = Word(0x1200)
    """`stat.exits`."""


class Vmcb:
    """The page that the processor keeps a guest's state and the reason of a VM exit in (AMD manual volume 2, B)."""

    EXIT_CODE: ClassVar[int] = 0x70
    EXIT_INFO_1: ClassVar[int] = 0x78
    EXIT_INFO_2: ClassVar[int] = 0x80
    NESTED_CR3: ClassVar[int] = 0xB0
    RAX: ClassVar[int] = 0x5F8

    def __init__(self, kernel: Kernel, nested_root: int) -> None:
        self._kernel = kernel
        self._pfn = kernel.allocator.alloc_pages(GFP_KERNEL_ACCOUNT | Gfp.ZERO)
        self._paddr = self._pfn << PAGE_SHIFT
        self._vaddr = kernel.layout.virt(self._paddr)
        self.write(self.NESTED_CR3, nested_root << PAGE_SHIFT)

    def read(self, field: int) -> int:
        """Read a field, as the kernel does."""
        return self._kernel.access.load_u64(self._vaddr + field)

    def write(self, field: int, value: int) -> None:
        """Write a field, as the kernel does."""
        self._kernel.access.store_u64(self._vaddr + field, value & _REGISTER)

    def exit(self, code: SvmExit, info_1: int, info_2: int) -> None:
        """Store why a guest was left, as the processor does: by physical address."""
        for field, value in ((self.EXIT_CODE, code), (self.EXIT_INFO_1, info_1), (self.EXIT_INFO_2, info_2)):
            self._kernel.physical.write_u64(self._paddr + field, value)

    @property
    def nested_cr3(self) -> int:
        """The physical address of the nested page tables, as the processor reads it."""
        return self._kernel.physical.read_u64(self._paddr + self.NESTED_CR3)

    def free(self) -> None:
        """Give the page back."""
        self._kernel.allocator.free_pages(self._pfn)


class Vcpu:
    """A virtual CPU.

    :ivar run_area: What the VMM maps of it.
    :ivar access: How its code reaches memory.
    """

    def __init__(self, kernel: Kernel, paging: NestedPageTables, program: GuestProgram, name: str) -> None:
        self._kernel = kernel
        self._paging = paging
        self._name = name
        self.access: KernelMemory = kernel.access
        self._struct = VcpuStruct(kernel)
        try:
            self._vmcb = Vmcb(kernel, paging.root)
            self.run_area: Inode = kernel.userland.vfs.anonymous(f"anon_inode:{name}", RUN_BYTES)
            self._run_pages = [kernel.page_cache.filemap_get_folio(self.run_area, page) for page in range(2)]
        except OutOfMemoryError:
            self._struct.free()
            raise
        self._guest = GuestThread(program, name)
        self._mutex = kernel.mutex(f"mutex of {name}")
        self._request: GuestRequest | None = None
        self._answer: Answer = None
        self._pending: KvmExit | None = None

    # KVM_RUN.

    @kernel_function("kvm_arch_vcpu_ioctl_run", module="kvm")
    def run(self) -> int:
        """Run the guest until the VMM has to do something; what, is in the run area.

        Raises SyscallError EINTR, or EFAULT if the VMM's memory is not there.
        """
        with self._mutex:
            self._complete_userspace_io()
            while True:
                if fatal_signal_pending(self._kernel.current):
                    self._leave(KvmExit.INTR)
                    raise SyscallError(Errno.EINTR)
                if self._vcpu_enter_guest():
                    return 0
                self._kernel.sched.cond_resched()

    @kernel_function("vcpu_enter_guest.constprop.0", module="kvm")
    def _vcpu_enter_guest(self) -> bool:
        """Enter the guest and handle its exit; returns whether the VMM has to do something."""
        kernel = self._kernel
        if not self._svm_vcpu_run():
            return False
        self._struct.exits += 1
        kernel.interrupts.poll()
        kernel.irq_enable()
        return self._svm_handle_exit()

    @kernel_function("svm_vcpu_run", module="kvm_amd")
    def _svm_vcpu_run(self) -> bool:
        """Go into the guest and come back; returns False if the CPU had something better to do."""
        kernel = self._kernel
        self._vmcb.write(Vmcb.RAX, self._struct.rax)
        if not kernel.entry.vm_entry():
            return False
        code, info_1, info_2 = self._guest_mode()
        self._vmcb.exit(code, info_1, info_2)
        kernel.entry.vm_exit(int(code))
        self._struct.rax = self._vmcb.read(Vmcb.RAX)
        return True

    # What the processor does in guest mode.

    def _guest_mode(self) -> tuple[SvmExit, int, int]:
        """Execute the guest's instructions; returns why that ended: exit code, EXITINFO1 and EXITINFO2."""
        kernel = self._kernel
        while True:
            kernel.point("guest instruction")
            if kernel.cpu.hw.apic.nmi_pending:
                return SvmExit.NMI, 0, 0
            if kernel.interrupts.pending():
                return SvmExit.INTR, 0, 0
            if self._request is None:
                self._request, self._answer = self._guest.step(self._answer), None
            leaving = self._execute(self._request)
            if leaving is not None:
                return leaving
            self._request = None

    def _execute(  # noqa: PLR0911 - one for each kind of instruction
        self, request: GuestRequest
    ) -> tuple[SvmExit, int, int] | None:
        match request:
            case Load(address, size):
                return self._load(address, size)
            case Store(address, data):
                return self._store(address, data)
            case Cpuid():
                return SvmExit.CPUID, 0, 0
            case Hypercall():
                return SvmExit.VMMCALL, 0, 0
            case PortOut(port, _, size):
                return SvmExit.IOIO, port << 16 | size << 4, 0
            case PortIn(port, size):
                return SvmExit.IOIO, port << 16 | size << 4 | 1, 0
            case Halt():
                return SvmExit.HLT, 0, 0
            case Compute():
                return None

    def _load(self, address: int, size: int) -> tuple[SvmExit, int, int] | None:
        try:
            parts = [(self._translate(part, Access.READ), length) for part, length in page_parts(address, size)]
        except PageFault as fault:
            return SvmExit.NPF, fault.error_code, fault.vaddr
        value = b"".join(self._kernel.physical.read(paddr, length) for paddr, length in parts)
        hw = self._kernel.cpu.hw
        if hw.recorder is not None:
            for paddr, length in parts:
                hw.recorder.load(hw.thread, hw.owner, paddr, self._kernel.physical.read(paddr, length))
        self._record("load", value)
        self._answer = value
        return None

    def _store(self, address: int, data: bytes) -> tuple[SvmExit, int, int] | None:
        try:
            parts = [(self._translate(part, Access.WRITE), length) for part, length in page_parts(address, len(data))]
        except PageFault as fault:
            return SvmExit.NPF, fault.error_code, fault.vaddr
        done, hw = 0, self._kernel.cpu.hw
        for paddr, length in parts:
            self._kernel.physical.write(paddr, data[done : done + length])
            if hw.recorder is not None:
                hw.recorder.store(hw.thread, hw.owner, paddr, data[done : done + length])
            done += length
        return None

    def _translate(self, gpa: int, access: Access) -> int:
        """Walk the nested page tables, all of whose walks are user-mode accesses. Raises PageFault: a violation."""
        mode = self._kernel.cpu.hw.mode._replace(user=True, ac=False)
        return walk(self._kernel.physical, self._vmcb.nested_cr3, gpa, access, mode).paddr

    # Exits.

    @kernel_function("svm_handle_exit", module="kvm_amd")
    def _svm_handle_exit(self) -> bool:
        """Handle a VM exit; returns whether the VMM has to do something."""
        code = self._vmcb.read(Vmcb.EXIT_CODE)
        if code == SvmExit.NPF:
            return self._npf_interception()
        request = self._request
        match request:
            case _ if code in {SvmExit.INTR, SvmExit.NMI}:
                return False
            case Cpuid(leaf):
                self._kvm_emulate_cpuid(leaf)
            case Hypercall():
                self._kvm_emulate_hypercall(request)
            case PortIn() | PortOut():
                return self._kvm_fast_pio(request)
            case _:
                self._request = None
                return self._leave(KvmExit.HLT)
        return False

    @kernel_function("npf_interception", module="kvm_amd")
    def _npf_interception(self) -> bool:
        """The guest touched what the nested page tables lack: memory to be mapped, or a device's registers."""
        write = bool(self._vmcb.read(Vmcb.EXIT_INFO_1) & PfError.W)
        gpa = self._vmcb.read(Vmcb.EXIT_INFO_2)
        slot = self._paging.slot_of(gpa)
        if slot is None:
            return self._emulate_mmio(gpa)
        try:
            self._paging.map(slot, gpa, write=write)
        except (SegvError, SigbusError) as error:
            raise SyscallError(Errno.EFAULT) from error
        return False

    @kernel_function("x86_emulate_instruction", module="kvm")
    def _emulate_mmio(self, gpa: int) -> bool:
        """Let the VMM do an access outside of the guest's memory."""
        match self._request:
            case Load(address, size) if address == gpa and size <= _WORD:
                data, write = bytes(size), False
            case Store(address, stored) if address == gpa and len(stored) <= _WORD:
                data, write = stored, True
            case _:
                where = f"{self._name}: access at {gpa:#x}, where there is no memory"
                raise ScenarioError(f"{where}, of more than {_WORD} bytes or across a border")
        self._store_run(_HW, gpa.to_bytes(8, "little") + data.ljust(8, b"\0"))
        self._store_run(_HW + 16, len(data).to_bytes(4, "little") + bytes([write]))
        return self._leave(KvmExit.MMIO)

    @kernel_function("kvm_emulate_cpuid", module="kvm")
    def _kvm_emulate_cpuid(self, leaf: int) -> None:
        """CPUID: a maximum, a vendor, and otherwise nothing."""
        values = (0, *(int.from_bytes(part, "little") for part in _VENDOR)) if leaf == 0 else (0, 0, 0, 0)
        struct = self._struct
        struct.rax, struct.rbx, struct.rcx, struct.rdx = values
        self._finish_instruction((struct.rax, struct.rbx, struct.rcx, struct.rdx))

    @kernel_function("kvm_emulate_hypercall", module="kvm")
    def _kvm_emulate_hypercall(self, request: Hypercall) -> None:
        """VMMCALL: of itself this KVM has but the hypercall that does nothing."""
        result = 0 if request.number == _VAPIC_POLL_IRQ else -_KVM_ENOSYS
        if request.handler is not None:
            result = request.handler()
        self._struct.rax = result & _REGISTER
        rax = self._struct.rax
        self._finish_instruction(rax - (1 << 64) if rax >> 63 else rax)

    @kernel_function("kvm_fast_pio", module="kvm")
    def _kvm_fast_pio(self, request: PortIn | PortOut) -> bool:
        """Let the VMM do port I/O."""
        out = isinstance(request, PortOut)
        self._store_run(_HW, bytes([out, request.size]) + request.port.to_bytes(2, "little"))
        self._store_run(_HW + 4, (1).to_bytes(4, "little") + PAGE_SIZE.to_bytes(8, "little"))
        if isinstance(request, PortOut):
            self._store_run(PAGE_SIZE, request.value.to_bytes(request.size, "little"))
        return self._leave(KvmExit.IO)

    def _leave(self, reason: KvmExit) -> bool:
        """Go back to the VMM."""
        self._store_run(_EXIT_REASON, reason.to_bytes(4, "little"))
        self._pending = reason
        return True

    def _complete_userspace_io(self) -> None:
        """Take what the VMM has done to the end: the value that a device gave is the instruction's result."""
        pending, self._pending = self._pending, None
        match self._request:
            case PortIn(_, size) if pending is KvmExit.IO:
                self._struct.rax = int.from_bytes(self._load_run(PAGE_SIZE, size), "little")
                self._finish_instruction(self._struct.rax)
            case Load(_, size) if pending is KvmExit.MMIO:
                self._finish_instruction(self._load_run(_HW + 8, size))
            case PortOut() | Store() if pending in {KvmExit.IO, KvmExit.MMIO}:
                self._finish_instruction(None)

    def _finish_instruction(self, answer: Answer) -> None:
        """The instruction is done: the guest goes on after it."""
        self._request, self._answer = None, answer
        if answer is not None:
            self._record("result", repr(answer).encode())

    # The run area.

    def _store_run(self, offset: int, data: bytes) -> None:
        page, place = divmod(offset, PAGE_SIZE)
        self.access.store(self._kernel.layout.virt(self._run_pages[page] << PAGE_SHIFT) + place, data)

    def _load_run(self, offset: int, size: int) -> bytes:
        page, place = divmod(offset, PAGE_SIZE)
        return self.access.load(self._kernel.layout.virt(self._run_pages[page] << PAGE_SHIFT) + place, size)

    def _record(self, what: str, value: bytes) -> None:
        self._kernel.report_result(self._name, what.encode() + b" " + value)

    def free(self) -> None:
        """Free everything of it."""
        self._vmcb.free()
        self._struct.free()
        self.run_area.put()


_EXIT_REASON: Final = 8
_HW: Final = 32
_VENDOR: Final = (b"Auth", b"cAMD", b"enti")
"""CPUID leaf 0: EBX, ECX and EDX."""
