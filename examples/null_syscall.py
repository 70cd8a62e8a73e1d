"""A null system call: the whole round trip runs in the restricted address space, and nothing is flushed."""

from __future__ import annotations

from asikit import Machine, User


def scenario(machine: Machine) -> None:
    """One process that asks for its number a hundred times."""

    @machine.process
    def caller(user: User) -> None:
        for _ in range(100):
            user.getpid()
