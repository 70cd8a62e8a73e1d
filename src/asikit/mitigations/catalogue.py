"""The mitigations that can be attacked: none, Linux's own, blanket, ASI, and ASI with one element removed."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from asikit.errors import nearest
from asikit.mitigations.errors import MitigationError
from asikit.mitigations.hardening import Hardening, hardening
from asikit.mitigations.work import Measure, load_mitigation
from asikit.protocol import AsiClass, Happening, Protocol, ProtocolConfig, blanket_config
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
        transitions = with_transition(transitions, _with_last(transitions[happening], *flush_ops(kinds)))
    transitions = _flushing_first_after(transitions, done)
    return Setup(Protocol(config, transitions), smt=smt, hardening=done)


def _flushing_first_after(transitions: Transitions, done: Hardening) -> Transitions:
    """Return transitions with flushes at the first of a happening since one of others, and at no other one.

    The mark between the two is a CPU's, as Linux's `x86_ibpb_exit_to_user` (arch_exit_to_user_mode_prepare(), before
    PTI's switch of page tables; vcpu_enter_guest() sets it) and `kvm_cpu_l1tf_flush_l1d`. Without ASI nothing else uses
    the taints, which are a CPU's too. What there is no taint left for is left out: so a verdict errs towards a leak.
    """
    kinds: dict[tuple[Happening, tuple[Happening, ...]], list[EffectKind]] = {}
    for happening, before, kind in done.first_after:
        kinds.setdefault((happening, before), []).append(kind)
    for mark, ((happening, before), flushes) in zip(TAINT.values(), kinds.items(), strict=False):
        name = f"after_{before[0]}"
        for each in before:
            sets = MicroOp(name=f"mark_{happening}_{name}", sets=(Assign(TAINTS, TAINTS | mark),))
            transitions = with_transition(transitions, _with_last(transitions[each], sets))
        flush = (
            *(MicroOp(name=f"{kind}_{name}", when=TAINTS.has(mark), asks=Request(kind)) for kind in flushes),
            MicroOp(name=f"clear_{name}", when=TAINTS.has(mark), sets=(Assign(TAINTS, TAINTS.clear(mark)),)),
        )
        transition = transitions[happening]
        if happening is Happening.RETURN_USER:
            transition = replace(transition, ops=(*flush, *transition.ops))
        else:
            transition = _with_last(transition, *flush)
        transitions = with_transition(transitions, transition)
    return transitions


def _linux_nosmt(cpu: CpuModel, *, smt: bool) -> Setup:
    setup = _linux(cpu, smt=smt)
    return replace(setup, smt=smt and Measure.SMT_OFF not in setup.hardening.measures)


def _with_last(transition: Transition, *ops: MicroOp) -> Transition:
    """Return a transition with more at its end; before untrusted code, as the last thing that the kernel does."""
    if transition.name in {Happening.RETURN_USER, Happening.VM_ENTRY}:
        return replace(transition, ops=(*transition.ops[:-1], *ops, transition.ops[-1]))
    return replace(transition, ops=(*transition.ops, *ops))


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
    Mitigation("linux", "what Linux does by default (mitigations=auto, which leaves SMT on)", _linux),
    Mitigation("linux-nosmt", "linux, with SMT off where that is a mitigation (mitigations=auto,nosmt)", _linux_nosmt),
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
