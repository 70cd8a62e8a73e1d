"""An NMI in every place of a transition: its handler touches a secret, and the transition still ends where it must."""

from __future__ import annotations

from asikit import Effect, Machine, Observer, User


class NmiAfterEach(Observer):
    """Raises an NMI the first time that a micro-operation has run, whichever it is."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.seen: set[str] = set()

    def micro_op(self, cpu: int, path: str, effect: Effect | None) -> None:
        """Take note of the place, and come in between there."""
        if path not in self.seen:
            self.seen.add(path)
            self.machine.inject_nmi(cpu)


def scenario(machine: Machine) -> None:
    """Enter, exit and fault, with NMIs in between."""
    secret = machine.allocate(b"secret")
    machine.file("/data", b"data" * 1024)
    machine.observe(NmiAfterEach(machine))

    @machine.on_nmi
    def handler(_cpu: int) -> None:
        machine.kernel.access.load(secret, 6)

    @machine.process
    def program(user: User) -> None:
        fd = user.open("/data")
        for _ in range(20):
            user.getpid()
            user.pread(fd, 4096, 0)
