"""What always holds, as data: named guards that tests, checkers, machines in debug mode and proofs share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.protocol.expressions import Const, Guard, Lookup
from asikit.protocol.switching import policy_table
from asikit.protocol.taints import Taint
from asikit.protocol.vocabulary import (
    CONTROL,
    CR3,
    CURR_ASI,
    DEPTH,
    NONE,
    RELAXED,
    SIBLING_STUNNED,
    SIBLING_UNTRUSTED,
    TAINT,
    TAINTS,
    TARGET,
    TENSE,
    UNRESTRICTED,
    UNTRUSTED,
)

if TYPE_CHECKING:
    from asikit.protocol.config import ProtocolConfig


@dataclass(frozen=True, slots=True)
class Invariant:
    """A guard that must be true, what it is called and what it says."""

    name: str
    says: str
    guard: Guard


def implies(condition: Guard, consequence: Guard) -> Guard:
    """Return the guard that the consequence holds if the condition does."""
    return ~condition | consequence


def taint_invariants(config: ProtocolConfig) -> tuple[Invariant, ...]:
    """Return the invariants of the kernel's KUnit test `asi_test.c`, true after every transition."""
    secret = Const(Taint.KERNEL_DATA | Taint.OTHER_MM_DATA, "KERNEL_DATA|OTHER_MM_DATA")
    own = Const(Taint.USER_CONTROL | Taint.GUEST_CONTROL, "USER_CONTROL|GUEST_CONTROL")
    feared = Taint.OTHER_MM_CONTROL
    if config.kvm_protects_user_data:
        feared |= Taint.GUEST_CONTROL
    return (
        Invariant(
            "no-attacker-near-secrets",
            "where the kernel's or another mm's data may linger, no training by this mm's untrusted code does",
            implies(TAINTS.has(secret), ~TAINTS.has(own)),
        ),
        Invariant(
            "no-other-mm-near-kernel-data",
            "where the kernel's data may linger, no other mm's training does",
            implies(TAINTS.has(TAINT[Taint.KERNEL_DATA]), ~TAINTS.has(TAINT[Taint.OTHER_MM_CONTROL])),
        ),
        Invariant(
            "no-attacker-near-user-data",
            "where user data may linger, no training by those it is protected from does",
            implies(TAINTS.has(TAINT[Taint.USER_DATA]), ~TAINTS.has(Const(feared, "feared control"))),
        ),
    )


def step_invariants(config: ProtocolConfig) -> tuple[Invariant, ...]:
    """Return the invariants that hold between any two micro-operations, for the thread whose fields are looked at."""
    data, control = policy_table(config, "protect_data"), policy_table(config, "prevent_control")
    return (
        Invariant(
            "restricted-is-recorded",
            "curr_asi is set whenever CR3 is restricted; never the reverse",
            implies(CR3.differs(UNRESTRICTED), CURR_ASI.differs(NONE)),
        ),
        Invariant(
            "control-flushed-before-unrestricted",
            "no untrusted training is left once CR3 is unrestricted",
            implies(CR3.equals(UNRESTRICTED), ~TAINTS.has(CONTROL)),
        ),
        Invariant(
            "kernel-data-recorded-before-unrestricted",
            "the KERNEL_DATA taint is set as long as CR3 is unrestricted",
            implies(CR3.equals(UNRESTRICTED), TAINTS.has(TAINT[Taint.KERNEL_DATA])),
        ),
        Invariant(
            "relaxed-is-not-nested",
            "nothing is counted outside of critical sections",
            implies(RELAXED, DEPTH.equals(0)),
        ),
        _untrusted(data, control),
        *(_sibling_invariants() if config.smt else ()),
    )


def _untrusted(data: Lookup, control: Lookup) -> Invariant:
    inside = TENSE & DEPTH.equals(0) & CURR_ASI.equals(TARGET) & CR3.equals(TARGET)
    clean = ~TAINTS.has(data) & ~TAINTS.has(control)
    return Invariant(
        "untrusted-runs-clean",
        "untrusted code runs in its restricted address space, with nothing it must not sample and no training it fears",
        implies(UNTRUSTED.differs(0), inside & clean),
    )


def _sibling_invariants() -> tuple[Invariant, ...]:
    dirty = CR3.equals(UNRESTRICTED) | TAINTS.has(TAINT[Taint.KERNEL_DATA])
    return (
        Invariant(
            "sibling-stays-out",
            "no untrusted code runs on the sibling while this thread is unrestricted or has not flushed since",
            implies(dirty, SIBLING_STUNNED.differs(0) & SIBLING_UNTRUSTED.equals(0)),
        ),
    )
