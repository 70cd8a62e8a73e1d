"""Promises that verdicts rest on: each is a named one, which a vulnerability's file can break, and what then turns."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest

from asikit.attacks import AttackVerdict, Cell, attack
from asikit.attacks.vulnerability import Promise
from asikit.mitigations import Measure
from tests.attacks.test_measures import NEEDED

if TYPE_CHECKING:
    from pathlib import Path

COLUMNS = ("none", "linux", "blanket", "asi")


def _shipped(name: str) -> str:
    return (files("asikit") / "data" / "vulnerabilities" / f"{name}.toml").read_text(encoding="utf-8")


def edited_ways(folder: Path, name: str, line: str) -> str:
    """Return a shipped vulnerability's file with one more line in each of its ways."""
    text = _shipped(name)
    path = folder / f"{name}.toml"
    path.write_text(re.sub(r"^\[\[ways\]\]$", rf"[[ways]]\n{line}", text, flags=re.MULTILINE), encoding="utf-8")
    return str(path)


def _row(name: str, vector: str, cpu: str) -> dict[str, AttackVerdict]:
    return {column: attack(Cell(name, vector, cpu, column)).verdict for column in COLUMNS}


def _turned(name: str, edited: str, vector: str, cpu: str) -> set[str]:
    """Return the mitigations whose verdict another file turns, from NO LEAK to LEAK as all that turn."""
    before, after = _row(name, vector, cpu), _row(edited, vector, cpu)
    turned = {column for column in COLUMNS if before[column] is not after[column]}
    assert all((before[column], after[column]) == (AttackVerdict.NO_LEAK, AttackVerdict.LEAK) for column in turned), (
        before,
        after,
    )
    return turned


@pytest.mark.parametrize(("measure", "vulnerability", "vector", "cpu"), NEEDED)
def test_a_broken_measure_turns_what_rests_on_it(
    measure: Measure, vulnerability: str, vector: str, cpu: str, tmp_path: Path
) -> None:
    """Only Linux takes these measures, so its verdict alone turns."""
    edited = edited_ways(tmp_path, vulnerability, f'breaks = ["{measure}"]')
    assert _turned(vulnerability, edited, vector, cpu) == {"linux"}


@pytest.mark.parametrize("measure", [measure for measure, *_ in NEEDED if measure is not Measure.ORDER_LOADS])
def test_a_broken_measure_turns_nothing_else(measure: Measure, tmp_path: Path) -> None:
    """What rests on a flush does not care."""
    edited = edited_ways(tmp_path, "mds", f'breaks = ["{measure}"]')
    assert not _turned("mds", edited, "user_kernel", "skylake-6600u")


SURVIVES = [
    ("mds", "user_kernel", "skylake-6600u", '{ fill_buffer = ["verw"] }', {"linux", "blanket", "asi"}),
    # Of two that clear, both must fail.
    ("mds", "user_kernel", "skylake-6600u", '{ fill_buffer = ["l1d_flush"] }', set()),
    ("l1tf", "guest_guest", "skylake-6600u", '{ l1d = ["l1d_flush"] }', {"linux", "blanket", "asi"}),
    ("div0", "user_kernel", "zen-1200", '{ divider = ["dummy_divide"] }', {"linux", "blanket", "asi"}),
    ("bhi", "user_kernel", "cascade-lake-4210r", '{ bhb = ["bhb_clear"] }', {"linux", "blanket", "asi"}),
    # Post-barrier Spectre: Linux has IBRS there, and no IBPB at entry.
    ("retbleed", "user_kernel", "skylake-6600u", '{ btb = ["ibpb"] }', {"blanket", "asi"}),
    ("spectre_v2_user", "user_user", "skylake-6600u", '{ btb = ["ibpb"] }', {"linux", "blanket", "asi"}),
    ("vmscape", "guest_user", "zen3-5600x", '{ btb = ["ibpb"] }', {"linux", "blanket", "asi"}),
]


@pytest.mark.parametrize(("vulnerability", "vector", "cpu", "survives", "turned"), SURVIVES)
def test_what_a_barrier_leaves_turns_what_rests_on_it(
    vulnerability: str, vector: str, cpu: str, survives: str, turned: set[str], tmp_path: Path
) -> None:
    """A primitive that clears a part, or loses a race, is no reason for a verdict."""
    names = re.findall(r"(\w+) =", survives)
    text = _shipped(vulnerability)
    path = tmp_path / "mine.toml"
    ways = text.split("[[ways]]")
    about = [way + f"\nsurvives = {survives}\n" if f'"{names[0]}"' in way else way for way in ways[1:]]
    path.write_text("[[ways]]".join([ways[0], *about]), encoding="utf-8")
    assert _turned(vulnerability, str(path), vector, cpu) == turned


HIDDEN = [
    ("gds", "user_kernel", "skylake-6600u"),
    ("srbds", "user_kernel", "skylake-6600u"),
    ("zenbleed", "user_kernel", "zen2-7452"),
    ("its", "user_kernel", "cascade-lake-4210r"),
    ("its", "guest_host", "cascade-lake-4210r"),
]


@pytest.mark.parametrize(("vulnerability", "vector", "cpu"), HIDDEN)
def test_microcode_and_thunks_that_do_not_hold(vulnerability: str, vector: str, cpu: str, tmp_path: Path) -> None:
    """What Linux says of ITS rests on its thunks, and not on eIBRS, which ITS breaks."""
    text = _shipped(vulnerability).replace('breaks = ["isolate_modes"]\n', "")  # which one way of ITS has already
    edited = tmp_path / "mine.toml"
    edited.write_text(text.replace("\n[[ways]]", '\n[[ways]]\nbreaks = ["hides", "isolate_modes"]'), encoding="utf-8")
    assert _turned(vulnerability, str(edited), vector, cpu) == {"linux"}


@pytest.mark.parametrize(
    ("vulnerability", "vector", "turned"),
    [
        ("meltdown", "user_kernel", {"linux", "blanket", "asi"}),
        ("spectre_v1", "flip", {"asi"}),
        ("retbleed", "user_kernel", {"asi"}),
        ("mds", "user_kernel", set()),
    ],
)
def test_what_is_not_mapped_is_reached(vulnerability: str, vector: str, turned: set[str], tmp_path: Path) -> None:
    """A load that the page tables do not keep turns what rests on unmapping: PTI's verdicts, and ASI's."""
    edited = edited_ways(tmp_path, vulnerability, 'breaks = ["unmapped"]')
    assert _turned(vulnerability, edited, vector, "skylake-6600u") == turned


def test_all_promises_are_tried() -> None:
    """Every one that a file can name is broken above."""
    assert {str(promise) for promise in Promise} == {*(str(measure) for measure, *_ in NEEDED), "hides", "unmapped"}


def test_a_race_with_the_privilege_switch(tmp_path: Path) -> None:
    """CVE-2024-45332: eIBRS does not hold, and the flush at asi_exit does; if IBPB loses the race too, nothing does."""
    way = (
        'title = "mine"\ncpus = ["cascade-lake-4210r"]\n[[ways]]\nmechanism = "steer"\nbranch = "indirect"\n'
        'structures = ["btb"]\ntag = "address"\nsteered = true\nvictims = ["kernel"]\n'
    )
    path = tmp_path / "mine.toml"
    leaks = []
    for line in ("", 'breaks = ["isolate_modes"]\n', 'breaks = ["isolate_modes"]\nsurvives = { btb = ["ibpb"] }\n'):
        path.write_text(way + line, encoding="utf-8")
        row = _row(str(path), "user_kernel", "cascade-lake-4210r")
        leaks.append([column for column in COLUMNS if row[column] is AttackVerdict.LEAK])
    assert leaks == [["none"], ["none", "linux"], list(COLUMNS)]


TRAINED = 'mechanism = "steer"\nsteered = true\ntrained_by = "victim"\n'


@pytest.mark.parametrize(
    ("way", "vector", "asi"),
    [
        ('branch = "indirect"\nstructures = ["btb"]\ntag = "address"\nvictims = ["kernel"]', "user_kernel", "LEAK"),
        ('branch = "indirect"\nstructures = ["bhb"]\ntag = "history"\nvictims = ["kernel"]', "user_kernel", "LEAK"),
        ('branch = "indirect"\nstructures = ["btb"]\ntag = "address"\nvictims = ["user"]', "user_user", "LEAK"),
        ('branch = "return"\nstructures = ["btb"]\ntag = "address"\nvictims = ["kernel"]', "guest_host", "LEAK"),
        # The filter runs on the kernel's thread, and what it teaches is not flushed before the next branch.
        ('branch = "indirect"\nstructures = ["btb"]\ntag = "address"\nvictims = ["kernel"]', "cross_thread", "LEAK"),
        # The kernel is never unrestricted there with the secret mapped.
        ('branch = "indirect"\nstructures = ["btb"]\ntag = "address"\nvictims = ["kernel"]', "flip", "NO LEAK"),
    ],
)
def test_a_victim_that_trains_itself(way: str, vector: str, asi: str, tmp_path: Path) -> None:
    """Code of the attacker's choice in the victim trains after whatever barrier: flushing at exits is no help."""
    path = tmp_path / "mine.toml"
    path.write_text(f'title = "mine"\ncpus = ["skylake-6600u"]\n[[ways]]\n{TRAINED}{way}', encoding="utf-8")
    found = [str(attack(Cell(str(path), vector, "skylake-6600u", name)).verdict) for name in ("none", "asi")]
    assert found == ["LEAK", asi]
