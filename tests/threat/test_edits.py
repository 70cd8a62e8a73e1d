"""Edits: what each changes of a protocol's data, and that it changes nothing else."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asikit.protocol import (
    AsiClass,
    EffectKind,
    Happening,
    MicroOp,
    Protocol,
    ProtocolConfig,
    Role,
    Routine,
    Taint,
    blanket_config,
)
from asikit.protocol.errors import EditError, MissingRoleError
from asikit.protocol.expressions import ALWAYS
from asikit.protocol.taints import DATA_MASK
from asikit.protocol.vocabulary import TAINTS
from asikit.threat import Design
from asikit.threat.edits import (
    at_resume,
    exit_asks_own_taints,
    masking_taints,
    moved,
    of_policy,
    of_protocol,
    stays_restricted,
    taints_first,
    without,
    without_flush,
    without_guest_data,
)

ASI, SMT, BLANKET = (
    Design(Protocol(config)) for config in (ProtocolConfig(), ProtocolConfig(smt=True), blanket_config())
)
ONCE = [role for role in Role if len(SMT.protocol.having(role, optional=True)) == 1]
"""Roles of which there is one micro-operation."""
WITHIN = {role: SMT.protocol.having(role)[0].partition(".")[0] for role in ONCE}
BESIDE = [(role, other) for role, other in permutations(ONCE, 2) if WITHIN[role] == WITHIN[other]]
"""Two of them in the same transition."""


def names(design: Design, transition: str) -> list[str]:
    """Return the micro-operations of a transition."""
    return [op.name for op in design.protocol.transitions[transition].ops]


def changed(before: Design, after: Design) -> set[str]:
    """Return the transitions that differ."""
    return {name for name, each in after.protocol.transitions.items() if each != before.protocol.transitions.get(name)}


# Removing.


@pytest.mark.parametrize("role", ONCE)
def test_without_a_role(role: Role) -> None:
    """Its micro-operation is gone and all others are as they were; what the kernel owes is no part of it."""
    (path,) = SMT.protocol.having(role)
    transition, _, name = path.partition(".")
    edited = without(role)(SMT)
    assert changed(SMT, edited) == {transition}
    assert names(edited, transition) == [each for each in names(SMT, transition) if each != name]
    assert replace(edited, protocol=SMT.protocol) == SMT
    with pytest.raises(MissingRoleError):
        without(role)(edited)
    assert changed(edited, without(role, optional=True)(edited)) == set()


def test_without_a_role_in_some_transitions() -> None:
    """Only there."""
    edited = without(Role.LEAVE_UNTRUSTED, Happening.VM_EXIT)(SMT)
    assert changed(SMT, edited) == {Happening.VM_EXIT}
    left = edited.protocol.having(Role.LEAVE_UNTRUSTED)
    assert set(SMT.protocol.having(Role.LEAVE_UNTRUSTED)) - set(left) == {"vm_exit.leave_untrusted"}


def test_what_there_is_only_with_smt() -> None:
    """Without it there is no sibling to stop: an edit that may find nothing leaves the design as it is."""
    edit = without(Role.STUN_SIBLING, optional=True)
    assert changed(ASI, edit(ASI)) == set()
    assert changed(SMT, edit(SMT)) == {Routine.EXIT}
    with pytest.raises(MissingRoleError):
        without(Role.STUN_SIBLING)(ASI)


def test_without_a_primitive() -> None:
    """Of a flush, the one micro-operation that asks for it; a flush that lacks it stays as it is."""
    kind = EffectKind.VERW
    edited = without_flush(kind, Routine.FLUSH_DATA)(ASI)
    asked = [op.asks.kind for op in ASI.protocol.transitions[Routine.FLUSH_DATA].ops if op.asks is not None]
    left = [op.asks.kind for op in edited.protocol.transitions[Routine.FLUSH_DATA].ops if op.asks is not None]
    assert left == [each for each in asked if each is not kind]
    assert len(left) == len(asked) - 1
    assert changed(ASI, without_flush(kind, Routine.FLUSH_CONTROL_FOR_EXIT)(ASI)) == set()


# Moving.


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(("role", "other"), BESIDE)
def test_moving(role: Role, other: Role, *, first: bool) -> None:
    """Before or after another one of the same transition, with the rest in the order that it had."""
    (path,), (target,) = (SMT.protocol.having(each) for each in (role, other))
    (transition, _, name), (_, _, beside) = path.partition("."), target.partition(".")
    edited = moved(role, before=other)(SMT) if first else moved(role, after=other)(SMT)
    found = names(edited, transition)
    assert found.index(name) == found.index(beside) + (-1 if first else 1)
    assert [each for each in found if each != name] == [each for each in names(SMT, transition) if each != name]
    assert changed(SMT, edited) <= {transition}


def test_moving_what_is_not_there() -> None:
    """An error, unless it is optional: then nothing changes."""
    with pytest.raises(MissingRoleError):
        moved(Role.RELEASE_SIBLING, before=Role.FLUSH_DATA)(ASI)
    assert changed(ASI, moved(Role.RELEASE_SIBLING, before=Role.FLUSH_DATA, optional=True)(ASI)) == set()


def test_moving_one_of_several() -> None:
    """It must be said in which transition."""
    with pytest.raises(EditError, match="have the role SET_TARGET; say within which transition one moves"):
        moved(Role.SET_TARGET, after=Role.ENTER_TARGET)(ASI)


@pytest.mark.parametrize("routine", [Routine.FLUSH_CONTROL_FOR_EXIT, Routine.FLUSH_DATA])
def test_taints_cleared_before_the_flush(routine: Routine) -> None:
    """Right after the question whether there is anything to flush; doing it twice changes nothing more."""
    edited = of_protocol(lambda protocol: protocol)(ASI)
    edited = taints_first(routine)(edited)
    (clear,) = ASI.protocol.having(Role.CLEAR_TAINTS, routine)
    assert names(edited, routine)[1] == clear.partition(".")[2]
    assert sorted(names(edited, routine)) == sorted(names(ASI, routine))
    assert changed(edited, taints_first(routine)(edited)) == set()


# Replacing.


def test_at_resume() -> None:
    """The last check before untrusted code, on both ways there; without SMT it waits for nobody, and is left alone."""
    edited = at_resume(lambda op: (replace(op, waits=ALWAYS),))(SMT)
    assert changed(SMT, edited) == {Happening.RETURN_USER, Happening.VM_ENTRY}
    for name in (Happening.RETURN_USER, Happening.VM_ENTRY):
        waits = [op.waits is ALWAYS for op in edited.protocol.transitions[name].ops if op.role is Role.RESUME]
        assert waits == [True]
    assert changed(ASI, at_resume(lambda op: (op, MicroOp(name="more")))(ASI)) == set()


@given(
    st.sampled_from([Taint.KERNEL_DATA, Taint.USER_CONTROL, Taint.OTHER_MM_DATA, Taint.GUEST_DATA]), st.integers(0, 255)
)
def test_a_taint_that_is_never_kept(taint: Taint, taints: int) -> None:
    """Whatever the state, no assignment leaves a taint outside of the mask; the others are as they would be."""
    mask = ~taint
    before = [op for each in ASI.protocol.transitions.values() for op in each.ops]
    edited = of_protocol(lambda protocol: protocol)(masking_taints(mask)(ASI))
    after = [op for each in edited.protocol.transitions.values() for op in each.ops]
    env = [1] * 32
    env[TAINTS.index] = taints
    count = 0
    for old, new in zip(before, after, strict=True):
        for one, other in zip(old.sets, new.sets, strict=True):
            kept, given_ = other.value.compiled()(env), one.value.compiled()(env)
            assert kept == (given_ & int(mask) if one.field == TAINTS else given_)
            count += one.field == TAINTS
    assert count > 3


def test_a_class_policy() -> None:
    """The policy of one class is another one, and what is derived from it; other classes keep theirs."""
    edited = of_policy(AsiClass.USERSPACE, lambda policy: replace(policy, protect_data=Taint.KERNEL_DATA))(ASI)
    registry = edited.config.registry
    assert ASI.config.registry.policy(AsiClass.USERSPACE).protect_data != Taint.KERNEL_DATA
    assert registry.policy(AsiClass.USERSPACE).protect_data == Taint.KERNEL_DATA
    assert registry.policy(AsiClass.KVM) == ASI.config.registry.policy(AsiClass.KVM)
    assert edited.protocol.config is edited.config


def test_a_class_policy_keeps_other_edits() -> None:
    """A protocol that was edited before stays so."""
    cut = without(Role.FLUSH_DATA)(ASI)
    edited = of_policy(AsiClass.USERSPACE, lambda policy: replace(policy, protect_data=Taint.KERNEL_DATA))(cut)
    assert edited.protocol.having(Role.FLUSH_DATA, optional=True) == ()


def test_a_class_that_there_is_not() -> None:
    """Its policy is nobody's."""
    alone = Design(Protocol(ProtocolConfig(classes=frozenset({AsiClass.USERSPACE}))))
    assert of_policy(AsiClass.KVM, lambda policy: replace(policy, protect_data=Taint.KERNEL_DATA))(alone) is alone


def test_a_switch_of_mm_that_stays_restricted() -> None:
    """It exits only if tense, and goes to the idle domain otherwise; with SMT an exit has to stun the sibling."""
    edited = of_protocol(stays_restricted)(ASI)
    assert AsiClass.IDLE in edited.config.classes
    (path,) = edited.protocol.having(Role.EXIT_ON_MM_SWITCH)
    transition, _, name = path.partition(".")
    exits = next(op for op in edited.protocol.transitions[transition].ops if op.name == name)
    assert exits.when is not ALWAYS
    squash = names(edited, transition).index("squash") if "squash" in names(edited, transition) else -1
    enters = names(edited, transition).index("enter_idle")
    assert enters > names(edited, transition).index(name)
    assert enters > squash
    assert of_protocol(stays_restricted)(SMT) == SMT


def test_the_published_mask_of_data() -> None:
    """Neither flush nor squash clears GUEST_DATA; everything else they clear as before."""
    edited = of_protocol(lambda protocol: protocol.rewriting(without_guest_data))(ASI)
    (clear,) = edited.protocol.having(Role.CLEAR_TAINTS, Routine.FLUSH_DATA)
    op = next(each for each in edited.protocol.transitions[Routine.FLUSH_DATA].ops if clear.endswith(f".{each.name}"))
    env = [0] * 32
    env[TAINTS.index] = int(DATA_MASK | Taint.GUEST_DATA | Taint.USER_CONTROL)
    (left,) = [assign.value.compiled()(env) for assign in op.sets if assign.field == TAINTS]
    assert left == int(Taint.GUEST_DATA | Taint.USER_CONTROL)


def test_an_exit_that_asks() -> None:
    """One question more, at the front, once: a protocol that asks already stays as it is."""
    edited = of_protocol(exit_asks_own_taints)(SMT)
    assert names(edited, Routine.FLUSH_CONTROL_FOR_EXIT) == ["clean", *names(SMT, Routine.FLUSH_CONTROL_FOR_EXIT)]
    assert of_protocol(exit_asks_own_taints)(edited) == edited


@pytest.mark.parametrize("edit", [without(Role.FLUSH_DATA), moved(Role.SQUASH, after=Role.FLUSH_DATA)])
def test_another_mitigation_has_no_such_elements(edit: object) -> None:
    """Its edits are refused where they find nothing, rather than to leave it as it is in silence."""
    with pytest.raises(MissingRoleError):
        edit(BLANKET)  # type: ignore[operator]  # any edit
