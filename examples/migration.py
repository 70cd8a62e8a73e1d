"""A process migrating between CPUs: its domain goes with its memory, and each CPU comes to know it anew."""

from __future__ import annotations

from asikit import Machine, MachineConfig, User

CONFIG = MachineConfig(cpus=4)


def scenario(machine: Machine) -> None:
    """One process visits every CPU in turn, and finds its memory and its files wherever it is."""
    machine.file("/data", b"data" * 1024)

    @machine.process
    def wanderer(user: User) -> None:
        memory = user.mmap(4096)
        fd = user.open("/data")
        for visit in range(20):
            user.sched_setaffinity({visit % 4})
            user.store_u64(memory, user.load_u64(memory) + 1)
            user.pread(fd, 64, 0)
        if user.load_u64(memory) != 20 or user.getcpu() != 3:
            raise AssertionError("it lost its way")
