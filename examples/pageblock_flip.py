"""A pageblock changing sensitivity under load: zeroed on the way to nonsensitive, shot down on the way to sensitive."""

from __future__ import annotations

from asikit import Machine, MachineConfig, User

MIB = 1 << 20
CONFIG = MachineConfig(cpus=2, memory=16 * MIB, pageblock_order=5)


def scenario(machine: Machine) -> None:
    """One process needs many page tables, then all memory for its data; another one never stops reading."""
    machine.file("/data", b"data" * 1024)

    @machine.process(cpu=0)
    def grower(user: User) -> None:
        sparse = user.mmap(1400 * MIB)
        for place in range(700):  # a page for user data, and one for the table that maps it
            user.store(sparse + place * 2 * MIB, b"far")
        user.munmap(sparse, 1400 * MIB)
        dense = user.mmap(12 * MIB)
        for page in range(2900):
            user.store(dense + page * 4096, b"near")
        user.munmap(dense, 12 * MIB)

    @machine.process(cpu=1)
    def reader(user: User) -> None:
        fd = user.open("/data")
        for _ in range(300):
            user.pread(fd, 4096, 0)
