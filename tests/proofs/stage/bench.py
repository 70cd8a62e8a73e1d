"""A kernel's side as far as the parts of the stage know it: it does nothing, and remembers what it was asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, NoReturn, cast

from asikit.machine.kernel.core.percpu import Wait
from asikit.proofs.stage.reader import ScriptReader
from asikit.proofs.stage.script import Script
from asikit.proofs.story import StoryStep

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel import Kernel
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.proofs.stage.eavesdropper import Eavesdropper
    from asikit.protocol import Protocol, TaskState, ThreadState


def step(thread: int, verb: str, name: str, loads: TaskState | None = None) -> StoryStep:
    """Return a step of a story."""
    return StoryStep(thread, verb, name, "", loads)


class OverError(Exception):
    """Ends a program that would go on for ever."""


@dataclass
class Cpu:
    """A CPU: where it is, and what it waits for."""

    number: int
    thread: ThreadState
    waiting: Wait | None = None
    in_guest: bool = False
    need_resched: bool = False
    task: str = "task"
    hw: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(cpl=0))

    def waits(self, *, idle: bool = False, ready: bool = False) -> None:
        """Let it wait."""
        self.waiting = Wait("its sibling", lambda: ready, idle=idle)


class Bench:
    """Some CPUs, a script, and a list of all that was done.

    :ivar done: What the kernel was asked to do, in order.
    :ivar stuck: Numbers of CPUs that could not go on.
    :ivar between: What happens when a point is passed, if anything does.
    :ivar interrupted: An interrupt waits.
    :ivar enters_guests: A VM entry gets there.
    """

    def __init__(self, protocol: Protocol, *steps: StoryStep, cpus: int = 2) -> None:
        self.done: list[str] = []
        self.stuck: set[int] = set()
        self.between: Callable[[], None] = lambda: None
        self.interrupted = False
        self.enters_guests = True
        self.cpus = [Cpu(number, protocol.initial_thread()) for number in range(cpus)]
        self.cpu = self.cpus[0]
        self.config = SimpleNamespace(device_vector=0x51)
        self.script = Script(steps)
        self.reader = ScriptReader(self.script, self.kernel)
        self.asi = self.entry = self.interrupts = self.access = self.sched = self

    @property
    def kernel(self) -> Kernel:
        """It, where a kernel is asked for."""
        return cast("Kernel", self)

    @property
    def eavesdropper(self) -> Eavesdropper:
        """It, where an eavesdropper is asked for."""
        return cast("Eavesdropper", self)

    def context(self, number: int) -> CpuContext:
        """Return a CPU, where a real one is asked for."""
        return cast("CpuContext", self.cpus[number])

    # What is asked of a kernel. Everything that a kernel has parts for is this one object.

    def can_run(self, cpu: Cpu) -> bool:
        """Whether a CPU could go on."""
        return cpu.number not in self.stuck

    def at_point(self, cpu: Cpu, name: str) -> None:
        """A point is passed."""
        self.done.append(f"cpu {cpu.number} {name}")
        self.between()

    def point(self, name: str) -> None:
        """The running CPU passes a point; with nothing left in the script that is the end."""
        self.done.append(name)
        self.between()
        if not len(self.script):
            raise OverError

    def wait_for(self, cpu: Cpu, what: str, ready: Callable[[], bool], *, idle: bool = False) -> None:
        """A CPU waits."""
        self.done.append(f"cpu {cpu.number} waits for {what}" + " idly" * idle)
        assert not ready()
        self.between()

    def crash(self, error: BaseException) -> NoReturn:
        """End the run."""
        raise error

    def look(self) -> None:
        """The eavesdropper looks."""
        self.done.append("look")

    def post(self, cpu: Cpu, vector: int) -> None:
        """An interrupt is raised."""
        self.done.append(f"interrupt {vector:#x} at cpu {cpu.number}")

    def post_nmi(self, cpu: Cpu) -> None:
        """An NMI is raised."""
        self.done.append(f"NMI at cpu {cpu.number}")

    def pending(self) -> bool:
        """Whether an interrupt waits."""
        return self.interrupted

    def poll(self) -> None:
        """What waits is taken."""
        self.done.append("poll")

    def load(self, address: int, size: int) -> bytes:
        """Kernel code loads."""
        self.done.append(f"load {address:#x}")
        return bytes(size)

    def syscall(self, number: int, name: str, handler: Callable[[], int]) -> int:
        """A system call is made."""
        self.done.append(f"{name} ({number})")
        return handler()

    def vm_entry(self) -> bool:
        """A guest is entered, or not."""
        self.done.append("VM entry")
        return self.enters_guests

    def vm_exit(self, code: int) -> None:
        """A guest is left."""
        self.done.append(f"VM exit {code:#x}")

    def cond_resched(self) -> None:
        """The scheduler is asked."""
        self.done.append("cond_resched")

    def run(self, transition: str) -> None:
        """A transition runs."""
        self.done.append(f"run {transition}")

    def interrupt(self, happening: str) -> None:
        """A handler is entered."""
        self.done.append(f"interrupt {happening}")

    def leave(self) -> None:
        """A handler is left."""
        self.done.append("leave")
