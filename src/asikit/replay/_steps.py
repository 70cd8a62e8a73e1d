"""One event through the protocol, whatever the recording has missed.

A recording begins and ends in the middle of things, and its writer may have lost events; the protocol refuses
sequences that cannot happen. What is done about those is decided here, once, for the reference and for the table:

* An entry from untrusted code while the state says that the kernel runs: the return before it was not recorded. It is
  made up, asking for no effects, and the entry follows.
* Anything else that the protocol refuses: the state says that untrusted code runs, or that handlers are open which are
  not, so an entry or a return was not recorded. The task's critical section is forgotten and the event follows.
* If the protocol refuses even that, nothing happens.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from asikit.protocol import (
    AsiClass,
    Effect,
    ExitReason,
    Happening,
    MisuseError,
    Outcome,
    Protocol,
    ProtocolConfig,
    ProtocolError,
    Space,
    State,
    space_of,
)
from asikit.replay.errors import PolicyError
from asikit.replay.policy import ExitOn, MechanismKind, Policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.protocol import TaskState

__all__ = ["EventStep", "Stepper", "check_policy", "protocol_config"]

_RETURN_BEFORE: Mapping[Happening, tuple[AsiClass, Happening]] = MappingProxyType(
    {
        Happening.SYSCALL_ENTRY: (AsiClass.USERSPACE, Happening.RETURN_USER),
        Happening.EXCEPTION_ENTRY: (AsiClass.USERSPACE, Happening.RETURN_USER),
        Happening.INTERRUPT_ENTRY: (AsiClass.USERSPACE, Happening.RETURN_USER),
        Happening.NMI_ENTRY: (AsiClass.USERSPACE, Happening.RETURN_USER),
        Happening.VM_EXIT: (AsiClass.KVM, Happening.VM_ENTRY),
    }
)
"""The class of the domain that an entry comes from, and the return that must have come before it."""

_DOMAIN_OF = MappingProxyType(
    {happening: asi_class for happening, (asi_class, _) in _RETURN_BEFORE.items()}
    | {Happening.RETURN_USER: AsiClass.USERSPACE, Happening.VM_ENTRY: AsiClass.KVM}
)
"""The class of the domain that a crossing comes from or goes to."""


def protocol_config(policy: Policy, classes: frozenset[AsiClass]) -> ProtocolConfig:
    """Return the protocol's configuration under a policy.

    :param classes: The classes of untrusted domains to protect from.
    """
    mechanism = policy.mechanism
    return ProtocolConfig(
        asi=mechanism.kind is MechanismKind.ASI,
        blanket=mechanism.kind is MechanismKind.BLANKET,
        classes=classes,
        features=frozenset(policy.cpu.features),
        bugs=frozenset(policy.cpu.bugs),
        rsb_fill=policy.cpu.rsb_fill,
        smt=mechanism.smt,
        pti=mechanism.pti,
        noflush=mechanism.noflush,
        exit_on_context_switch=mechanism.exit_on is ExitOn.CONTEXT_SWITCH,
        exit_on_tlb_flush=frozenset(Happening[f"TLB_FLUSH_{flush.name}"] for flush in mechanism.exit_on_tlb_flush),
        kvm_protects_user_data=mechanism.kvm_protects_user_data,
        kvm_exit_on_user_return=mechanism.kvm_exit_on_user_return,
    )


def check_policy(policy: Policy, classes: frozenset[AsiClass]) -> None:
    """Refuse a policy that contradicts itself.

    :raises PolicyError: Its mechanism is impossible, for example a blanket mitigation with a sibling thread.
    """
    try:
        protocol_config(policy, classes)
    except ProtocolError as error:
        raise PolicyError(f"policy {policy.name}: mechanism: {error}") from error


@dataclass(frozen=True, slots=True)
class EventStep:
    """What one event leads to.

    :ivar amended: The recording lacks something before this event.
    """

    state: State
    effects: tuple[Effect, ...] = ()
    exit_reason: ExitReason | None = None
    amended: bool = False


class Stepper:
    """The protocol under a policy, total: defined for every state and event."""

    def __init__(self, policy: Policy, classes: frozenset[AsiClass]) -> None:
        self._protocol = Protocol(protocol_config(policy, classes))
        self._asi = policy.mechanism.kind is MechanismKind.ASI
        self._pti = policy.mechanism.pti
        self._classes = classes

    def initial(self) -> State:
        """Return the state of a CPU before its first event: in the kernel, unrestricted, relaxed."""
        return self._protocol.initial()

    def initial_task(self) -> TaskState:
        """Return the state of a task not seen before: relaxed."""
        return self._protocol.initial_task()

    def save_task(self, state: State) -> TaskState:
        """Return what a task takes with it when it leaves the CPU."""
        return self._protocol.save_task(state)

    def load_task(self, state: State, task: TaskState) -> State:
        """Return the state with another task on the CPU."""
        return self._protocol.load_task(state, task)

    @staticmethod
    def space(state: State) -> Space:
        """Return the address space whose lack of memory a touch would meet."""
        return Space(state.cpu.curr_asi)

    def step(self, state: State, happening: Happening) -> EventStep:
        """Return what an event leads to."""
        domain = _DOMAIN_OF.get(happening)
        if domain is not None and domain not in self._classes and not self._asi:
            # Without ASI the protocol has no classes: leave out the crossings of domains that are not protected from.
            return EventStep(state)
        if happening in _RETURN_BEFORE and domain in self._classes and not self._untrusted(state, domain):
            returned = self._try(self._forget(state), _RETURN_BEFORE[happening][1])
            return self._amended(returned.state if returned else state, happening)
        outcome = self._try(state, happening)
        if outcome is None:
            return self._amended(self._forget(state), happening, otherwise=state)
        return EventStep(outcome.state, outcome.effects, outcome.exit_reason)

    def _untrusted(self, state: State, domain: AsiClass) -> bool:
        """Tell whether the state says that untrusted code of the domain runs, as far as it says so at all."""
        if self._asi:
            return state.in_critical_section and state.task.target == space_of(domain)
        return not self._pti or domain is not AsiClass.USERSPACE or bool(state.cpu.user_cr3)

    def _forget(self, state: State) -> State:
        return self._protocol.load_task(state, self._protocol.initial_task())

    def _try(self, state: State, happening: Happening) -> Outcome | None:
        try:
            return self._protocol.happen(state, happening)
        except MisuseError:
            return None

    def _amended(self, state: State, happening: Happening, otherwise: State | None = None) -> EventStep:
        outcome = self._try(state, happening)
        if outcome is None:
            return EventStep(otherwise or state, amended=True)
        return EventStep(outcome.state, outcome.effects, outcome.exit_reason, amended=True)
