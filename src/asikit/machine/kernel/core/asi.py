"""The driver: executes the protocol's transitions on the machine, micro-operation by micro-operation.

It decides nothing about their order. At each step `Protocol.step` says what the next micro-operation changes and what
it asks of the hardware. The driver stores the one, does the other, tells observers, checks invariants in debug mode and
passes a point named by the micro-operation's path, at which an NMI may come or another CPU go on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core import doors
from asikit.machine.x86 import Invpcid
from asikit.protocol import PRIMITIVES, AsiClass, EffectKind, PcidLayout, Role, Routine, Space, Status, space_of
from asikit.protocol.switching import enter_name

if TYPE_CHECKING:
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.protocol import Effect, Happening, Step
    from asikit.protocol import Protocol as AsiProtocol

__all__ = ["AsiDriver"]

_PRIMITIVES = frozenset(primitive.kind for primitive in PRIMITIVES)

_ENTER_IDLE = enter_name(AsiClass.IDLE)


class _Kernel(
    doors.Processors, doors.Points, doors.Watched, doors.Interruptible, doors.AddressSpaces, doors.Transitions, Protocol
):
    """What is needed of the kernel here."""


class AsiDriver:
    """Runs transitions on the running CPU."""

    def __init__(self, kernel: _Kernel, protocol: AsiProtocol) -> None:
        config = protocol.config
        self._kernel = kernel
        self.protocol = protocol
        self._pcids = PcidLayout(pti=config.pti)
        self._pcids.check(config.classes)
        paging = kernel.cpus[0].hw.core.model.paging
        # Nobody bothers with PCIDs that INVPCID cannot flush.
        self.has_pcids = paging.pcid and paging.invpcid
        """Address spaces have TLB tags of their own; otherwise every write of CR3 flushes the TLB."""
        self.idle_class = config.asi and AsiClass.IDLE in config.classes
        """Idle CPUs go to a restricted address space of their own."""

    # Transitions.

    def run(self, transition: Happening | str) -> bool:
        """Run a transition to its end on the running CPU.

        Returns False if the CPU gave up waiting for its sibling in it, to reschedule (`Protocol.stop_waiting`).
        """
        cpu = self._kernel.cpu
        depth = len(cpu.thread.frames)
        cpu.thread = self.protocol.begin(cpu.thread, transition)
        return self._finish(cpu, depth)

    def interrupt(self, happening: Happening) -> None:
        """Run the entry of a handler that interrupts kernel mode; its own code comes next, then `leave`."""
        cpu = self._kernel.cpu
        depth = len(cpu.thread.frames)
        cpu.thread = self.protocol.interrupt(cpu.thread, happening)
        self._finish(cpu, depth + 1)

    def leave(self) -> None:
        """Run the return from the innermost handler."""
        cpu = self._kernel.cpu
        depth = len(cpu.thread.frames) - 1
        cpu.thread = self.protocol.leave(cpu.thread)
        self._finish(cpu, depth)

    def enter_idle(self) -> None:
        """With SMT: let the sibling go on while this CPU idles."""
        if self.idle_class:
            self.run(_ENTER_IDLE)

    def leave_idle(self) -> None:
        """End what `enter_idle` began; the address space stays."""
        if self.idle_class:
            self.run(Routine.RELAX)

    def _finish(self, cpu: CpuContext, depth: int) -> bool:
        gave_up = False
        while len(cpu.thread.frames) > depth:
            core = cpu.core
            taken = self.protocol.step(core.state, cpu.thread, cpu.who)
            if taken.status is Status.BLOCKED:
                gave_up |= self._wait(cpu)
                continue
            before = cpu.thread
            core.state, cpu.thread = taken.core, taken.thread
            if taken.ran:
                self._done(cpu, taken, before.cpu.cr3)
        return not gave_up

    def _done(self, cpu: CpuContext, taken: Step, space_before: int) -> None:
        kernel = self._kernel
        if taken.effect is not None:
            self._apply(cpu, taken.effect)
        if taken.exit_reason is not None:
            kernel.tally.exit(cpu.trip, taken.exit_reason)
        if kernel.observers:
            self._tell(cpu, taken, space_before)
        if kernel.invariants is not None:
            kernel.invariants.after_micro_op(cpu, taken)
        kernel.micro_op_point(cpu, taken.ran)

    def _tell(self, cpu: CpuContext, taken: Step, space_before: int) -> None:
        space = taken.thread.cpu.cr3
        for observer in self._kernel.observers:
            observer.micro_op(cpu.number, taken.ran, taken.effect)
            if taken.exit_reason is not None:
                observer.asi_exit(cpu.number, taken.exit_reason)
            elif space not in {space_before, Space.UNRESTRICTED}:
                observer.asi_enter(cpu.number, Space(space))

    def _wait(self, cpu: CpuContext) -> bool:
        """Spin until the step can be done, taking interrupts. Returns whether the CPU gave up instead."""
        kernel = self._kernel
        name, pc = cpu.thread.frames[-1]
        op = self.protocol.programs[name].ops[pc]
        depth = len(cpu.thread.frames)
        resuming = op.role is Role.RESUME
        sibling = cpu.sibling.number if cpu.sibling is not None else "?"
        what = (
            f"cpu {sibling} to enter ({op.path})" if resuming else f"cpu {sibling} to stop untrusted code ({op.path})"
        )

        def ready() -> bool:
            return self.protocol.step(cpu.core.state, cpu.thread, cpu.who).status is not Status.BLOCKED

        while not ready():
            if resuming:
                kernel.entry.about_to_resume(cpu)
            if kernel.interrupts.deliver_while_waiting(cpu, resuming=resuming):
                if resuming and cpu.need_resched and len(cpu.thread.frames) == depth:
                    cpu.thread = self.protocol.stop_waiting(cpu.thread)
                    self._finish(cpu, depth - 1)
                    return True
                continue
            kernel.wait_for(cpu, what, ready, interruptible=resuming)
        return False

    # Effects.

    def _apply(self, cpu: CpuContext, effect: Effect) -> None:
        kind = effect.kind
        self._kernel.tally.effects[effect] += 1
        if kind in _PRIMITIVES:
            cpu.hw.core.do(str(kind), cpu.hw.thread)
        elif kind is EffectKind.WRITE_CR3:
            assert effect.space is not None  # it says which
            cpu.hw.write_cr3(self.cr3(cpu, effect.space, user_half=effect.user_half, noflush=effect.noflush))
        elif kind is EffectKind.TLB_FLUSH:
            assert effect.space is not None  # it says whose
            cpu.hw.invpcid(Invpcid.SINGLE_CONTEXT, self.pcid(cpu.loaded_asid, effect.space))
        elif kind is EffectKind.STUN:
            sibling = cpu.sibling
            if sibling is not None and cpu.core.state[sibling.who].stun_ipi:
                self._kernel.interrupts.post_stun(sibling)
        elif kind is EffectKind.PAGE_WALK:
            self._kernel.faults.walk(cpu)
        elif kind is EffectKind.REFRESH_HOST_CR3:
            cpu.host_cr3 = cpu.hw.cr3
        # UNSTUN is a store that the sibling polls; a barrier orders what here has an order anyway.

    def user_pcids(self, asid: int) -> tuple[int, ...]:
        """Return the PCIDs of an ASID's user halves: with PTI, CR3 writes that load those never flush."""
        config = self.protocol.config
        if not (config.pti and self.has_pcids):
            return ()
        spaces = (Space.UNRESTRICTED, *map(space_of, sorted(config.classes) if config.asi else ()))
        return tuple(self.pcid(asid, space, user_half=True) for space in spaces)

    def pcid(self, asid: int, space: Space, *, user_half: bool = False) -> int:
        """Return the PCID of an address space; 0 for all of them without PCIDs."""
        return self._pcids.pcid(asid, space, user_half=user_half) if self.has_pcids else 0

    def cr3(self, cpu: CpuContext, space: Space, *, user_half: bool = False, noflush: bool = False) -> int:
        """Return the value that loads an address space of the loaded mm on a CPU."""
        pgd = self._kernel.domains.pgd(cpu.loaded_mm, space, user_half=user_half)
        pcid = self.pcid(cpu.loaded_asid, space, user_half=user_half)
        return self._pcids.cr3(pgd << 12, pcid, noflush=noflush and self.has_pcids)
