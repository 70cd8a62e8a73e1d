"""Two siblings with stun: whenever one hyperthread needs sensitive memory, the other leaves untrusted code first."""

from __future__ import annotations

from asikit import Machine, MachineConfig, User

CONFIG = MachineConfig(cpus=2, smt=True)


def scenario(machine: Machine) -> None:
    """Two threads of one process on the two threads of a core; one reads a file, the other computes."""
    machine.file("/data", b"data" * 1024)

    @machine.process
    def program(user: User) -> None:
        def computing(thread: User) -> None:
            thread.sched_setaffinity({1})
            for _ in range(200):
                thread.compute(20)

        other = user.thread(computing)
        user.sched_setaffinity({0})
        fd = user.open("/data")
        for _ in range(50):
            user.pread(fd, 4096, 0)
        user.join(other)
