"""Lets a machine follow a counterexample: who runs, what comes in between, and what kernel and programs do, as told.

Everything on the machine is real: entry code, faults, page tables, interrupts, the waiting of siblings. The director
says only what is left open: which CPU goes on at each point, where an NMI comes, what ordinary kernel code, handlers
and untrusted code do next. Where the machine does more than the story says, it is let do so; where it cannot do what
the story says (because the protocol is another one), the step is left out and counted.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

from asikit.machine.kernel import Act, Action, Observer
from asikit.machine.kernel.core.interrupts import RESCHEDULE_VECTOR
from asikit.protocol import TLB_FLUSHES, Happening

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from asikit.machine.kernel import Kernel, Task
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.proofs._attacker import Eavesdropper
    from asikit.proofs.story import StoryStep

H = Happening
AFTER = 96
"""Points that a machine goes on for after the story's end."""
TURN = 12
"""Points after which the other CPU goes on then."""
STALLED = 400
"""Points for which a CPU goes on although the other's step is next, before that step is left out."""
GETPID = 39
VMMCALL = 0x81
FOREVER = 1 << 62
BY_HARDWARE = f"{H.UNMAPPED_TOUCH}."
"""What the paths begin with of micro-operations that the machine's processor does, not its driver."""


class StoryOver(Exception):  # noqa: N818 - no error
    """Ends a run: the story has been followed, and whatever comes of it has happened. Says who still waits, if any."""


class Director(Observer):
    """The interleaver, the programs and the handlers of one run."""

    every_point = True

    def __init__(self, steps: Iterable[StoryStep]) -> None:
        self._steps = deque(
            step
            for step in _with_loads_first(steps)
            if step.verb not in {"skips", "breaks a rule in"} and not step.name.startswith(BY_HARDWARE)
        )
        self.length = len(self._steps)
        self.missed = 0
        self._arrived: set[int] = set()
        self._begun = False
        self._after = 0
        self._stalled = 0
        self.kernel: Kernel
        self.attacker: Eavesdropper
        self.secret = 0
        self.other_mm: Callable[[Task], None]
        self.turn_sensitive: Callable[[CpuContext], bool]
        self.actors = 1

    # The interleaver.

    def slice(self, cpu: int) -> int:  # every CPU alike
        """A CPU runs until the story says otherwise."""
        return FOREVER

    def choose(self, cpu: int, others: Sequence[int]) -> int:  # the story knows
        """Return the CPU whose step is next."""
        head = self._head
        return head.thread if head is not None and head.thread in others else others[0]

    def at(self, point: str, cpu: int) -> Iterable[Action]:
        """Tick off what has run, and return what comes in between here."""
        if not self._begun:
            return ()
        self.attacker.look()
        head = self._head
        if head is not None and head.verb == "runs" and head.thread == cpu:
            self._ran(point)
        # Once the last check is done nothing comes in between on the way to untrusted code. The other core is no actor.
        if self._resumed(point, cpu) or (cpu >= self.actors and head is not None):
            return ()
        return self._due(cpu)

    def _resumed(self, point: str, cpu: int) -> bool:
        return point.partition(".")[0] in {H.RETURN_USER, H.VM_ENTRY} and not self.kernel.cpus[cpu].thread.frames

    @property
    def _head(self) -> StoryStep | None:
        return self._steps[0] if self._steps else None

    def _ran(self, path: str) -> None:
        """A micro-operation has run: it is the next one, or (in another protocol) one after it of the same piece."""
        for place, step in enumerate(self._steps):
            if step.verb != "runs" or step.thread != self._steps[0].thread:
                return
            if step.name == path:
                for _ in range(place):
                    self._miss()
                self._pop()
                return

    def _due(self, cpu: int) -> Iterable[Action]:
        head = self._head
        if head is None:
            return self._go_on(cpu)
        if head.thread != cpu:
            if self.kernel.can_run(self.kernel.cpus[head.thread]):
                self._stalled = 0
                return (Action(Act.SWITCH, head.thread),)
            self._stalled += 1
            if self._stalled > STALLED:
                self._stalled = 0
                self._miss()
            return ()
        if head.verb == "turns sensitive":
            self._pop()
            other = self.turn_sensitive(self.kernel.cpus[cpu])
            return (Action(Act.SWITCH, 1),) if other else ()
        if head.verb == "interrupted by" and head.name == H.NESTED_NMI and not self._untrusted(cpu):
            self._pop()
            return (Action(Act.NMI),)
        return ()

    def _go_on(self, cpu: int) -> Iterable[Action]:
        self._after += 1
        if self._after > AFTER:
            self.kernel.crash(StoryOver(self._waits()))
        if self._after % TURN == 0 and len(self.kernel.cpus) > 1:
            return (Action(Act.SWITCH, 1 - cpu),)
        return ()

    def _waits(self) -> str:
        """Return who still waits for the sibling, after all that the machine was given to go on."""
        for cpu in self.kernel.cpus[: self.actors]:
            waiting = cpu.waiting
            if waiting is not None and not waiting.idle and not waiting.ready():
                return f"cpu {cpu.number} still waits for {waiting.what}"
        return ""

    def _untrusted(self, cpu: int) -> bool:
        each = self.kernel.cpus[cpu]
        return bool(each.hw.cpl) or each.in_guest

    def _pop(self) -> StoryStep:
        step = self._steps.popleft()
        self._prod()
        return step

    def _miss(self) -> None:
        self.missed += 1
        self._pop()

    def _prod(self) -> None:
        """Interrupt a CPU that waits, if that is what comes next."""
        head = self._head
        if head is None or head.verb not in {"stops waiting", "interrupted by"}:
            return
        cpu = self.kernel.cpus[head.thread]
        if cpu.waiting is not None and not cpu.waiting.idle:
            self._disturb(cpu)

    def _disturb(self, cpu: CpuContext) -> None:
        step = self._steps.popleft()
        if step.verb == "stops waiting":
            self.kernel.interrupts.post(cpu, RESCHEDULE_VECTOR)
        else:
            self.kernel.interrupts.post_nmi(cpu)

    # Observer: a CPU is about to wait for its sibling before untrusted code, or to go there.

    def return_user(self, cpu: int, *, by_iret: bool) -> None:  # the same for all returns
        """Disturb a CPU that is stunned here, if that is what comes next."""
        head = self._head
        context = self.kernel.cpus[cpu]
        mine = self._begun and head is not None and head.thread == cpu and context.thread.frames
        if mine and head is not None and head.verb in {"stops waiting", "interrupted by"}:
            self._disturb(context)

    def vm_entry(self, cpu: int) -> None:
        """Disturb a CPU that is stunned before its guest, if that is what comes next."""
        self.return_user(cpu, by_iret=False)

    # Where entry code has just begun: what comes before its first micro-operation, comes now.

    def vm_exit(self, cpu: int, code: int) -> None:  # the same for all VM exits
        """A guest was left."""
        self._settle(self.kernel.cpus[cpu])

    def entered(self) -> None:
        """User mode was left."""
        self._settle(self.kernel.cpu)

    def called(self, function: int) -> None:
        """Nothing."""

    def returning(self, function: int) -> None:
        """Nothing."""

    def faulted(self) -> None:
        """Nothing."""

    # What code does.

    def user(self) -> None:
        """What user mode does: enter the kernel when told, else compute."""
        kernel = self.kernel
        self.attacker.look()
        while True:
            step = self._mine(kernel.cpu)
            if step is not None and step.verb != "turns sensitive":
                if step.verb != "begins":
                    self._miss()
                elif step.name == H.SYSCALL_ENTRY:
                    self._pop()
                    kernel.entry.syscall(GETPID, "getpid", lambda: 0)
                    self.attacker.look()
                    continue
                elif step.name in {H.INTERRUPT_ENTRY, H.EXCEPTION_ENTRY, H.NMI_ENTRY}:
                    self._pop()
                    kernel.interrupts.post(kernel.cpu, kernel.config.device_vector)
                else:
                    self._miss()
            kernel.point("user instruction")

    def _guest(self, cpu: CpuContext) -> None:
        """A visit to the guest, which leaves when told or interrupted."""
        kernel = self.kernel
        if not kernel.entry.vm_entry():
            kernel.sched.cond_resched()
            return
        self.attacker.look()
        while True:
            step = self._mine(cpu)
            if step is not None and step.verb != "turns sensitive":
                if step.verb == "begins" and step.name == H.VM_EXIT:
                    self._pop()
                    break
                self._miss()
            if kernel.interrupts.pending():
                break
            kernel.point("guest instruction")
        kernel.entry.vm_exit(VMMCALL)
        kernel.interrupts.poll()

    def exit_work(self, task: Task) -> bool:  # the CPU says it
        """What ordinary kernel code does, until it is to return to user mode: the kernel calls it before it does."""
        kernel = self.kernel
        cpu = kernel.cpu
        if not self._begun:
            kernel.interrupts.poll()  # what woke the CPU up is no part of the story
            if cpu.need_resched:
                return True
            self._arrived.add(cpu.number)
            while len(self._arrived) < self.actors:
                kernel.wait_for(cpu, "its sibling to boot", lambda: len(self._arrived) == self.actors)
            self._begun = self.attacker.began = True
        while self._kernel_step(cpu):
            pass
        self._settle(cpu)
        return False

    def handler(self, number: int) -> None:
        """What a handler does."""
        cpu = self.kernel.cpus[number]
        while True:
            self._turn(cpu)
            step = self._mine(cpu)
            if step is None:
                return
            if step.verb == "leaves":
                self._pop()
                self._settle(cpu)
                return
            if step.verb == "begins" and step.name == H.UNMAPPED_TOUCH:
                self._pop()
                self.kernel.access.load(self.secret, 8)
            elif step.verb == "runs":
                self._miss()
            else:
                return

    def _kernel_step(self, cpu: CpuContext) -> bool:
        """Do what ordinary code does next; returns False if that is to return to user mode."""
        kernel = self.kernel
        self._turn(cpu)
        step = self._mine(cpu)
        if step is None:
            return False
        if step.verb == "turns sensitive":
            self._settle(cpu)
            return True
        if step.verb == "interrupted by":
            self._pop()
            self._settle(cpu)
            kernel.asi.interrupt(H(step.name))
            self.handler(cpu.number)
            kernel.asi.leave()
            return True
        if step.verb != "begins":
            self._miss()
            return True
        self._pop()
        if step.name == H.RETURN_USER:
            return False
        if step.name == H.VM_ENTRY:
            self._settle(cpu)
            self._guest(cpu)
        elif step.name == H.UNMAPPED_TOUCH:
            kernel.access.load(self.secret, 8)
        elif step.name == H.MM_SWITCH:
            self._settle(cpu)
            self.other_mm(cpu.task)
            self._load_task(cpu, step)
        elif step.name in {H.EXPLICIT_EXIT, H.CONTEXT_SWITCH, *TLB_FLUSHES}:
            self._settle(cpu)
            kernel.asi.run(step.name)
            self._load_task(cpu, step)
        else:
            self.missed += 1
        return True

    @staticmethod
    def _load_task(cpu: CpuContext, step: StoryStep) -> None:
        """Go on as the task that a switch has gone to."""
        if step.loads is not None:
            cpu.thread = cpu.thread._replace(task=step.loads)

    def _mine(self, cpu: CpuContext) -> StoryStep | None:
        head = self._head
        return head if head is not None and head.thread == cpu.number else None

    def _turn(self, cpu: CpuContext) -> None:
        """Let the other CPU do what it has to do before this one's next step."""
        while (head := self._head) is not None and head.thread != cpu.number:
            left = len(self._steps)
            self._settle(cpu)
            if len(self._steps) == left and not self.kernel.can_run(self.kernel.cpus[head.thread]):
                return
        self._settle(cpu)

    def _settle(self, cpu: CpuContext) -> None:
        """Pass a point: what comes in between before the next micro-operation, comes now."""
        self.kernel.at_point(cpu, "story")


def _with_loads_first(steps: Iterable[StoryStep]) -> list[StoryStep]:
    """Return steps with the task that a switch goes to at its beginning, not at its end."""
    moved: list[StoryStep] = []
    for step in steps:
        moved.append(replace(step, loads=None))
        if step.loads is not None:
            begin = max(
                place
                for place, earlier in enumerate(moved)
                if earlier.thread == step.thread and earlier.name in {H.CONTEXT_SWITCH, H.MM_SWITCH}
            )
            moved[begin] = replace(moved[begin], loads=step.loads)
    return moved
