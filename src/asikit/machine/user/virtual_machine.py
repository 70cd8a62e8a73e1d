"""A virtual machine as its VMM has it: user-space code over the KVM API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from asikit.machine.mm import PAGE_SIZE, MapFlags, Prot
from asikit.machine.uapi.abi import KvmExit, KvmIoctl, OpenFlag

if TYPE_CHECKING:
    from asikit.machine.user.guest import GuestProgram
    from asikit.machine.user.user import User

__all__ = ["GuestCpu", "VirtualMachine", "VmExit"]

_RUN_BYTES: Final = 2 * PAGE_SIZE
_EXIT_REASON: Final = 8
_HW: Final = 32
"""Where `struct kvm_run` has what an exit is about."""
_READ_WRITE: Final = Prot.READ | Prot.WRITE


@dataclass(frozen=True, slots=True)
class VmExit:
    """Why a virtual CPU came back to its VMM.

    :ivar port: The I/O port, for IO.
    :ivar address: The guest physical address, for MMIO.
    :ivar size: Bytes of the access.
    :ivar data: What the guest writes; empty if it reads, in which case `GuestCpu.run` takes the reply.
    """

    reason: KvmExit
    port: int = 0
    address: int = 0
    size: int = 0
    data: bytes = b""

    @property
    def halted(self) -> bool:
        """Whether the guest has executed HLT, or its program has returned."""
        return self.reason is KvmExit.HLT


class GuestCpu:
    """A virtual CPU, for the thread that made it."""

    def __init__(self, user: User, fd: int) -> None:
        self._user = user
        self._fd = fd
        self._run = user.mmap(_RUN_BYTES, _READ_WRITE, MapFlags.SHARED, fd)
        self._reply: tuple[int, int] | None = None

    def run(self, reply: bytes = b"") -> VmExit:
        """Run the guest until the VMM has to do something: KVM_RUN.

        :param reply: What the device gives that the last exit reads from, zeroes behind it.
        :raises OSError: EFAULT if the guest's memory is not mapped any more.
        """
        if self._reply is not None:
            address, size = self._reply
            self._user.store(address, reply[:size].ljust(size, b"\0"))
            self._reply = None
        self._user.ioctl(self._fd, KvmIoctl.RUN)
        reason = KvmExit(self._user.load_u32(self._run + _EXIT_REASON))
        if reason is KvmExit.IO:
            return self._io()
        if reason is KvmExit.MMIO:
            return self._mmio()
        return VmExit(reason)

    def _io(self) -> VmExit:
        head = self._user.load(self._run + _HW, 4)
        place = self._run + self._user.load_u64(self._run + _HW + 8)
        out, size, port = head[0], head[1], int.from_bytes(head[2:], "little")
        data = self._access(place, size, write=bool(out))
        return VmExit(KvmExit.IO, port=port, size=size, data=data)

    def _mmio(self) -> VmExit:
        address = self._user.load_u64(self._run + _HW)
        tail = self._user.load(self._run + _HW + 16, 5)
        size = int.from_bytes(tail[:4], "little")
        data = self._access(self._run + _HW + 8, size, write=bool(tail[4]))
        return VmExit(KvmExit.MMIO, address=address, size=size, data=data)

    def _access(self, place: int, size: int, *, write: bool) -> bytes:
        """Return what the guest writes; note where the reply goes if it reads."""
        if write:
            return self._user.load(place, size)
        self._reply = (place, size)
        return b""


class VirtualMachine:
    """A virtual machine with memory of its own, which begins at guest physical address 0.

    :ivar address: Where that memory is mapped in the VMM.
    :ivar size: Its size in bytes.
    """

    def __init__(self, user: User, size: int) -> None:
        self._user = user
        device = user.open("/dev/kvm", OpenFlag.RDWR)
        self._fd = user.ioctl(device, KvmIoctl.CREATE_VM)
        user.close(device)
        self.size = (size + PAGE_SIZE - 1) & -PAGE_SIZE
        self.address = user.mmap(self.size)
        user.set_guest_memory(self._fd, self.address, self.size)

    def vcpu(self, program: GuestProgram, *, user: User | None = None) -> GuestCpu:
        """Make a virtual CPU that runs a program, to be run by this thread, or by `user`'s."""
        runner = user or self._user
        return GuestCpu(runner, runner.create_vcpu(self._fd, program))
