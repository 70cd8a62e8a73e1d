"""What observers are told is enough to replay: the protocol over the events gives the machine's own counts."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from asikit.machine.kernel import Machine, Observer, Task
from asikit.protocol import AsiClass, EffectKind, Happening, Protocol, ProtocolConfig, Space, State, blanket_config
from asikit.trace import Region
from tests.machine.kernel.core.running import Program, machine, secret, spawn

if TYPE_CHECKING:
    from asikit.protocol import TaskState

ENTRIES = {
    "syscall": Happening.SYSCALL_ENTRY,
    "exception": Happening.EXCEPTION_ENTRY,
    "interrupt": Happening.INTERRUPT_ENTRY,
    "nmi": Happening.NMI_ENTRY,
}
NESTED = {
    "exception": Happening.NESTED_EXCEPTION,
    "interrupt": Happening.NESTED_INTERRUPT,
    "nmi": Happening.NESTED_NMI,
}
FLUSHES = {
    (False, False): Happening.TLB_FLUSH_USER,
    (True, False): Happening.TLB_FLUSH_KERNEL,
    (False, True): Happening.TLB_FLUSH_USER_RANGE,
    (True, True): Happening.TLB_FLUSH_KERNEL_RANGE,
}


class Replay(Observer):
    """Runs the protocol over the events as they come, one whole transition for each."""

    def __init__(self) -> None:
        self.effects: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.states: list[State] = []
        self.tasks: dict[Task, TaskState] = {}
        self.current: dict[int, Task] = {}

    def attached(self, machine: object) -> None:
        """Begin as the machine does."""
        assert isinstance(machine, Machine)
        self.kernel = machine.kernel
        self.protocol: Protocol = machine.kernel.protocol
        self.states = [self.protocol.initial() for _ in machine.kernel.cpus]

    def _run(self, cpu: int, happening: Happening) -> None:
        outcome = self.protocol.happen(self.states[cpu], happening)
        self.states[cpu] = outcome.state
        self.effects.update(str(effect) for effect in outcome.effects if effect.kind is not EffectKind.PAGE_FAULT)
        if outcome.exit_reason is not None:
            self.reasons[outcome.exit_reason.value] += 1

    def entry(self, cpu: int, kind: str, number: int) -> None:
        """Run it."""
        del number
        self._run(cpu, ENTRIES[kind])

    def nested_entry(self, cpu: int, kind: str, number: int) -> None:
        """Run it."""
        self._run(cpu, Happening.NESTED_PAGE_FAULT if (kind, number) == ("exception", 14) else NESTED[kind])

    def nested_return(self, cpu: int) -> None:
        """Run it."""
        self._run(cpu, Happening.NESTED_RETURN)

    def return_user(self, cpu: int, *, by_iret: bool) -> None:
        """Run it."""
        del by_iret
        self._run(cpu, Happening.RETURN_USER)

    def vm_entry(self, cpu: int) -> None:
        """Run it."""
        self._run(cpu, Happening.VM_ENTRY)

    def vm_exit(self, cpu: int, code: int) -> None:
        """Run it."""
        del code
        self._run(cpu, Happening.VM_EXIT)

    def touch(self, cpu: int, access: Any, vaddr: int, paddr: int) -> None:  # noqa: ANN401 - Access
        """Run it, if the restricted address space lacks the memory."""
        del access
        space = Space(self.states[cpu].cpu.curr_asi)
        region = self.kernel.layout.region_of(vaddr)
        lacks = (region is Region.DIRECT_MAP and self.kernel.direct_map.pageblocks.sensitive(paddr >> 12)) or (
            region is Region.USER and space is Space.KVM
        )
        if lacks and space is not Space.UNRESTRICTED:
            self._run(cpu, Happening.UNMAPPED_TOUCH)

    def task_switch(self, cpu: int, task: Task) -> None:
        """Run it, with the tasks' own parts of the state."""
        self._run(cpu, Happening.CONTEXT_SWITCH)
        if cpu in self.current:
            self.tasks[self.current[cpu]] = self.protocol.save_task(self.states[cpu])
        self.current[cpu] = task
        saved = self.tasks.get(task, self.protocol.initial_task())
        self.states[cpu] = self.protocol.load_task(self.states[cpu], saved)

    def mm_switch(self, cpu: int, mm: int) -> None:
        """Run it."""
        del mm
        self._run(cpu, Happening.MM_SWITCH)

    def tlb_flush(self, cpu: int, *, kernel: bool, pages: int | None) -> None:
        """Run it."""
        self._run(cpu, FLUSHES[kernel, pages is not None])


MACHINES: dict[str, dict[str, Any]] = {
    "published": {},
    "switch of mm only": {"protocol": ProtocolConfig(exit_on_context_switch=False)},
    "generations": {"protocol": ProtocolConfig(noflush=True, exit_on_context_switch=False)},
    "pti": {"protocol": ProtocolConfig(pti=True)},
    "kvm only": {"protocol": ProtocolConfig(classes=frozenset({AsiClass.KVM}))},
    "blanket": {"asi": False, "protocol": blanket_config()},
    "off": {"asi": False},
    "three CPUs": {"cpus": 3},
    "three CPUs, another schedule": {"cpus": 3, "seed": 9},
}


@pytest.mark.parametrize("name", MACHINES)
def test_same_effects_and_exits(name: str) -> None:
    """System calls, faults in user and kernel mode, guests, interrupts, blocking, several processes and threads."""
    target = machine(timer_period=150, **MACHINES[name])
    replay = Replay()
    target.observe(replay)
    kernel = target.kernel
    address = secret(target)
    guests = AsiClass.KVM in kernel.protocol.config.classes

    def program(user: Program) -> None:
        def guest() -> None:
            kernel.domains.init(kernel.contexts.of(user.mm), AsiClass.KVM)
            for index in range(3):
                kernel.entry.vm_entry()
                kernel.entry.vm_exit(1)
                kernel.irq_enable()
                if index == 1:
                    kernel.access.load_u64(address)

        for _ in range(3):
            user.getpid()
            user.touch(address)
            mapped = user.mmap(8192)
            user.store(mapped, b"hello")
            user.call(partial(kernel.uaccess.copy_to_user, mapped + 4096, b"there"))
            user.compute(100)
            user.munmap(mapped, 8192)
        if guests:
            user.call(guest, 16)

    first = spawn(target, program, cpu=0)
    spawn(target, program, comm="other", cpu=target.config.cpus - 1)
    if target.config.cpus > 1:
        spawn(target, program, mm=first.mm, comm="thread", cpu=1)
    report = target.run()
    machine_effects = Counter({str(effect): times for effect, times in kernel.tally.effects.items()})
    assert replay.effects == machine_effects
    assert replay.reasons == {reason: times for reason, times in report.exits_by_reason.items() if times}
    assert report.exits > 0 or not target.config.asi
    for cpu in kernel.cpus:
        assert replay.states[cpu.number].cpu.taints == cpu.thread.cpu.taints
