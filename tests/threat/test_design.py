"""Designs and their mutants: one catalogue, for models of the proofs and for mitigations of the attacks."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.machine.x86 import Sharing, load_cpu
from asikit.mitigations import mitigation
from asikit.proofs import World
from asikit.protocol import Protocol, ProtocolConfig, blanket_config
from asikit.threat import (
    ALL_PREDICTORS,
    CATALOGUE,
    DATA,
    PREDICTORS,
    Design,
    ThreatError,
    assumed,
    has_element,
    mutant,
    nothing_is_sensitive,
)

if TYPE_CHECKING:
    from asikit.mitigations import Setup

ASI = Design(Protocol(ProtocolConfig(smt=True)))
CPU = load_cpu("skylake-6600u")


@pytest.mark.parametrize("name", [each.name for each in CATALOGUE])
def test_a_design_of_any_class(name: str) -> None:
    """A mutant of a model is a model, and has the same protocol as the mutant of the bare design."""
    world, edit = World(ASI.protocol, threads=2, nesting=0), mutant(name).edit
    assert isinstance(edit(world), World)
    assert edit(world).nesting == 0
    assert dict(edit(world).protocol.transitions) == dict(edit(ASI).protocol.transitions)


def built(name: str, *, smt: bool) -> Setup:
    """Return what a mitigation makes of a machine."""
    return mitigation(name).build(CPU, smt=smt)


WRONG = {
    "asi-no-stun": ("asi_exit.stun_sibling", "asi_exit.interrupt_sibling", "asi_exit.wait_for_sibling"),
    "asi-no-ack": ("asi_exit.wait_for_sibling",),
    "asi-no-predictor-flush": ("asi_exit.flush_control", "__asi_enter.flush_control"),
    "asi-no-buffer-flush": ("__asi_enter.flush_data",),
    "asi-no-nmi-reentry": ("asi_intr_exit.enter_again",),
}


@pytest.mark.parametrize("name", WRONG)
def test_mitigations_that_are_mutants(name: str) -> None:
    """The attacks' wrong ASIs lack just what their lines say."""
    expected = built("asi", smt=True).protocol
    for path in WRONG[name]:
        expected = expected.without(path)
    setup = built(name, smt=True)
    assert dict(setup.protocol.transitions) == dict(expected.transitions)
    assert (setup.unmapped, setup.shootdown, setup.smt) == (True, True, True)


def test_what_the_kernel_owes() -> None:
    """It can be left out of an attack's machine as out of a model."""
    plain = built("asi", smt=False)
    assert replace(built("asi-no-unmapping", smt=False), protocol=plain.protocol) == replace(plain, unmapped=False)
    assert replace(built("asi-no-shootdown", smt=False), protocol=plain.protocol) == replace(plain, shootdown=False)
    assert mutant("boot-untainted").edit(ASI) == replace(ASI, boot_tainted=False)


def test_core_scheduling_matters_to_siblings() -> None:
    """Without SMT there is nobody to schedule beside."""
    without = mutant("no-core-scheduling")
    assert not without.edit(ASI).core_scheduling
    alone = Design(Protocol(ProtocolConfig()))
    assert without.edit(alone).core_scheduling
    assert not has_element(alone, without)


def test_another_mitigation() -> None:
    """The blanket mitigation has none of the elements: one line says so."""
    with pytest.raises(ThreatError, match="no-verw is a mutant of ASI: use it with --mitigation asi"):
        mutant("no-verw").base(Design(Protocol(blanket_config())))


def test_the_assumed_structures() -> None:
    """H2 and H3, put into a CPU model: siblings share each structure, and its primitive alone empties it."""
    model = assumed(CPU)
    for name, (kind, _) in {**DATA, **PREDICTORS}.items():
        structure = getattr(model.structures, name)
        assert (structure.sharing, structure.cleared_by) == (Sharing.CORE, (str(kind),))
    assert ALL_PREDICTORS.isdisjoint(DATA)
    assert {name for name in ALL_PREDICTORS if name not in PREDICTORS} == {"pht"}


def test_nothing_is_sensitive() -> None:
    """Whatever is allocated."""
    assert nothing_is_sensitive(None) is False  # type: ignore[arg-type]  # it does not look
