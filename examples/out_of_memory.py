"""Memory running out: who asks for too much is told or killed, everybody else goes on, and the memory comes back."""

from __future__ import annotations

import errno

from asikit import Machine, MachineConfig, User

CONFIG = MachineConfig(memory=16 << 20)


def scenario(machine: Machine) -> None:
    """A glutton takes all memory there is, page by page; afterwards another process gets as much as it likes."""

    def glutton(user: User) -> None:
        memory = user.mmap(1 << 30)
        for page in range(1 << 18):
            user.store(memory + page * 4096, b"mine")

    @machine.process
    def parent(user: User) -> None:
        user.fork(glutton)
        _, status = user.wait()
        user.write(1, b"the glutton was killed by signal %d\n" % -status)
        try:
            user.mmap(1 << 62)
        except OSError as error:
            user.write(1, errno.errorcode[error.errno or 0].encode() + b"\n")
        memory = user.mmap(1 << 20)
        for page in range(256):
            user.store(memory + page * 4096, b"fine")
