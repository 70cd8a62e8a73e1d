"""What the kernel does beside its transitions: its ordinary code, until it returns to user mode, and its handlers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.protocol import TLB_FLUSHES, Happening

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel import Kernel, Task
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.proofs.stage.programs import GuestProgram
    from asikit.proofs.stage.reader import ScriptReader
    from asikit.proofs.story import StoryStep

__all__ = ["Handler", "Meeting", "OrdinaryCode"]

H = Happening
_WORD = 8
_TRANSITIONS = frozenset({H.EXPLICIT_EXIT, H.CONTEXT_SWITCH, *TLB_FLUSHES})
"""What ordinary code does by running a transition of the protocol, and nothing else."""


class Handler:
    """What a handler does.

    :param secret: A sensitive address of the kernel's, which it touches when told.
    """

    def __init__(self, kernel: Kernel, reader: ScriptReader, secret: int) -> None:
        self._kernel = kernel
        self._reader = reader
        self._secret = secret

    def run(self, number: int) -> None:
        """Touch sensitive memory as often as told, and return: the body of a handler on the CPU of a number."""
        reader, cpu = self._reader, self._kernel.cpus[number]
        while True:
            reader.wait_for_turn(cpu)
            step = reader.next_of(cpu)
            if step is None:
                return
            if step.verb == "leaves":
                reader.take()
                reader.settle(cpu)
                return
            if step.verb == "begins" and step.name == H.UNMAPPED_TOUCH:
                reader.take()
                self._kernel.access.load(self._secret, _WORD)
            elif step.verb == "runs":
                reader.miss()
            else:
                return


class Meeting:
    """Where the story's CPUs wait for one another once they have booted: the story begins when all are there.

    :param extras: Who is to wait elsewhere by then: says whether he does.
    :param begin: Begins it.
    """

    def __init__(self, kernel: Kernel, actors: int, extras: Callable[[], bool], begin: Callable[[], None]) -> None:
        self._kernel = kernel
        self._actors = actors
        self._extras = extras
        self._begin = begin
        self._arrived: set[int] = set()
        self._over = False

    def keeps(self, cpu: CpuContext) -> bool:
        """Wait for the others, but in the story; returns whether the CPU has something else to do before."""
        if self._over:
            return False
        kernel = self._kernel
        kernel.interrupts.poll()  # what woke the CPU up is no part of the story
        if cpu.need_resched:
            return True
        self._arrived.add(cpu.number)
        while not self._complete():
            kernel.wait_for(cpu, "its sibling to boot", self._complete)
        if not self._over:
            self._over = True
            self._begin()
        return False

    def _complete(self) -> bool:
        return len(self._arrived) == self._actors and self._extras()


class OrdinaryCode:
    """What ordinary kernel code does, until it is to return to user mode.

    :param meeting: Where it waits before the story begins.
    :param guest: Where it goes by a VM entry.
    :param handler: What it calls when told that it is interrupted.
    :param switch_mm: Lets a task run another process' code.
    :param secret: A sensitive address of the kernel's, which it touches when told.
    """

    def __init__(  # noqa: PLR0917 - whom it calls
        self,
        kernel: Kernel,
        reader: ScriptReader,
        meeting: Meeting,
        guest: GuestProgram,
        handler: Handler,
        switch_mm: Callable[[Task], None],
        secret: int,
    ) -> None:
        self._kernel = kernel
        self._reader = reader
        self._meeting = meeting
        self._guest = guest
        self._handler = handler
        self._switch_mm = switch_mm
        self._secret = secret

    def exit_work(self, task: Task) -> bool:  # the CPU says it
        """Do it all; the kernel calls it before it returns to user mode, and again if it says so."""
        cpu = self._kernel.cpu
        if self._meeting.keeps(cpu):
            return True
        while self._step(cpu):
            pass
        self._reader.settle(cpu)
        return False

    def _step(self, cpu: CpuContext) -> bool:
        """Do what it does next; returns False if that is to return to user mode."""
        reader = self._reader
        reader.wait_for_turn(cpu)
        step = reader.next_of(cpu)
        if step is None:
            return False
        if step.verb == "begins":
            return self._begins(cpu, step)
        if step.verb == "turns sensitive":
            reader.settle(cpu)
        elif step.verb == "interrupted by":
            self._interrupted(cpu, H(step.name))
        else:
            reader.miss()
        return True

    def _interrupted(self, cpu: CpuContext, happening: Happening) -> None:
        self._reader.take()
        self._reader.settle(cpu)
        self._kernel.asi.interrupt(happening)
        self._handler.run(cpu.number)
        self._kernel.asi.leave()

    def _begins(self, cpu: CpuContext, step: StoryStep) -> bool:
        kernel, reader = self._kernel, self._reader
        if step.name in {*_TRANSITIONS, H.MM_SWITCH, H.VM_ENTRY}:
            reader.take()
            reader.settle(cpu)
            if step.name == H.VM_ENTRY:
                self._guest.visit(cpu)
                return True
            if step.name == H.MM_SWITCH:
                self._switch_mm(cpu.task)
            else:
                kernel.asi.run(step.name)
            if step.loads is not None:  # it goes on as the task that the switch has gone to
                cpu.thread = cpu.thread._replace(task=step.loads)
        elif step.name == H.UNMAPPED_TOUCH:
            reader.take()
            kernel.access.load(self._secret, _WORD)
        elif step.name == H.RETURN_USER:
            reader.take()
            return False
        else:
            reader.miss()
        return True
