"""A KVM guest and its VMM: VM exits that need no secret go back into the guest without a flush."""

from __future__ import annotations

from asikit import Guest, Machine, User


def scenario(machine: Machine) -> None:
    """A guest computes, asks for CPUID, and writes to a port that its VMM emulates."""

    @machine.process
    def vmm(user: User) -> None:
        vm = user.create_vm(1 << 20)
        vcpu = vm.vcpu(guest)
        while not (stop := vcpu.run()).halted:
            user.write(1, stop.data)


def guest(guest: Guest) -> None:
    """Run in the virtual machine."""
    for page in range(16):
        guest.store(page * 4096, b"guest secret")
    for _ in range(100):
        guest.cpuid()
    guest.outb(0x3F8, ord("!"))
