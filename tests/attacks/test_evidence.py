"""No leak is said only of attacks that took place; and what is in a vulnerability's file makes a difference."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asikit.attacks import AttackVerdict, Cell, attack, cells
from asikit.attacks.attacker import Attacker
from asikit.machine.kernel import SegmentationFault
from asikit.machine.x86 import load_cpu

_CPU = "skylake-6600u"


def _file(folder: Path, way: str) -> str:
    path = folder / "mine.toml"
    path.write_text(f'title = "mine"\ncpus = ["{_CPU}"]\n[[ways]]\n{way}', encoding="utf-8")
    return str(path)


def _attack(name: str, vector: str, mitigation: str = "none") -> AttackVerdict:
    return attack(Cell(name, vector, _CPU, mitigation)).verdict


LACKING = [
    ('mechanism = "bypass"\nstructures = ["store_buffer"]', "user_kernel", "no store of the victim's"),
    ('mechanism = "bypass"\nstructures = ["store_buffer"]', "guest_guest", "no store of the victim's"),
    ('mechanism = "inject"\nstructures = ["load_port"]\nsteered = true', "user_user", "no load of the victim's faults"),
    (
        'mechanism = "inject"\nstructures = ["load_port"]\nsteered = true',
        "guest_user",
        "no load of the victim's faults",
    ),
    (
        'mechanism = "deferred"\ndefers = "permission"\nmappings = "attacker"\nsteered = true',
        "guest_host",
        "no page tables",
    ),
    (
        'mechanism = "steer"\nbranch = "conditional"\nstructures = ["pht"]\ntag = "address"\nsteered = true',
        "user_user",
        "no bounds check",
    ),
    (
        'mechanism = "steer"\nbranch = "entry"\nstructures = ["pht"]\ntag = "address"\nsteered = true',
        "guest_host",
        "never came to look",
    ),
    (
        'mechanism = "sample"\nstructures = ["rsb"]\nholds = "addresses"',
        "user_kernel",
        "never got into what is sampled",
    ),
]


@pytest.mark.parametrize(("way", "vector", "reason"), LACKING)
@pytest.mark.parametrize("mitigation", ["none", "asi"])
def test_what_the_programs_lack_is_unknown(way: str, vector: str, reason: str, mitigation: str, tmp_path: Path) -> None:
    """Where the victim never comes to where the processor could go wrong, equal observations say nothing."""
    found = attack(Cell(_file(tmp_path, way), vector, _CPU, mitigation))
    assert found.verdict is AttackVerdict.UNKNOWN
    assert reason in found.reason


def test_a_position_without_a_program_is_unknown() -> None:
    """A vector for whose mechanism there is no program is unknown; one that it does not work from does not apply."""
    assert _attack("mds", "flip") is AttackVerdict.UNKNOWN
    assert _attack("meltdown", "nmi") is AttackVerdict.UNKNOWN
    for vulnerability, vector in (("meltdown", "cross_thread"), ("meltdown", "guest_host"), ("mds", "cross_core")):
        assert _attack(vulnerability, vector) is AttackVerdict.NOT_APPLICABLE


def test_a_way_without_a_program_is_unknown(tmp_path: Path) -> None:
    """Of two ways one did not leak: that says nothing of the other, for which there is no program."""
    pair = 'mechanism = "steer"\nbranch = "indirect"\nstructures = ["btb"]\ntag = "address"\nsteered = true\n'
    name = _file(tmp_path, f'{pair}[[ways]]\nmechanism = "sample"\nstructures = ["fill_buffer"]\nholds = "data"')
    found = attack(Cell(name, "flip", _CPU, "asi"))
    assert (found.verdict, found.way) == (AttackVerdict.UNKNOWN, "sample")
    assert _attack(name, "flip") is AttackVerdict.LEAK


def test_an_attack_that_is_cut_short_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the limit of a run, nor an attacker that dies, makes no leak of an attack that was not ended."""
    assert _attack("mds", "user_kernel", "asi") is AttackVerdict.NO_LEAK
    monkeypatch.setattr("asikit.attacks.verdict._LIMIT", 300)
    found = attack(Cell("mds", "user_kernel", _CPU, "asi"))
    assert (found.verdict, found.reason) == (
        AttackVerdict.UNKNOWN,
        "the attack did not come to its end: attacker does not come to its end",
    )
    monkeypatch.undo()

    def die(_attacker: Attacker) -> None:
        raise SegmentationFault(0, 11)

    monkeypatch.setattr(Attacker, "before", die)
    found = attack(Cell("mds", "user_kernel", _CPU, "asi"))
    assert (found.verdict, found.reason) == (
        AttackVerdict.UNKNOWN,
        "the attack did not come to its end: attacker ended with -11",
    )


def test_an_attacker_that_does_not_look_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal observations are none if there are none."""
    monkeypatch.setattr(Attacker, "after", lambda *_: None)
    found = attack(Cell("mds", "user_kernel", _CPU, "none"))
    assert (found.verdict, found.reason) == (
        AttackVerdict.UNKNOWN,
        "the attacker never came to look at what it had prepared",
    )


def test_a_victim_that_starves_is_unknown() -> None:
    """A mutant in which the attacker's CPU never lets the victim's go on has not been attacked."""
    found = attack(Cell("mds", "cross_thread", _CPU, "asi-no-nmi-reentry"))
    assert (found.verdict, found.reason) == (
        AttackVerdict.UNKNOWN,
        "the attack did not come to its end: the victim gets nowhere beside the attacker",
    )


@pytest.mark.parametrize("structure", ["store_buffer", "load_port", "fill_buffer", "l1d", "vector_registers"])
@pytest.mark.parametrize(
    "vector", ["user_kernel", "user_user", "guest_host", "guest_guest", "guest_user", "cross_thread", "nmi"]
)
def test_victims_leave_the_secret_everywhere(structure: str, vector: str, tmp_path: Path) -> None:
    """A victim loads its secret, stores it and computes with it: each structure alone is worth sampling."""
    name = _file(tmp_path, f'mechanism = "sample"\nstructures = ["{structure}"]\nholds = "data"')
    assert _attack(name, vector) is AttackVerdict.LEAK


_ALONE = ("user_kernel", "user_user", "guest_host", "guest_guest", "guest_user", "nmi")


@pytest.mark.parametrize("entries", [1, 12, 13, 16, 24, 4096])
def test_a_size_decides_no_verdict(entries: int, tmp_path: Path) -> None:
    """That other lines come after the secret's is no protection: what nothing clears leaks, however small it is."""
    text = Path("src/asikit/data/cpus/skylake-6600u.toml").read_text(encoding="utf-8")
    head, _, tail = text.partition("[structures.fill_buffer]")
    tail = re.sub(r"entries = \d+", f"entries = {entries}", tail, count=1)
    cpu = tmp_path / "mine-cpu.toml"
    cpu.write_text(f"{head}[structures.fill_buffer]{tail}", encoding="utf-8")
    assert load_cpu(cpu).structures.fill_buffer.entries == entries
    way = 'mechanism = "sample"\nstructures = ["fill_buffer"]\nholds = "data"\n'
    for clearing, verdict in (
        ("cleared_by = { fill_buffer = [] }", AttackVerdict.LEAK),
        ('cleared_by = { fill_buffer = ["verw"] }', AttackVerdict.NO_LEAK),
    ):
        path = tmp_path / "mine.toml"
        path.write_text(f'title = "mine"\ncpus = ["{cpu}"]\nbug = "mds"\n[[ways]]\n{way}{clearing}', encoding="utf-8")
        for vector in _ALONE:
            assert attack(Cell(str(path), vector, str(cpu), "asi")).verdict is verdict, (vector, clearing)


_UNCLEARED = ["l1d", "fill_buffer", "store_buffer", "load_port", "vector_registers", "divider", "staging_buffer"]


@pytest.mark.parametrize("structure", _UNCLEARED)
@pytest.mark.parametrize("vector", [*_ALONE, "cross_thread", "sibling_guest"])
def test_what_nothing_clears_leaks_under_asi(structure: str, vector: str, tmp_path: Path) -> None:
    """Wherever the victim fills it and the attacker reads it, one after the other or beside one another."""
    holds = "random" if structure == "staging_buffer" else "data"
    way = f'mechanism = "sample"\nstructures = ["{structure}"]\nholds = "{holds}"\n'
    name = _file(tmp_path, f"{way}cleared_by = {{ {structure} = [] }}")
    assert _attack(name, vector, "asi") is AttackVerdict.LEAK


_TERMINAL = """
mechanism = "terminal"
structures = ["l1d"]
holds = "data"
tag = "physical"
defers = "presence"
mappings = "physical"
steered = true
"""


def test_half_a_gadget_is_enough(tmp_path: Path) -> None:
    """A load of an address of the attacker's choice brings the secret into the L1D in a call that does not use it."""
    found = attack(Cell(_file(tmp_path, _TERMINAL + "half_gadget = true"), "user_kernel", _CPU, "none"))
    assert found.difference is not None
    assert found.difference.step == "cpu 0, after system call 1"
    found = attack(Cell(_file(tmp_path, _TERMINAL), "user_kernel", _CPU, "none"))
    assert found.difference is not None
    assert found.difference.step == "cpu 0, after system call 2"
    half = _file(tmp_path, _TERMINAL + "half_gadget = true")
    assert _attack(half, "user_kernel", "asi") is AttackVerdict.NO_LEAK
    assert _attack(half, "user_kernel", "asi-no-unmapping") is AttackVerdict.LEAK


def test_a_victim_that_is_not_steered_uses_its_own_pointer(tmp_path: Path) -> None:
    """A gadget that takes no address of the attacker's loads where the victim itself just loaded."""
    way = (
        'mechanism = "steer"\nbranch = "indirect"\nstructures = ["btb"]\ntag = "address"\nmappings = "victim"\n'
        'victims = ["kernel"]'
    )
    name = _file(tmp_path, way)
    found = attack(Cell(name, "user_kernel", _CPU, "none")).difference
    assert found is not None
    assert found.step == "cpu 0, after system call 2"  # the first does not use the secret
    assert _attack(name, "user_kernel", "asi") is AttackVerdict.NO_LEAK
    assert _attack(name, "user_kernel", "asi-no-predictor-flush") is AttackVerdict.LEAK


def test_whose_branches_go_wrong_is_the_files_to_say(tmp_path: Path) -> None:
    """Branch history of a process among a process' own targets, which no shipped vulnerability has."""
    way = (
        'mechanism = "steer"\nbranch = "indirect"\nstructures = ["bhb"]\ntag = "history"\nsteered = true\n'
        'victims = ["user"]'
    )
    assert _attack(_file(tmp_path, way), "user_user") is AttackVerdict.LEAK


def test_other_processes_memory_is_in_the_kernels_map(tmp_path: Path) -> None:
    """A deferred permission check reaches another process' page through the direct map; ASI's has no such page."""
    way = 'mechanism = "deferred"\ndefers = "permission"\nmappings = "attacker"\nsteered = true'
    name = _file(tmp_path, way)
    assert _attack(name, "user_user") is AttackVerdict.LEAK
    assert _attack(name, "user_user", "asi") is AttackVerdict.NO_LEAK
    assert _attack(name, "user_user", "asi-no-unmapping") is AttackVerdict.LEAK


def test_rows_are_positions_with_a_program() -> None:
    """A matrix has no rows that could only be unknown."""
    assert "flip" not in {cell.vector for cell in cells(("none",), vulnerability="mds")}


@pytest.mark.parametrize("vector", ["cross_thread", "sibling_guest"])
def test_a_return_stack_that_changes_hands(vector: str, tmp_path: Path) -> None:
    """CVE-2022-27672: who sleeps leaves its part of the return stack to its sibling. Linux and ASI refill it before."""
    way = (
        'mechanism = "steer"\nbranch = "return"\nstructures = ["rsb"]\ntag = "position"\nsteered = true\n'
        'victims = ["kernel"]'
    )
    path = tmp_path / "mine.toml"
    path.write_text(f'title = "mine"\ncpus = ["zen2-7452", "{_CPU}"]\n[[ways]]\n{way}', encoding="utf-8")
    row = {name: attack(Cell(str(path), vector, "zen2-7452", name)).verdict for name in ("none", "linux", "asi")}
    assert row == {"none": AttackVerdict.LEAK, "linux": AttackVerdict.NO_LEAK, "asi": AttackVerdict.NO_LEAK}
    assert _attack(str(path), vector) is AttackVerdict.NOT_APPLICABLE  # each of its threads has one of its own
