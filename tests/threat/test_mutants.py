"""The catalogue of mutants: each is one change, has one name, and is there where its element is."""

from __future__ import annotations

import re
from collections import Counter
from itertools import combinations

import pytest

from asikit.protocol import Protocol, ProtocolConfig
from asikit.threat import ALTERNATIVES, CATALOGUE, Design, Mutant, UnknownMutantError, has_element, mutant

ALONE, SIBLINGS = Design(Protocol(ProtocolConfig())), Design(Protocol(ProtocolConfig(smt=True)))
EVERY = (*CATALOGUE, *ALTERNATIVES)
FAMILIES = {"stun", "order", "flush", "taint", "interrupt", "kernel", "published", "alternative"}
PROMISES = ("no-unmapping", "no-shootdown", "boot-untainted", "no-core-scheduling")
"""What breaks each of `_owed`."""
NAMES = [each.name for each in EVERY]


def test_names() -> None:
    """Lower case with hyphens, each once; each says what it changes in one line of its own."""
    assert [name for name, count in Counter(NAMES).items() if count > 1] == []
    assert [name for name in NAMES if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)] == []
    says = [each.says for each in EVERY]
    assert len(set(says)) == len(says)
    assert [line for line in says if "\n" in line or line.endswith(".") or len(line) > 90] == []


def test_families() -> None:
    """All there are, and no other; alternatives are no mutants."""
    assert {each.family for each in CATALOGUE} == FAMILIES - {"alternative"}
    assert {each.family for each in ALTERNATIVES} == {"alternative"}


@pytest.mark.parametrize("name", NAMES)
def test_found_by_name(name: str) -> None:
    """Its variant, if it is of one, is an alternative that is there too."""
    found = mutant(name)
    assert found.name == name
    assert not found.variant or mutant(found.variant) in ALTERNATIVES


def test_a_name_that_is_not_there() -> None:
    """The nearest is named, and where the others are."""
    with pytest.raises(UnknownMutantError, match=r"no mutant 'no-verv'.*no-verw.*--list-mutants"):
        mutant("no-verv")


@pytest.mark.parametrize("name", [each.name for each in CATALOGUE])
def test_where_its_element_is(name: str) -> None:
    """Some design has each; what is about siblings is only there with them; nothing is lost by SMT but variants."""
    candidate = mutant(name)
    there = [has_element(design, candidate) for design in (ALONE, SIBLINGS)]
    assert any(there)
    if candidate.family == "stun":
        assert there[1]


@pytest.mark.parametrize("name", [each.name for each in CATALOGUE])
def test_it_is_a_change_of_a_copy(name: str) -> None:
    """The design stays as it was, and the same edit gives the same mutant again."""
    for design in (ALONE, SIBLINGS):
        candidate = mutant(name)
        base = candidate.base(design)
        before = dict(base.protocol.transitions)
        one, other = candidate.edit(base), candidate.edit(base)
        assert dict(base.protocol.transitions) == before
        assert dict(one.protocol.transitions) == dict(other.protocol.transitions)
        assert one.config == other.config
        assert has_element(design, candidate) == (
            dict(one.protocol.transitions) != before or one.config != base.config or _owed(one) != _owed(base)
        )


def _owed(design: Design) -> tuple[bool, ...]:
    """Return what the rest of the kernel owes, as far as it keeps it."""
    return design.unmapped, design.shootdown, design.boot_tainted, design.core_scheduling


@pytest.mark.parametrize("name", PROMISES)
def test_what_the_kernel_owes_is_one_promise_each(name: str) -> None:
    """The protocol is as it was, and one promise is broken."""
    edited = mutant(name).edit(SIBLINGS)
    assert edited.protocol is SIBLINGS.protocol
    assert _owed(edited) == tuple(each != name for each in PROMISES)


def test_no_two_are_the_same() -> None:
    """Each mutant is another design than every other one of its variant: with one thread or with two."""
    made = {each.name: [_made(design, each) for design in (ALONE, SIBLINGS)] for each in CATALOGUE}
    pairs = [(one, other) for one, other in combinations(CATALOGUE, 2) if one.variant == other.variant]
    assert [(one.name, other.name) for one, other in pairs if made[one.name] == made[other.name]] == []


def _made(design: Design, candidate: Mutant) -> object:
    """Return all that can be another in a mutant's design."""
    edited = candidate.edit(candidate.base(design))
    return dict(edited.protocol.transitions), edited.config, _owed(edited)
