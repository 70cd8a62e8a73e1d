"""Every element of ASI is needed: without it something leaks that did not, and with SMT off the stun is not missed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.attacks import AttackVerdict, Cell, attack
from asikit.mitigations import catalogue as mitigations

if TYPE_CHECKING:
    from asikit.machine.x86 import CpuModel

_CPU = "skylake-6600u"
NEEDED = [
    ("asi-no-stun", "mds", "cross_thread"),
    ("asi-no-stun", "retbleed", "cross_thread"),
    ("asi-no-stun", "spectre_v2", "sibling_guest"),
    ("asi-no-ack", "mds", "cross_thread"),
    ("asi-no-ack", "l1tf", "sibling_guest"),
    ("asi-no-ack", "retbleed", "cross_thread"),
    ("asi-no-predictor-flush", "spectre_v2", "user_kernel"),
    ("asi-no-predictor-flush", "retbleed", "guest_host"),
    ("asi-no-predictor-flush", "spectre_v2_user", "user_user"),
    ("asi-no-predictor-flush", "vmscape", "guest_user"),
    ("asi-no-buffer-flush", "mds", "user_kernel"),
    ("asi-no-buffer-flush", "l1tf", "guest_host"),
    ("asi-no-buffer-flush", "mds", "guest_user"),
    ("asi-no-unmapping", "meltdown", "user_kernel"),
    ("asi-no-unmapping", "mds", "cross_thread"),
    ("asi-no-unmapping", "mds", "guest_host"),
    ("asi-no-unmapping", "spectre_v2", "user_kernel"),
    ("asi-no-nmi-reentry", "mds", "nmi"),
    ("asi-no-shootdown", "meltdown", "flip"),
]


@pytest.mark.parametrize(("mitigation", "vulnerability", "vector"), NEEDED)
def test_removing_an_element_leaks(mitigation: str, vulnerability: str, vector: str) -> None:
    """Without the element the attack leaks; with all of ASI it does not."""
    assert attack(Cell(vulnerability, vector, _CPU, mitigation)).verdict is AttackVerdict.LEAK
    assert attack(Cell(vulnerability, vector, _CPU, "asi")).verdict is AttackVerdict.NO_LEAK


@pytest.mark.parametrize("mitigation", ["asi-no-stun", "asi-no-ack"])
def test_without_siblings_the_stun_is_not_missed(mitigation: str) -> None:
    """On one thread the mutants of the stun are ASI."""
    assert attack(Cell("mds", "user_kernel", _CPU, mitigation)).verdict is AttackVerdict.NO_LEAK


def test_one_more_flush_stops_injection() -> None:
    """The experiment of theorem.md: a data flush on the way to unrestricted takes the attacker's values along."""
    for vector in ("user_kernel", "guest_host", "cross_thread"):
        assert attack(Cell("lvi", vector, _CPU, "asi")).verdict is AttackVerdict.LEAK
        assert attack(Cell("lvi", vector, _CPU, "asi-exit-flush")).verdict is AttackVerdict.NO_LEAK


def test_a_vmm_is_guarded_by_the_flush_of_its_own_domain(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a guest taught goes when its VMM's domain is entered (prevent_control of its policy), not when ASI exits."""
    asi = mitigations.mitigation("asi")
    for path, verdict in (
        ("__asi_enter.flush_control", AttackVerdict.LEAK),
        ("asi_exit.flush_control", AttackVerdict.NO_LEAK),
    ):

        def build(cpu: CpuModel, *, smt: bool, path: str = path) -> mitigations.Setup:
            setup = asi.build(cpu, smt=smt)
            return replace(setup, protocol=setup.protocol.without(path))

        monkeypatch.setattr(mitigations, "_ALL", (mitigations.Mitigation("without", "", build),))
        assert attack(Cell("vmscape", "guest_user", _CPU, "without")).verdict is verdict


ORDERS = [
    ("__asi_enter.release_sibling", "__asi_enter.flush_data", "mds", "cross_thread"),
    ("__asi_enter.release_sibling", "__asi_enter.flush_data", "l1tf", "sibling_guest"),
    ("asi_exit.flush_control", "asi_exit.stun_sibling", "spectre_v2", "cross_thread"),
    ("__asi_enter.flush_data", "__asi_enter.write_cr3", "mds", "nmi"),
    ("asi_exit.write_cr3", "asi_exit.flush_control", "spectre_v2", "nmi"),
]


@pytest.mark.parametrize(("moved", "before", "vulnerability", "vector"), ORDERS)
def test_a_wrong_order_leaks(
    moved: str, before: str, vulnerability: str, vector: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacker sees what is between any two steps: a window of one micro-operation is enough."""
    asi = mitigations.mitigation("asi")

    def build(cpu: CpuModel, *, smt: bool) -> mitigations.Setup:
        setup = asi.build(cpu, smt=smt)
        return replace(setup, protocol=setup.protocol.reordered(moved, before=before))

    monkeypatch.setattr(mitigations, "_ALL", (mitigations.Mitigation("wrong-order", "", build),))
    assert attack(Cell(vulnerability, vector, _CPU, "wrong-order")).verdict is AttackVerdict.LEAK
