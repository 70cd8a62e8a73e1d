"""A pipe between two processes: pipe buffers hold user data, so both ends exit, and each switch of mm does."""

from __future__ import annotations

from asikit import Machine, User

MESSAGES = 50


def scenario(machine: Machine) -> None:
    """A parent sends messages, its child reads them."""

    @machine.process
    def parent(user: User) -> None:
        reading, writing = user.pipe()

        def child(user: User) -> int:
            user.close(writing)
            received = 0
            while data := user.read(reading, 512):
                received += len(data)
            return received == MESSAGES * 100

        user.fork(child)
        user.close(reading)
        for number in range(MESSAGES):
            user.write(writing, bytes([number]) * 100)
        user.close(writing)
        user.wait()
