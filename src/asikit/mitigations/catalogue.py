"""The mitigations that can be attacked: none, Linux's own, blanket, ASI, and ASI with one element removed."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from asikit.errors import nearest
from asikit.mitigations.errors import MitigationError
from asikit.mitigations.hardening import Hardening, hardening
from asikit.mitigations.work import Measure, load_mitigation
from asikit.protocol import AsiClass, Happening, Protocol, ProtocolConfig, Taint, blanket_config
from asikit.protocol.edits import with_transition
from asikit.protocol.operations import Assign, MicroOp, Request
from asikit.protocol.switching import flush_ops
from asikit.protocol.vocabulary import TAINT, TAINTS
from asikit.threat import Design, mutant

if TYPE_CHECKING:
    from asikit.machine.x86 import CpuModel
    from asikit.protocol import EffectKind, Transition
    from asikit.protocol.operations import Transitions

__all__ = ["Mitigation", "Setup", "mitigation", "mitigation_names"]


@dataclass(frozen=True)
class Setup(Design):
    """What a mitigation makes of a machine.

    :ivar smt: Whether the siblings of a core may both run.
    """

    smt: bool = field(kw_only=True)
    hardening: Hardening = field(default_factory=Hardening)

    @property
    def asi(self) -> bool:
        """Whether ASI is on."""
        return self.protocol.config.asi


class Build(typing.Protocol):
    """Makes a mitigation for a processor."""

    def __call__(self, cpu: CpuModel, *, smt: bool) -> Setup:
        """Return what the mitigation makes of a machine; `smt` is whether the siblings are to run."""
        ...


@dataclass(frozen=True)
class Mitigation:
    """A column of the matrix.

    :ivar says: What it is, in one line.
    :ivar build: Makes it for a processor.
    """

    name: str
    says: str
    build: Build


def mitigation(name: str) -> Mitigation:
    """Return a mitigation. Raises MitigationError with the nearest name if there is none."""
    for each in _ALL:
        if each.name == name:
            return each
    known = mitigation_names()
    raise MitigationError.usage(f'no mitigation "{name}"{nearest(name, known)} (there are {", ".join(known)})')


def mitigation_names() -> tuple[str, ...]:
    """Return the names of all mitigations, in the order of a table's columns."""
    return tuple(each.name for each in _ALL)


def _none(cpu: CpuModel, *, smt: bool) -> Setup:
    del cpu
    return Setup(Protocol(ProtocolConfig(asi=False)), smt=smt)


def _blanket(cpu: CpuModel, *, smt: bool) -> Setup:
    del smt  # it turns it off
    config = replace(blanket_config(), features=cpu.protocol_features, bugs=cpu.protocol_bugs)
    return Setup(Protocol(config), smt=False)


def _asi(cpu: CpuModel, *, smt: bool) -> Setup:
    return Setup(Protocol(_asi_config(cpu, smt=smt)), smt=smt)


def _asi_config(cpu: CpuModel, *, smt: bool) -> ProtocolConfig:
    classes = {AsiClass.USERSPACE, AsiClass.KVM} | ({AsiClass.IDLE} if smt else set())
    return ProtocolConfig(classes=frozenset(classes), features=cpu.protocol_features, bugs=cpu.protocol_bugs, smt=smt)


def _with_exit_flush(cpu: CpuModel, *, smt: bool) -> Setup:
    return Setup(Protocol(replace(_asi_config(cpu, smt=smt), flush_data_on_exit=True)), smt=smt)


def _linux(cpu: CpuModel, *, smt: bool) -> Setup:
    done = hardening(load_mitigation("linux"), cpu)
    config = ProtocolConfig(
        asi=False, pti=Measure.PTI in done.measures, features=cpu.protocol_features, bugs=cpu.protocol_bugs
    )
    protocol = Protocol(config)
    transitions = protocol.transitions
    for happening in dict.fromkeys(happening for happening, _ in done.flushes):
        kinds = tuple(kind for where, kind in done.flushes if where is happening)
        transitions = with_transition(transitions, _flushing(transitions[happening], kinds))
    transitions = _flushing_after_guests(transitions, done.after_guests)
    smt = smt and Measure.SMT_OFF not in done.measures
    return Setup(Protocol(config, transitions), smt=smt, hardening=done)


def _flushing(transition: Transition, kinds: tuple[EffectKind, ...]) -> Transition:
    """Return a transition with flushes at its end; before untrusted code, as the last thing that the kernel does."""
    ops = transition.ops
    if transition.name in {Happening.RETURN_USER, Happening.VM_ENTRY}:
        return replace(transition, ops=(*ops[:-1], *flush_ops(kinds), ops[-1]))
    return replace(transition, ops=(*ops, *flush_ops(kinds)))


def _flushing_after_guests(transitions: Transitions, kinds: tuple[EffectKind, ...]) -> Transitions:
    """Return transitions with flushes at the first return to user mode after a VM exit, and at no other.

    The mark between the two is Linux's per-CPU `x86_ibpb_exit_to_user` (arch_exit_to_user_mode_prepare(), before PTI's
    switch of page tables; vcpu_enter_guest() sets it). Without ASI nothing else uses the taints, which are a CPU's too.
    """
    if not kinds:
        return transitions
    mark = TAINT[Taint.GUEST_CONTROL]
    exit_, return_ = transitions[Happening.VM_EXIT], transitions[Happening.RETURN_USER]
    set_mark = MicroOp(name="mark_guest", why="a guest has trained", sets=(Assign(TAINTS, TAINTS | mark),))
    flush = (
        *(MicroOp(name=f"{kind}_after_guest", when=TAINTS.has(mark), asks=Request(kind)) for kind in kinds),
        MicroOp(name="clear_mark", when=TAINTS.has(mark), sets=(Assign(TAINTS, TAINTS.clear(mark)),)),
    )
    transitions = with_transition(transitions, replace(exit_, ops=(*exit_.ops, set_mark)))
    return with_transition(transitions, replace(return_, ops=(*flush, *return_.ops)))


def _wrong(*mutants: str) -> Build:
    """Return ASI got wrong, by mutants of the catalogue; where there is no such element nothing is missing."""

    def build(cpu: CpuModel, *, smt: bool) -> Setup:
        setup = _asi(cpu, smt=smt)
        for name in mutants:
            setup = mutant(name).edit(setup)
        return setup

    return build


_ALL = (
    Mitigation("none", "no mitigation at all", _none),
    Mitigation("linux", "what Linux does by default, with SMT off where that is a mitigation", _linux),
    Mitigation("blanket", "PTI, no SMT, predictors flushed at each entry, data at each return", _blanket),
    Mitigation("asi", "address space isolation", _asi),
    Mitigation(
        "asi-no-stun",
        "asi_exit does not stop the sibling",
        _wrong("no-stun", "no-stun-interrupt", "no-stun-acknowledgement"),
    ),
    Mitigation(
        "asi-no-ack",
        "asi_exit does not wait until the sibling has left untrusted code",
        _wrong("no-stun-acknowledgement"),
    ),
    Mitigation(
        "asi-no-predictor-flush",
        "the branch predictors are never flushed",
        _wrong("no-control-flush-on-exit", "no-control-flush-on-enter"),
    ),
    Mitigation("asi-no-buffer-flush", "the data side channels are never flushed", _wrong("no-data-flush")),
    Mitigation("asi-no-unmapping", "the restricted address spaces map sensitive memory", _wrong("no-unmapping")),
    Mitigation(
        "asi-no-nmi-reentry",
        "the return from a nested interrupt or NMI does not enter again",
        _wrong("no-reentry"),
    ),
    Mitigation(
        "asi-no-shootdown", "memory turns sensitive while TLBs still have its translation", _wrong("no-shootdown")
    ),
    Mitigation(
        "asi-exit-flush", "asi, with one more data flush on the way to unrestricted (an experiment)", _with_exit_flush
    ),
)
