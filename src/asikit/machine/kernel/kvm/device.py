"""KVM's files: /dev/kvm, virtual machines, virtual CPUs (virt/kvm/kvm_main.c)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.core.errors import ScenarioError
from asikit.machine.kernel.kvm.nested_paging import Memslot, NestedPageTables
from asikit.machine.kernel.kvm.vcpu import Vcpu
from asikit.machine.kernel.objects.files import File
from asikit.machine.kernel.objects.kernel_object import KernelObject, Word
from asikit.machine.kernel.objects.process import mm_of, thread_of
from asikit.machine.mm import PAGE_SIZE, OutOfMemoryError, kernel_function
from asikit.machine.uapi.abi import KvmIoctl, OpenFlag
from asikit.machine.uapi.errno import Errno, SyscallError
from asikit.protocol import AsiClass

if TYPE_CHECKING:
    from asikit.machine.kernel.core.kernel import Kernel
    from asikit.machine.mm import Inode, KernelMemory, MmStruct

__all__ = ["KvmDevice", "KvmVcpuFile", "KvmVmFile"]

_API_VERSION: Final = 12
_REGION_BYTES: Final = 32


class KvmStruct(KernelObject):
    """`struct kvm`."""

    cache_name = "kmalloc-4k"
    size = 4096
    users_count = Word(0x9F8)
    """The virtual machine's file and those of its CPUs."""
    nr_memslot_pages = Word(0x28)


class Kvm:
    """A virtual machine: guest memory, its nested page tables, and how many virtual CPUs there are.

    Making one makes the VMM's KVM domain, which lives as long as the VMM's mm. Raises OutOfMemoryError.
    """

    def __init__(self, kernel: Kernel, mm: MmStruct, name: str) -> None:
        self.kernel = kernel
        self.access: KernelMemory = kernel.access
        self.mm = mm
        self.name = name
        context = kernel.contexts.of(mm)
        if AsiClass.KVM in kernel.protocol.config.classes:
            kernel.domains.init(context, AsiClass.KVM)
        self.struct = KvmStruct(kernel)
        try:
            self.paging = NestedPageTables(kernel, mm)
        except OutOfMemoryError:
            self.struct.free()
            raise
        self._notifiers = context.notifiers
        self._notifiers.append(self.paging.invalidate)
        self.vcpus = 0
        self._users = 1
        self.struct.users_count = 1

    def get(self) -> None:
        """Count one more file of it."""
        self._users += 1
        self.struct.users_count = self._users

    @kernel_function("kvm_put_kvm", module="kvm")
    def put(self) -> None:
        """Count one file less; with the last it is gone: `kvm_destroy_vm()`."""
        self._users -= 1
        last = not self._users
        self.struct.users_count = self._users
        if last:
            self._notifiers.remove(self.paging.invalidate)
            self.paging.destroy()
            self.struct.free()


class KvmDevice(File):
    """/dev/kvm."""

    @kernel_function("kvm_dev_ioctl", module="kvm")
    def ioctl(self, request: int, argument: int) -> int:  # machine types: there is one
        """Make a virtual machine of the calling process; returns its descriptor."""
        if request == KvmIoctl.GET_API_VERSION:
            return _API_VERSION
        if request != KvmIoctl.CREATE_VM:
            raise SyscallError(Errno.EINVAL)
        task = self.kernel.current
        process = thread_of(task).process
        process.files.check_room()
        process.vm_count += 1
        kvm = Kvm(self.kernel, mm_of(task), f"{process.name} vm {process.vm_count}")
        try:
            file = KvmVmFile(self.kernel, kvm)
        except OutOfMemoryError:
            kvm.put()
            raise
        return process.files.install(file)


class _KvmFile(File):
    """A file that holds a virtual machine."""

    def __init__(self, kernel: Kernel, kvm: Kvm) -> None:
        super().__init__(kernel, OpenFlag.RDWR)
        self.kvm = kvm

    def check_owner(self) -> None:
        """Raise SyscallError EIO unless the caller's address space is the one that the guest's memory is in."""
        if self.kernel.current.mm is not self.kvm.mm:
            raise SyscallError(Errno.EIO)


class KvmVmFile(_KvmFile):
    """A virtual machine's file."""

    @kernel_function("kvm_vm_ioctl", module="kvm")
    def ioctl(self, request: int, argument: int) -> int:
        """Make a virtual CPU, or say where memory is."""
        self.check_owner()
        match request:
            case KvmIoctl.CREATE_VCPU:
                return self._create_vcpu()
            case KvmIoctl.SET_USER_MEMORY_REGION:
                return self._set_memory_region(argument)
            case _:
                raise SyscallError(Errno.ENOTTY)

    @kernel_function("kvm_vm_ioctl_create_vcpu", module="kvm")
    def _create_vcpu(self) -> int:
        thread = thread_of(self.kernel.current)
        program, thread.guest_program = thread.guest_program, None
        if program is None:
            raise ScenarioError(f"{thread.name}: KVM_CREATE_VCPU does not say what the CPU runs; use Vm.vcpu")
        thread.process.files.check_room()
        kvm = self.kvm
        kvm.vcpus += 1
        vcpu = Vcpu(self.kernel, kvm.paging, program, f"{kvm.name} vcpu {kvm.vcpus}")
        try:
            file = KvmVcpuFile(self.kernel, kvm, vcpu)
        except OutOfMemoryError:
            vcpu.free()
            raise
        return thread.process.files.install(file)

    @kernel_function("kvm_set_memory_region", module="kvm")
    def _set_memory_region(self, argument: int) -> int:
        """`struct kvm_userspace_memory_region`: slot, flags, guest address, size, user address."""
        region = self.kernel.uaccess.from_user(argument, _REGION_BYTES)
        slot, base, size, address = (
            int.from_bytes(region[start:end], "little") for start, end in ((0, 4), (8, 16), (16, 24), (24, 32))
        )
        if (base | size | address) % PAGE_SIZE or not self.kernel.uaccess.access_ok(address, size):
            raise SyscallError(Errno.EINVAL)
        others = [other for number, other in self.kvm.paging.slots.items() if number != slot]
        if any(other.base < base + size and base < other.base + other.size for other in others):
            raise SyscallError(Errno.EEXIST)
        self.kvm.paging.set_slot(slot, Memslot(base, size, address) if size else None)
        self.kvm.struct.nr_memslot_pages = sum(each.size for each in self.kvm.paging.slots.values()) // PAGE_SIZE
        return 0

    @kernel_function("kvm_vm_release", module="kvm")
    def release(self) -> None:
        """Drop the virtual machine."""
        self.kvm.put()


class KvmVcpuFile(_KvmFile):
    """A virtual CPU's file."""

    def __init__(self, kernel: Kernel, kvm: Kvm, vcpu: Vcpu) -> None:
        super().__init__(kernel, kvm)
        kvm.get()
        self.vcpu = vcpu

    @kernel_function("kvm_vcpu_ioctl", module="kvm")
    def ioctl(self, request: int, argument: int) -> int:
        """Run it."""
        self.check_owner()
        if request != KvmIoctl.RUN or argument:
            raise SyscallError(Errno.EINVAL)
        return self.vcpu.run()

    def mapped(self) -> Inode:
        """Its run area."""
        return self.vcpu.run_area

    @kernel_function("kvm_vcpu_release", module="kvm")
    def release(self) -> None:
        """Free it, and drop the virtual machine."""
        self.vcpu.free()
        self.kvm.put()
