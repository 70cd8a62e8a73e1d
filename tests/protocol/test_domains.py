"""Classes and domains: registered once, counted, destroyed when all are out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from asikit.protocol import (
    AsiClass,
    ClassRegistry,
    DomainId,
    Domains,
    ProtocolConfig,
    Taint,
    TaintPolicy,
)
from asikit.protocol.errors import (
    ClassNotRegisteredError,
    ClassRegisteredError,
    ConfigError,
    DomainError,
    DomainInUseError,
    DomainOutOfMemoryError,
    InvalidPolicyError,
)

POLICY = ProtocolConfig().registry.policy(AsiClass.USERSPACE)
REGISTRY = ClassRegistry().register(AsiClass.USERSPACE, POLICY)
USER_OF_1 = DomainId(1, AsiClass.USERSPACE)


def test_a_class_is_registered_once() -> None:
    """-EEXIST for a second time; after unregistering, -EINVAL for whoever wants it."""
    with pytest.raises(ClassRegisteredError, match="class USERSPACE is registered already") as caught:
        REGISTRY.register(AsiClass.USERSPACE, POLICY)
    assert caught.value.errno_name == "EEXIST"
    gone = REGISTRY.unregister(AsiClass.USERSPACE)
    assert gone == ClassRegistry()
    with pytest.raises(ClassNotRegisteredError):
        gone.unregister(AsiClass.USERSPACE)
    assert gone.register(AsiClass.USERSPACE, POLICY) == REGISTRY


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (replace(POLICY, prevent_control=Taint(0)), "prevent_control has no control taint"),
        (replace(POLICY, protect_data=Taint.USER_CONTROL), "protect_data has no data taint"),
        (replace(POLICY, protect_data=POLICY.protect_data | Taint.USER_CONTROL), "which is not a data taint"),
        (replace(POLICY, set=Taint(128)), "set has bits 0x80 that are no taint"),
    ],
)
def test_a_policy_must_be_able_to_act(policy: TaintPolicy, message: str) -> None:
    """`prevent_control` without control bits or `protect_data` without data bits is refused."""
    with pytest.raises(InvalidPolicyError, match=message):
        ClassRegistry().register(AsiClass.KVM, policy)
    with pytest.raises(InvalidPolicyError, match=message):
        ProtocolConfig(policies=((AsiClass.KVM, policy),))


def test_a_policy_for_a_class_that_is_not_used() -> None:
    """A policy that would silently do nothing is refused."""
    with pytest.raises(ConfigError, match="not in classes: IDLE"):
        ProtocolConfig(policies=((AsiClass.IDLE, POLICY),))


def test_domains_are_counted() -> None:
    """One for each class in an mm; as many destroys as inits."""
    two = Domains(REGISTRY).init(USER_OF_1, pgd=100).init(USER_OF_1, pgd=None)
    domain = two.find(USER_OF_1)
    assert domain is not None
    assert (domain.pgd, domain.ref_count) == (100, 2)
    one = two.destroy(USER_OF_1, entered={USER_OF_1})
    with pytest.raises(DomainInUseError, match="domain userspace of mm 1 is still some CPU's curr_asi; exit it there"):
        one.destroy(USER_OF_1, entered={USER_OF_1})
    none = one.destroy(USER_OF_1, entered=())
    assert none == Domains(REGISTRY)
    with pytest.raises(DomainError, match="was never made"):
        none.destroy(USER_OF_1, entered=())


def test_two_mms_have_two_domains() -> None:
    """A domain is one class in one mm."""
    other = DomainId(2, AsiClass.USERSPACE)
    both = Domains(REGISTRY).init(other, pgd=200).init(USER_OF_1, pgd=100)
    assert [domain.id for domain in both.table] == [USER_OF_1, other]


def test_out_of_memory_leaves_nothing_behind() -> None:
    """The prototype falls through after -ENOMEM and copies entries through a NULL pgd; here there is no domain."""
    domains = Domains(REGISTRY)
    with pytest.raises(DomainOutOfMemoryError, match="no memory for page tables of domain userspace of mm 1"):
        domains.init(USER_OF_1, pgd=None)
    assert domains.find(USER_OF_1) is None
    assert domains.init(USER_OF_1, pgd=100).find(USER_OF_1) is not None


def test_class_must_be_registered() -> None:
    """-EINVAL."""
    with pytest.raises(ClassNotRegisteredError, match="class KVM is not registered"):
        Domains(REGISTRY).init(DomainId(1, AsiClass.KVM), pgd=100)


def test_with_asi_off_there_are_no_domains() -> None:
    """0 and NULL: nothing is made, nothing fails, not even for lack of memory."""
    off = Domains(ClassRegistry(), asi=False)
    assert off.init(USER_OF_1, pgd=None) == off == off.destroy(USER_OF_1, entered=())
