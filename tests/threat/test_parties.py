"""Who may learn what: one relation, for proofs and attacks."""

from __future__ import annotations

import pytest

from asikit.attacks.vectors import Vector
from asikit.protocol import ProtocolConfig
from asikit.threat import EVERYBODY, FOLDED, KERNEL, Code, Owner, Party, may_learn, may_not_learn

CONFIG = ProtocolConfig()
OPEN = ProtocolConfig(kvm_protects_user_data=False)
A, B = Owner(Code.USER, "a"), Owner(Code.USER, "b")
EVERY_OWNER = (KERNEL, A, B, A.guest, B.guest)


@pytest.mark.parametrize("who", EVERY_OWNER)
def test_what_is_ones_own(who: Owner) -> None:
    """Everybody may learn its own data, and the kernel may learn all."""
    assert may_learn(who, who, CONFIG)
    assert may_learn(KERNEL, who, CONFIG)


@pytest.mark.parametrize("who", EVERY_OWNER[1:])
def test_untrusted_code(who: Owner) -> None:
    """Whatever is trusted, not the kernel's data, and nothing of another process or of its guest."""
    others = [owner for owner in EVERY_OWNER if owner.process != who.process]
    assert KERNEL in others
    for config in (CONFIG, OPEN):
        assert not any(may_learn(who, owner, config, trusting=True) for owner in others)


def test_a_process_and_its_own_guest() -> None:
    """The guest trusts its process; the process is hidden from it, unless the configuration or the model says not."""
    assert may_learn(A, A.guest, CONFIG)
    assert not may_learn(A.guest, A, CONFIG)
    assert may_learn(A.guest, A, OPEN)
    assert may_learn(A.guest, A, CONFIG, trusting=True)


@pytest.mark.parametrize(
    ("party", "hidden", "hidden_if_open"),
    [
        (Party.USER, Party.KERNEL | Party.OTHER, Party.KERNEL | Party.OTHER),
        (Party.GUEST, Party.KERNEL | Party.OTHER | Party.USER, Party.KERNEL | Party.OTHER),
        (Party.OTHER, EVERYBODY, EVERYBODY),
    ],
)
def test_parties(party: Party, hidden: Party, hidden_if_open: Party) -> None:
    """As seen from the loaded mm; others stand for several, who are hidden from one another."""
    assert may_not_learn(party, CONFIG) == hidden
    assert may_not_learn(party, OPEN) == hidden_if_open
    trusted = may_not_learn(party, CONFIG, trusting=True)
    assert trusted == (hidden & ~FOLDED if party in FOLDED else hidden)


@pytest.mark.parametrize("vector", Vector)
def test_every_vector_crosses_a_boundary(vector: Vector) -> None:
    """An attack from where the data may be learnt anyway would be none."""
    assert vector.pairs
    for attacker, victim in vector.pairs:
        assert attacker.code.is_untrusted
        assert not may_learn(attacker, victim, CONFIG)


def test_text() -> None:
    """Owners are named for people."""
    assert [str(owner) for owner in (KERNEL, A, A.guest)] == ["the kernel", "a", "the guest of a"]
    assert [party.label for party in Party] == ["another process", "the process", "its guest", "the kernel"]
