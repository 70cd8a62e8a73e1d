"""Page-cache reads: the copy to the user touches sensitive memory, so every read exits once."""

from __future__ import annotations

from asikit import Machine, User


def scenario(machine: Machine) -> None:
    """One process that reads a file at a stride, 4 KiB at a time."""
    machine.file("/data", bytes(range(256)) * 16 * 64)

    @machine.process
    def reader(user: User) -> None:
        fd = user.open("/data")
        for page in range(64):
            user.pread(fd, 4096, page * 37 % 64 * 4096)
