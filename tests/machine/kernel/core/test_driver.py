"""The driver against the protocol itself: the same micro-operations, states and effects."""

from __future__ import annotations

import random

import pytest

from asikit.machine.kernel import Machine, MachineConfig
from asikit.protocol import AsiClass, Happening, MisuseError, Protocol, ProtocolConfig, Space, State, blanket_config
from tests.machine.kernel.core.running import Recorder

CONFIGS = {
    "published": ProtocolConfig(),
    "generations": ProtocolConfig(noflush=True, exit_on_context_switch=False),
    "pti": ProtocolConfig(pti=True),
    "one class": ProtocolConfig(classes=frozenset({AsiClass.KVM})),
    "data flush on exit": ProtocolConfig(flush_data_on_exit=True, kvm_exit_on_user_return=True),
    "blanket": blanket_config(),
    "off": ProtocolConfig(asi=False),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_same_states_and_effects_as_happen(name: str) -> None:
    """Random walks over all happenings: what the machine does is what `Protocol.happen` says, and so is every CR3."""
    config = CONFIGS[name]
    protocol = Protocol(config)
    target = Machine(MachineConfig(asi=config.asi, protocol=config))
    recorder = Recorder()
    target.observe(recorder)
    kernel, cpu = target.kernel, target.kernel.cpu
    mm = kernel.contexts.new()
    context = kernel.contexts.of(mm)
    kernel.sched.switch_mm(context)
    if AsiClass.KVM in config.classes:
        kernel.domains.init(context, AsiClass.KVM)
    state = State(cpu.thread.cpu, cpu.thread.task, cpu.core.state)
    choose = random.Random(1).choice
    refused = 0
    for _ in range(600):
        happening = choose(list(Happening))
        recorder.effects.clear()
        try:
            outcome = protocol.happen(state, happening)
        except MisuseError as error:
            refused += 1
            with pytest.raises(type(error)):
                kernel.asi.run(happening)
            # A refused transition stays half-way; begin again from where it was.
            cpu.thread = cpu.thread._replace(cpu=state.cpu, task=state.task, frames=())
            cpu.core.state = state.core
            half = bool(state.cpu.user_cr3)
            cpu.hw.write_cr3(kernel.asi.cr3(cpu, Space(state.cpu.cr3), user_half=half))
            continue
        assert kernel.asi.run(happening)
        assert recorder.effects == [str(effect) for effect in outcome.effects]
        assert State(cpu.thread.cpu, cpu.thread.task, cpu.core.state) == outcome.state
        assert cpu.thread.frames == ()
        half = bool(outcome.state.cpu.user_cr3)
        assert cpu.hw.cr3 == kernel.asi.cr3(cpu, Space(outcome.state.cpu.cr3), user_half=half)
        state = outcome.state
    assert refused < 590, "the walk goes somewhere"


def test_points_are_named_by_micro_operations() -> None:
    """An observer sees the paths that the protocol's programs have, in their order."""
    target = Machine(MachineConfig(debug=True))
    recorder = Recorder()
    target.observe(recorder)
    kernel = target.kernel
    kernel.sched.switch_mm(kernel.contexts.of(kernel.contexts.new()))
    recorder.ops.clear()
    kernel.asi.run("asi_enter_userspace")
    paths = [op.path for op in kernel.protocol.program("asi_enter_userspace").ops]
    ran = [path for _, path in recorder.ops]
    assert ran == [path for path in paths if path in set(ran)]
    assert ran[0] == "asi_enter_userspace.set_target"
    assert "__asi_enter.write_cr3" in ran
    assert recorder.enters == [(0, "restricted userspace")]


def test_flushes_reach_the_core() -> None:
    """Each primitive that the protocol asks for is done by the core."""
    target = Machine(MachineConfig(debug=True))
    kernel = target.kernel
    kernel.sched.switch_mm(kernel.contexts.of(kernel.contexts.new()))
    kernel.asi.run("asi_enter_userspace")
    kernel.asi.run("asi_relax")
    kernel.asi.run("asi_exit")
    done = kernel.cpu.hw.core.done
    flushes = kernel.report().flushes
    assert flushes
    assert all(done[kind] == times == 1 for kind, times in flushes.items())
