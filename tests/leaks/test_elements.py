"""Every element of ASI is needed: without it something leaks that did not, and with SMT off the stun is not missed."""

import pytest

from asikit.leaks import Cell, Verdict, attack

_CPU = "skylake-6600u"
NEEDED = [
    ("asi-no-stun", "mds", "cross_thread"),
    ("asi-no-stun", "retbleed", "cross_thread"),
    ("asi-no-ack", "mds", "cross_thread"),
    ("asi-no-predictor-flush", "spectre_v2", "user_kernel"),
    ("asi-no-predictor-flush", "retbleed", "guest_host"),
    ("asi-no-predictor-flush", "spectre_v2_user", "user_user"),
    ("asi-no-buffer-flush", "mds", "user_kernel"),
    ("asi-no-buffer-flush", "l1tf", "guest_host"),
    ("asi-no-unmapping", "meltdown", "user_kernel"),
    ("asi-no-unmapping", "spectre_v2", "user_kernel"),
    ("asi-no-nmi-reentry", "mds", "nmi"),
    ("asi-no-shootdown", "meltdown", "flip"),
]


@pytest.mark.parametrize(("mitigation", "vulnerability", "vector"), NEEDED)
def test_removing_an_element_leaks(mitigation: str, vulnerability: str, vector: str) -> None:
    """Without the element the attack leaks; with all of ASI it does not."""
    assert attack(Cell(vulnerability, vector, _CPU, mitigation)).verdict is Verdict.LEAK
    assert attack(Cell(vulnerability, vector, _CPU, "asi")).verdict is Verdict.NO_LEAK


@pytest.mark.parametrize("mitigation", ["asi-no-stun", "asi-no-ack"])
def test_without_siblings_the_stun_is_not_missed(mitigation: str) -> None:
    """On one thread the mutants of the stun are ASI."""
    assert attack(Cell("mds", "user_kernel", _CPU, mitigation)).verdict is Verdict.NO_LEAK


def test_one_more_flush_stops_injection() -> None:
    """The experiment of theorem.md: a data flush on the way to unrestricted takes the attacker's values along."""
    assert attack(Cell("lvi", "user_kernel", _CPU, "asi")).verdict is Verdict.LEAK
    assert attack(Cell("lvi", "user_kernel", _CPU, "asi-exit-flush")).verdict is Verdict.NO_LEAK
