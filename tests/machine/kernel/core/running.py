"""Programs for tests of the core: no system-call layer, just handlers that run in kernel mode."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from asikit.machine.kernel import Machine, MachineConfig, Observer, Task, TaskExit
from asikit.machine.mm import GFP_USER
from asikit.machine.mm.mmstruct import MapFlags, Prot

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel import Kernel
    from asikit.machine.mm.mmstruct import MmStruct
    from asikit.protocol import Effect, ExitReason, Space

READ_WRITE = Prot.READ | Prot.WRITE
ANONYMOUS = MapFlags.PRIVATE | MapFlags.ANONYMOUS
SECRET = b"a secret in sensitive memory"


def machine(**fields: Any) -> Machine:  # noqa: ANN401 - the fields of MachineConfig, and what Machine takes besides
    """Return a machine in debug mode."""
    interleaver = fields.pop("interleaver", None)
    return Machine(MachineConfig(**{"debug": True, **fields}), interleaver=interleaver)


@dataclass
class Program:
    """What a program in user mode can do; its methods are for the function that it is given to."""

    kernel: Kernel
    seen: list[object] = field(default_factory=list)

    def call(self, handler: Callable[[], object], number: int = 39) -> int:
        """Do a system call that runs a handler; returns its number, or 0 if that is none."""

        def body() -> int:
            value = handler()
            return value if isinstance(value, int) else 0

        result = self.kernel.entry.syscall(number, "test", body)
        self.seen.append(result)
        return result

    def getpid(self) -> int:
        """A system call that touches nothing."""
        return self.call(lambda: self.kernel.current.tgid)

    def mmap(self, size: int) -> int:
        """Map anonymous memory."""
        return self.call(lambda: self.mm.mmap(size, READ_WRITE, ANONYMOUS), 9)

    def munmap(self, address: int, size: int) -> None:
        """Unmap memory."""

        def handler() -> int:
            self.mm.munmap(address, size)
            return 0

        self.call(handler, 11)

    def touch(self, address: int) -> int:
        """A system call that reads eight bytes at a kernel address."""
        return self.call(lambda: self.kernel.access.load_u64(address), 0)

    @property
    def mm(self) -> MmStruct:
        """The address space."""
        mm = self.kernel.current.mm
        assert mm is not None
        return mm

    def load(self, address: int, size: int) -> bytes:
        """Read user memory in user mode."""
        data = self.kernel.entry.user_load(address, size)
        self.seen.append(data)
        return data

    def store(self, address: int, data: bytes) -> None:
        """Write user memory in user mode."""
        self.kernel.entry.user_store(address, data)

    def compute(self, count: int) -> None:
        """Execute instructions."""
        self.kernel.entry.user_compute(count)

    def block(self, waits_for: str) -> None:
        """Sleep in the kernel until woken."""

        def handler() -> int:
            self.kernel.sched.block(waits_for)
            return 0

        self.call(handler)


def spawn(
    target: Machine,
    function: Callable[[Program], object],
    *,
    mm: MmStruct | None = None,
    comm: str = "program",
    cpu: int | None = None,
    pinned: bool = False,
    cookie: int | None = None,
) -> Task:
    """Let a function run as a process, or as a thread of the process that has `mm` already."""
    kernel = target.kernel
    program = Program(kernel)
    if mm is None:
        mm = kernel.contexts.new()
    else:
        mm.get()

    def exit_() -> NoReturn:
        raise TaskExit(0)

    def run() -> None:
        function(program)
        kernel.entry.syscall(60, "exit", exit_)

    task = kernel.new_task(run, comm=comm, mm=mm, cpu=cpu, pinned=pinned, cookie=cookie)
    task.owner = program
    kernel.start(task)
    return task


def seen(task: Task) -> list[object]:
    """Return what a program saw."""
    assert isinstance(task.owner, Program)
    return task.owner.seen


def secret(target: Machine) -> int:
    """Return the direct-map address of a sensitive page with a secret in it."""
    kernel = target.kernel
    address = kernel.layout.virt(kernel.allocator.alloc_pages(GFP_USER) << 12)
    kernel.access.store(address, SECRET)
    return address


@dataclass
class Recorder(Observer):
    """Keeps the micro-operations, exits and enters that it is told of, each with its CPU."""

    ops: list[tuple[int, str]] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)
    exits: list[tuple[int, str]] = field(default_factory=list)
    enters: list[tuple[int, str]] = field(default_factory=list)
    events: list[tuple[object, ...]] = field(default_factory=list)

    def micro_op(self, cpu: int, path: str, effect: Effect | None) -> None:
        """Keep it."""
        self.ops.append((cpu, path))
        self.effects += [str(effect)] if effect is not None else []

    def asi_exit(self, cpu: int, reason: ExitReason) -> None:
        """Keep it."""
        self.exits.append((cpu, reason.value))

    def asi_enter(self, cpu: int, space: Space) -> None:
        """Keep it."""
        self.enters.append((cpu, space.label))

    def entry(self, cpu: int, kind: str, number: int) -> None:
        """Keep it."""
        self.events.append((cpu, "entry", kind, number))

    def nested_entry(self, cpu: int, kind: str, number: int) -> None:
        """Keep it."""
        self.events.append((cpu, "nested", kind, number))

    def nested_return(self, cpu: int) -> None:
        """Keep it."""
        self.events.append((cpu, "nested return"))

    def return_user(self, cpu: int, *, by_iret: bool) -> None:
        """Keep it."""
        self.events.append((cpu, "return", by_iret))

    def mm_switch(self, cpu: int, mm: int) -> None:
        """Keep it."""
        self.events.append((cpu, "mm", mm))

    def task_switch(self, cpu: int, task: Task) -> None:
        """Keep it."""
        self.events.append((cpu, "task", task.comm))
