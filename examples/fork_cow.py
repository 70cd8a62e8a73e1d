"""Fork with copy-on-write: parent and child share frames until one writes, and the copy is what exits."""

from __future__ import annotations

from asikit import Machine, User


def scenario(machine: Machine) -> None:
    """A parent writes pages, forks, and both see their own version of them."""

    @machine.process
    def parent(user: User) -> None:
        memory = user.mmap(8 * 4096)
        user.store(memory, b"before")

        def child(user: User) -> int:
            user.store(memory, b"child!")
            return user.load(memory, 6) == b"child!"

        user.fork(child)
        _, said_yes = user.wait()
        if not said_yes or user.load(memory, 6) != b"before":
            raise AssertionError("copy-on-write is broken")
