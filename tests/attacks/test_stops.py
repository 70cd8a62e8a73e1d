"""Why nothing leaked: what is said to have stopped an attack is what stopped it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from asikit.attacks import AttackVerdict, Cell, attack
from tests.attacks.test_promises import edited_ways

if TYPE_CHECKING:
    from pathlib import Path

STOPPED = [
    ("mds", "user_kernel", "skylake-6600u", "asi", {"verw"}),
    ("mds", "user_kernel", "skylake-6600u", "linux", {"verw"}),
    ("l1tf", "user_kernel", "skylake-6600u", "linux", {"invert_entries"}),
    ("l1tf", "guest_guest", "skylake-6600u", "linux", {"l1d_flush"}),
    ("meltdown", "user_kernel", "skylake-6600u", "asi", {"unmapped"}),
    ("meltdown", "user_kernel", "skylake-6600u", "linux", {"unmapped"}),
    ("div0", "user_kernel", "zen-1200", "asi", {"dummy_divide"}),
    ("retbleed", "user_kernel", "zen2-7452", "linux", {"no_return_prediction"}),
    ("retbleed", "user_kernel", "zen2-7452", "asi", {"ibpb", "unmapped"}),
    ("ssb", "user_user", "skylake-6600u", "linux", {"order_loads"}),
    ("gds", "user_kernel", "skylake-6600u", "linux", {"hides"}),
    ("vmscape", "guest_user", "zen3-5600x", "asi", {"ibpb"}),
    ("ibrs_scope", "user_kernel", "cascade-lake-4210r", "blanket", {"ibpb"}),
]


@pytest.mark.parametrize(("vulnerability", "vector", "cpu", "mitigation", "by"), STOPPED)
def test_what_stopped_it(
    vulnerability: str, vector: str, cpu: str, mitigation: str, by: set[str], tmp_path: Path
) -> None:
    """If all that is said to have stopped it fails, it leaks."""
    found = attack(Cell(vulnerability, vector, cpu, mitigation))
    assert found.verdict is AttackVerdict.NO_LEAK
    assert {stop.by for stop in found.stopped} >= by
    breaks = {name for stop in found.stopped for name in re.findall(r'breaks = \["(\w+)"\]', stop.unless)}
    survives: dict[str, set[str]] = {}
    for stop in found.stopped:
        for structure, primitive in re.findall(r'survives = \{ (\w+) = \["(\w+)"\] \}', stop.unless):
            survives.setdefault(structure, set()).add(primitive)
    lines = [f"breaks = {sorted(breaks)}".replace("'", '"')] if breaks else []
    if survives:
        inner = ", ".join(f"{name} = {sorted(kinds)}" for name, kinds in sorted(survives.items())).replace("'", '"')
        lines.append(f"survives = {{ {inner} }}")
    path = edited_ways(tmp_path, vulnerability, "\n".join(lines))
    assert attack(Cell(path, vector, cpu, mitigation)).verdict is AttackVerdict.LEAK, lines


def test_it_is_said_which_structure_and_which_step() -> None:
    """The micro-operation that emptied it, and what was in it."""
    found = attack(Cell("mds", "user_kernel", "skylake-6600u", "asi"))
    assert [stop.says for stop in found.stopped if "fill_buffer" in stop.says] == [
        "fill_buffer held the secret; maybe_flush_data.verw emptied it"
    ]
    found = attack(Cell("spectre_v2_user", "user_user", "skylake-6600u", "asi"))
    assert "btb held what was trained" in found.stopped[0].says
    assert found.to_dict(story=True)["stopped"][0]["by"] == "ibpb"
    assert "stopped" not in found.to_dict()


def test_siblings_that_are_stunned_or_off() -> None:
    """Beside the victim it is the stun, or that there is no sibling."""
    stopped = {
        name: {stop.by for stop in attack(Cell("mds", "cross_thread", "skylake-6600u", name)).stopped}
        for name in ("asi", "linux-nosmt")
    }
    assert "stun" in stopped["asi"]
    assert "smt_off" in stopped["linux-nosmt"]


def test_a_leak_was_not_stopped() -> None:
    """A leak has none, though something may have come in its way."""
    assert attack(Cell("mds", "user_kernel", "skylake-6600u", "none")).stopped == ()
