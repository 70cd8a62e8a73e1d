"""Misuse raises an error with the rule's name, and the message says where and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.protocol import (
    ConfigError,
    Happening,
    MisuseError,
    Protocol,
    ProtocolConfig,
    ProtocolError,
    UnknownNameError,
)
from asikit.protocol.errors import (
    EnterFromInterruptError,
    EnterPreemptibleError,
    EnterTwiceError,
    ExitInCriticalSectionError,
    NestingTooDeepError,
    RelaxFromInterruptError,
    RelaxWhenRelaxedError,
    ReturnFromNestedInterruptError,
    SensitiveAccessInCriticalSectionError,
    SwitchInCriticalSectionError,
    UnbalancedInterruptExitError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

H = Happening
MISUSES: list[tuple[Sequence[str], type[MisuseError]]] = [
    (("asi_enter_userspace", "asi_enter_userspace"), EnterTwiceError),
    (("asi_enter_userspace", "asi_enter_kvm"), EnterTwiceError),
    (("asi_enter_userspace", "asi_intr_enter", "asi_enter_kvm"), EnterFromInterruptError),
    (("asi_relax",), RelaxWhenRelaxedError),
    (("asi_enter_userspace", "asi_relax", "asi_relax"), RelaxWhenRelaxedError),
    (("asi_enter_userspace", "asi_intr_enter", "asi_relax"), RelaxFromInterruptError),
    (("asi_enter_userspace", "asi_exit"), ExitInCriticalSectionError),
    (("asi_enter_userspace", H.EXPLICIT_EXIT), ExitInCriticalSectionError),
    (("asi_enter_userspace", H.UNMAPPED_TOUCH), SensitiveAccessInCriticalSectionError),
    (("asi_enter_userspace", H.CONTEXT_SWITCH), SwitchInCriticalSectionError),
    (("asi_enter_userspace", H.MM_SWITCH), SwitchInCriticalSectionError),
    (("asi_enter_userspace", H.RETURN_USER), EnterTwiceError),
    ((H.VM_ENTRY, H.INTERRUPT_ENTRY, H.RETURN_USER), EnterTwiceError),
    ((H.RETURN_USER, H.INTERRUPT_ENTRY, H.NESTED_NMI, H.RETURN_USER), ReturnFromNestedInterruptError),
    ((H.RETURN_USER, H.INTERRUPT_ENTRY, H.SYSCALL_ENTRY), RelaxFromInterruptError),
    ((H.RETURN_USER, H.NESTED_RETURN), UnbalancedInterruptExitError),
    ((H.RETURN_USER, H.INTERRUPT_ENTRY, *[H.NESTED_EXCEPTION] * 15), NestingTooDeepError),
]


@pytest.mark.parametrize(("steps", "error"), MISUSES)
def test_misuse_is_named(steps: Sequence[str], error: type[MisuseError]) -> None:
    """All steps but the last are legal; the last raises exactly the error of its rule."""
    protocol = Protocol(ProtocolConfig())
    state = protocol.initial()
    for name in steps[:-1]:
        state = protocol.run(state, name).state
    with pytest.raises(MisuseError) as caught:
        protocol.run(state, steps[-1])
    assert caught.type is error
    assert error.rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_message() -> None:
    """One line: the micro-operation, what it needs, what to do."""
    protocol = Protocol(ProtocolConfig())
    with pytest.raises(
        RelaxWhenRelaxedError, match=r"^asi_relax\.clear_target needs tense, which is false; relax only after an enter$"
    ):
        protocol.run(protocol.initial(), "asi_relax")


def test_enter_with_preemption_on() -> None:
    """The task could be moved to another CPU half-way."""
    protocol = Protocol(ProtocolConfig())
    state = protocol.initial()
    preemptible = state._replace(cpu=state.cpu._replace(preemptible=1))
    with pytest.raises(EnterPreemptibleError):
        protocol.run(preemptible, "asi_enter_kvm")


def test_a_recording_may_begin_in_the_middle() -> None:
    """Returns and entries whose counterpart was never seen are no misuse for a task that is relaxed."""
    protocol = Protocol(ProtocolConfig())
    for happening in Happening:
        protocol.happen(protocol.initial(), happening)


def test_only_a_waiting_thread_can_stop_waiting() -> None:
    """`stop_waiting` and `leave` are for threads that are just there."""
    protocol = Protocol(ProtocolConfig(smt=True))
    thread = protocol.initial_thread()
    with pytest.raises(MisuseError, match="not waiting to resume"):
        protocol.stop_waiting(thread)
    with pytest.raises(MisuseError, match="not waiting to resume"):
        protocol.stop_waiting(protocol.begin(thread, H.RETURN_USER))
    with pytest.raises(MisuseError, match="no handler's own code"):
        protocol.leave(thread)


def test_unknown_names() -> None:
    """A misspelt transition is answered with the nearest right one."""
    protocol = Protocol(ProtocolConfig())
    with pytest.raises(UnknownNameError, match=r"no transition called 'asi_exist'; did you mean 'asi_exit'\?"):
        protocol.run(protocol.initial(), "asi_exist")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"blanket": True}, "alternatives"),
        ({"asi": False, "blanket": True, "smt": True}, "disables SMT"),
        ({"max_nest_depth": 0}, "at least 1"),
    ],
)
def test_contradictory_configurations(settings: dict[str, int], message: str) -> None:
    """A configuration that contradicts itself is refused."""
    with pytest.raises(ConfigError, match=message):
        ProtocolConfig(**settings)  # type: ignore[arg-type]  # the settings are of several types


def test_errors_are_of_one_family() -> None:
    """One base for everything, so that a caller can catch it."""
    assert issubclass(MisuseError, ProtocolError)
    assert not issubclass(MisuseError, ValueError)
