"""All sequences of transitions on one CPU: the kernel's own KUnit invariants, and that taints never forget anything."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import pytest

from asikit.protocol import (
    ALL_TAINTS,
    AsiClass,
    Effect,
    EffectKind,
    Happening,
    MisuseError,
    Outcome,
    Protocol,
    ProtocolConfig,
    Space,
    State,
    Taint,
)
from asikit.protocol.expressions import Const
from asikit.protocol.invariants import step_invariants, taint_invariants
from asikit.protocol.operations import Assign, MicroOp
from asikit.protocol.vocabulary import DATA, TAINTS
from tests.protocol.exploring import env_of

if TYPE_CHECKING:
    from collections.abc import Iterator

NMI = "nmi that touches sensitive memory"
SQUASH = "asi_handle_switch_mm"
"""A switch of mm without the exit that precedes it (which makes the squashing moot): the taints alone have to do."""
FOREIGN = int(Space.IDLE)
"""Stands for the domain of the mm that was left by SQUASH: a restricted one that is nobody's target."""
ALPHABET = (
    "asi_enter_userspace",
    "asi_enter_kvm",
    "asi_exit",
    "asi_relax",
    Happening.MM_SWITCH,
    SQUASH,
    "asi_intr_enter",
    "asi_intr_exit",
    NMI,
)
DEPTH = 7
CONFIGS = {
    "published": ProtocolConfig(max_nest_depth=3),
    "guest may sample its VMM": ProtocolConfig(max_nest_depth=3, kvm_protects_user_data=False),
    "noflush": ProtocolConfig(max_nest_depth=3, noflush=True),
    "smt": ProtocolConfig(max_nest_depth=3, smt=True),
    "idle class": ProtocolConfig(max_nest_depth=3, classes=frozenset(AsiClass)),
    "one more flush on exit": ProtocolConfig(max_nest_depth=3, flush_data_on_exit=True),
}


class Residue(NamedTuple):
    """What really lingers, kept by the test: the truth that the taints are to cover."""

    taints: Taint = Taint.KERNEL_DATA

    def after(self, name: str, outcome: Outcome) -> Residue:
        """Return what lingers after a transition."""
        left = self.taints
        kinds = [effect.kind for effect in outcome.effects]
        for kind in kinds:
            if kind is EffectKind.IBPB:
                left &= ~(Taint.USER_CONTROL | Taint.GUEST_CONTROL | Taint.OTHER_MM_CONTROL)
            if kind is EffectKind.VERW:
                left &= ~(Taint.KERNEL_DATA | Taint.USER_DATA | Taint.GUEST_DATA | Taint.OTHER_MM_DATA)
        if name == "asi_enter_userspace":
            left |= Taint.USER_CONTROL | Taint.USER_DATA
        if name == "asi_enter_kvm":
            left |= Taint.GUEST_CONTROL | Taint.GUEST_DATA
        if name in (SQUASH, Happening.MM_SWITCH):
            left |= Taint.OTHER_MM_DATA if left & (Taint.USER_DATA | Taint.GUEST_DATA) else Taint(0)
            left |= Taint.OTHER_MM_CONTROL if left & (Taint.USER_CONTROL | Taint.GUEST_CONTROL) else Taint(0)
            left &= ~(Taint.USER_DATA | Taint.GUEST_DATA | Taint.USER_CONTROL | Taint.GUEST_CONTROL)
        if outcome.state.cpu.cr3 == Space.UNRESTRICTED:
            left |= Taint.KERNEL_DATA
        return Residue(left)


def happen(protocol: Protocol, state: State, name: str) -> Outcome:
    """Run a letter of the alphabet. Raises MisuseError."""
    if name == SQUASH:
        if state.is_tense:
            raise MisuseError("the kernel does not switch mm's there")
        outcome = protocol.run(state, SQUASH)
        left = {"curr_asi": FOREIGN, "cr3": FOREIGN} if state.is_restricted else {}
        return replace(outcome, state=outcome.state._replace(cpu=outcome.state.cpu._replace(**left)))
    if name != NMI:
        return protocol.run(state, name)
    effects: list[Effect] = []
    for happening in (Happening.NESTED_NMI, Happening.UNMAPPED_TOUCH, Happening.NESTED_RETURN):
        outcome = protocol.happen(state, happening)
        state = outcome.state
        effects += outcome.effects
    return Outcome(state, tuple(effects))


def closure(protocol: Protocol) -> Iterator[tuple[State, Residue, str, Outcome, Residue]]:
    """Yield every legal transition from every reachable state, with what lingers before and after."""
    start = (protocol.initial(), Residue())
    seen = {start}
    queue = deque([start])
    while queue:
        state, residue = queue.popleft()
        for name in ALPHABET:
            try:
                outcome = happen(protocol, state, name)
            except MisuseError:
                continue
            left = residue.after(name, outcome)
            yield state, residue, name, outcome, left
            if (outcome.state, left) not in seen:
                seen.add((outcome.state, left))
                queue.append((outcome.state, left))


def broken(protocol: Protocol) -> str:
    """Return the first thing found wrong in the closure: empty if nothing."""
    guards = [
        (invariant.name, invariant.guard.compiled())
        for invariant in (*taint_invariants(protocol.config), *step_invariants(protocol.config))
        if invariant.name != "sibling-stays-out"  # the sibling of a lone CPU stands still
    ]
    for _, _, name, outcome, left in closure(protocol):
        for invariant, holds in guards:
            if not holds(env_of(outcome.state)):
                return f"{invariant} after {name}"
        forgotten = left.taints & ~outcome.state.taints
        if forgotten:
            return f"{forgotten.name} forgotten after {name}"
    return ""


@pytest.mark.parametrize("name", CONFIGS)
def test_kunit_invariants_hold_in_the_closure(name: str) -> None:
    """After every transition from every reachable state, whatever the length: KUnit's invariants, and honest taints."""
    assert broken(Protocol(CONFIGS[name])) == ""


def test_kunit_invariants_hold_in_all_sequences() -> None:
    """The invariants hold in all sequences of up to DEPTH of the nine transitions, the illegal ones cut off."""
    protocol = Protocol(CONFIGS["published"])
    guards = [invariant.guard.compiled() for invariant in taint_invariants(protocol.config)]
    memo: dict[tuple[State, str], State | None] = {}

    def after(state: State, name: str) -> State | None:
        if (state, name) not in memo:
            try:
                memo[state, name] = happen(protocol, state, name).state
            except MisuseError:
                memo[state, name] = None
        return memo[state, name]

    def count(state: State, depth: int) -> int:
        assert all(holds(env_of(state)) for holds in guards)
        if depth == 0:
            return 1
        successors = (after(state, name) for name in ALPHABET)
        return 1 + sum(count(successor, depth - 1) for successor in successors if successor is not None)

    assert count(protocol.initial(), DEPTH) == 737_483


def test_the_closure_has_the_size_it_had() -> None:
    """A change of the protocol changes the number of reachable states and transitions; this is to be noticed."""
    transitions = list(closure(Protocol(CONFIGS["published"])))
    assert (len({(state, residue) for state, residue, *_ in transitions}), len(transitions)) == (81, 402)


# The prototype's bugs, put in on purpose.


def test_kvm_policy_that_replaces_instead_of_adding() -> None:
    """`=` where `|=` is meant loses GUEST_DATA: the guest's data is forgotten."""
    config = CONFIGS["published"]
    policy = config.default_policy(AsiClass.KVM)
    bug = replace(config, policies=((AsiClass.KVM, replace(policy, set=Taint.GUEST_CONTROL)),))
    assert broken(Protocol(bug)) == "GUEST_DATA forgotten after asi_enter_kvm"


def test_data_mask_without_guest_data() -> None:
    """GUEST_DATA missing from DATA_MASK: a switch of mm forgets that the guest's data is there."""
    published = Const(Taint.KERNEL_DATA | Taint.USER_DATA | Taint.OTHER_MM_DATA)

    def bug(_: str, op: MicroOp) -> MicroOp:
        if op.name == "squash_data":
            return replace(op, when=TAINTS.has(published))
        sets = tuple(
            Assign(assign.field, TAINTS.clear(published)) if assign.value == TAINTS.clear(DATA) else assign
            for assign in op.sets
        )
        return replace(op, sets=sets)

    assert broken(Protocol(CONFIGS["published"]).rewriting(bug)) == "OTHER_MM_DATA forgotten after asi_handle_switch_mm"


def test_six_taints_instead_of_seven() -> None:
    """A mask of ASI_NUM_TAINTS (6) bits drops OTHER_MM_CONTROL."""

    def bug(_: str, op: MicroOp) -> MicroOp:
        sets = tuple(
            Assign(assign.field, assign.value & 0b111111) if assign.field == TAINTS else assign for assign in op.sets
        )
        return replace(op, sets=sets)

    assert len(Taint) == int(ALL_TAINTS).bit_length() == 7
    assert (
        broken(Protocol(CONFIGS["published"]).rewriting(bug)) == "OTHER_MM_CONTROL forgotten after asi_handle_switch_mm"
    )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("maybe_flush_control_for_exit.clear_taints", "no-attacker-near-secrets"),
        ("asi_exit.flush_control", "no-attacker-near-secrets"),
        ("__asi_enter.flush_data", "no-attacker-near-secrets"),
        ("__asi_enter.flush_control", "no-attacker-near-user-data"),
        ("__asi_enter.set_taints", "USER_DATA|USER_CONTROL forgotten"),
        ("asi_exit.taint_kernel_data", "kernel-data-recorded-before-unrestricted"),
        ("asi_handle_switch_mm.squash_control", "OTHER_MM_CONTROL forgotten"),
        ("asi_handle_switch_mm.squash_data", "OTHER_MM_DATA forgotten"),
    ],
)
def test_removing_a_part_is_noticed(path: str, expected: str) -> None:
    """Each part of tainting is needed: without it a named invariant fails."""
    assert expected in broken(Protocol(CONFIGS["published"]).without(path))
