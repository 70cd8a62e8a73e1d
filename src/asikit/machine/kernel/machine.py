"""The machine, as a scenario sees it: processes, files, and a run to the end.

    machine = Machine(asi=True)

    @machine.process
    def main(user):
        user.getpid()

    report = machine.run()

How a machine is put together: `Kernel` (`asikit.machine.kernel.core.kernel`) has all parts; the module of each says
what it does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from asikit.machine.kernel.core.boot import boot
from asikit.machine.kernel.core.config import MachineConfig
from asikit.machine.kernel.core.errors import ScenarioError
from asikit.machine.mm import GFP_USER, PAGE_SHIFT

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel.core.interleave import Interleaver
    from asikit.machine.kernel.core.observer import Observer
    from asikit.machine.kernel.core.report import MachineReport
    from asikit.machine.kernel.objects.process import Process
    from asikit.machine.mm import Gfp
    from asikit.machine.user.program import Program

__all__ = ["Machine"]


class Machine:
    """A machine that has booted and waits for its programs.

    :ivar config: Its description.
    :ivar kernel: Its kernel, for those who look inside.
    :ivar processes: Those that `process` has made.
    """

    def __init__(
        self,
        config: MachineConfig | None = None,
        *,
        interleaver: Interleaver | None = None,
        **overrides: Any,  # noqa: ANN401 - the fields of MachineConfig
    ) -> None:
        """Boot.

        :param interleaver: Who decides what comes in between; by default whom the configuration makes.
        :param overrides: Fields of the configuration.
        :raises ScenarioError: No machine can be like that.
        """
        self.config = replace(config or MachineConfig(), **overrides)
        from asikit.machine.kernel.syscalls.userland import Userland  # noqa: PLC0415 - it needs all of this room

        self.kernel = boot(self.config, interleaver)
        self.kernel.userland = Userland(self.kernel)
        self.processes: list[Process] = []

    @property
    def observers(self) -> list[Observer]:
        """Who is told what happens; see `observe`."""
        return self.kernel.observers

    def observe(self, observer: Observer) -> Observer:
        """Let somebody watch; returns them."""
        self.kernel.observers.append(observer)
        self.kernel.access.watched = True
        observer.attached(self)
        return observer

    @overload
    def process(self, program: Program) -> Process: ...
    @overload
    def process(
        self,
        program: None = None,
        *,
        name: str = ...,
        cpu: int | None = ...,
        pinned: bool = ...,
        cookie: int | None = ...,
    ) -> Callable[[Program], Process]: ...
    @overload
    def process(
        self,
        program: Program,
        *,
        name: str = ...,
        cpu: int | None = ...,
        pinned: bool = ...,
        cookie: int | None = ...,
    ) -> Process: ...

    def process(
        self,
        program: Program | None = None,
        *,
        name: str = "",
        cpu: int | None = None,
        pinned: bool = False,
        cookie: int | None = None,
    ) -> Process | Callable[[Program], Process]:
        """Make a process that runs a program, a function of one `User`; also as a decorator, with options or without.

        :param name: What messages and results call it; the function's name by default.
        :param cpu: Where it begins.
        :param pinned: It stays there.
        :param cookie: Core scheduling: who may run on the sibling hyperthread meanwhile; only itself by default.
        """
        from asikit.machine.kernel.objects.process import create_process  # noqa: PLC0415 - it needs all of this room

        self._check_outside("a process")

        def create(main: Program) -> Process:
            made = create_process(self.kernel, main, name=name, cpu=self._cpu(cpu), pinned=pinned, cookie=cookie)
            self.processes.append(made)
            return made

        return create if program is None else create(program)

    def _cpu(self, cpu: int | None) -> int | None:
        if cpu is not None and not 0 <= cpu < self.config.cpus:
            raise ScenarioError(f"there is no CPU {cpu} (there are {self.config.cpus}, from 0)")
        return cpu

    def _check_outside(self, what: str) -> None:
        """Refuse what is kernel code's to do while a CPU is stopped, or runs, somewhere in user mode or on the way."""
        if self.kernel.stopped or self.kernel.cpu.hw.cpl:
            raise ScenarioError(f"{what} can be made before a run or after all processes have ended, not in between")

    def file(self, path: str, content: bytes, *, filesystem: str = "tmpfs", module: str | None = None) -> None:
        """Make a file.

        :param filesystem: "tmpfs", which holds it in memory, or another name: a file system on a disk, from which pages
            are read when they are first used.
        :param module: The module that the file system's functions are in, None for the kernel image.
        """
        self._check_outside("a file")
        self.kernel.userland.vfs.create(path, content, filesystem_name=filesystem, module=module)

    def allocate(self, content: bytes, gfp: Gfp = GFP_USER) -> int:
        """Put something into freshly allocated pages and return its kernel address, for handlers to touch.

        :param gfp: How it is allocated; by default as user data is, so that it is sensitive.
        :raises OutOfMemoryError: There is no memory.
        """
        self._check_outside("an allocation")
        kernel = self.kernel
        order = (max(1, len(content)) - 1 >> PAGE_SHIFT).bit_length()
        address = kernel.layout.virt(kernel.allocator.alloc_pages(gfp, order) << PAGE_SHIFT)
        kernel.access.store(address, content)
        return address

    def content(self, path: str) -> bytes:
        """Return what a file holds now. Raises KeyError if there is none."""
        return self.kernel.userland.vfs.content(path)

    @property
    def console(self) -> bytes:
        """What programs have written to the console, their descriptors 0 to 2."""
        return bytes(self.kernel.userland.vfs.console)

    def on_nmi(self, handler: Callable[[int], object]) -> Callable[[int], object]:
        """Let a function be the body of the NMI handler; it runs as kernel code and is given the CPU. A decorator."""
        self.kernel.interrupts.on_nmi = handler
        return handler

    def on_interrupt(self, handler: Callable[[int, int], object]) -> Callable[[int, int], object]:
        """Let a function be the body of device interrupts' handlers; it is given CPU and vector. A decorator."""
        self.kernel.interrupts.on_interrupt = handler
        return handler

    def inject_nmi(self, cpu: int = 0) -> None:
        """Raise an NMI at a CPU; it takes it at its next point."""
        self._cpu(cpu)
        self.kernel.interrupts.post_nmi(self.kernel.cpus[cpu])

    def inject_interrupt(self, cpu: int = 0, vector: int | None = None) -> None:
        """Raise a device's interrupt at a CPU; it takes it at its next point with interrupts on."""
        self._cpu(cpu)
        self.kernel.interrupts.post(self.kernel.cpus[cpu], vector or self.config.device_vector)

    def run(self, limit: int | None = None) -> MachineReport:
        """Run until all processes have ended, or for `limit` units of logical time; may be called again.

        :raises DeadlockError: Nothing can run any more; the message says who waits for what.
        :raises InvariantError: In debug mode: something that always holds did not.
        :raises KernelOopsError: Kernel code accessed what is not there.
        """
        self.kernel.run(limit)
        return self.kernel.report()

    def close(self) -> None:
        """Give up a machine whose processes have not ended, so that nothing of it stays in memory."""
        self.kernel.close()

    def report(self) -> MachineReport:
        """Return what has happened so far."""
        return self.kernel.report()
