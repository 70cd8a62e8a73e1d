"""One attack: what its verdict rests on."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import msgspec
import pytest

from asikit.attacks import (
    SECRETS,
    AttackVerdict,
    Cell,
    LeakError,
    attack,
    cells,
    cpu_for,
    load_vulnerability,
    scenario_text,
    vulnerability_names,
)
from asikit.machine.kernel import Machine, load_scenario
from asikit.machine.x86 import Bug, CpuModel, cpu_names, load_cpu

_MATRIX = import_module("asikit.attacks.matrix")
_SAMPLED = """
title = "tomorrow's"
cpus = ["zen3-5600x"]

[[ways]]
mechanism = "sample"
structures = ["divider"]
holds = "data"
"""


def test_the_values_of_a_leak_are_the_secrets() -> None:
    """What differs is the secret itself, in both runs, at the first system call."""
    found = attack(Cell("meltdown", "user_kernel", "skylake-6600u", "none")).difference
    assert found is not None
    assert found.values == (SECRETS[0].hex(), SECRETS[1].hex())
    assert found.step == "cpu 0, after system call 1"


def test_equal_secrets_never_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs with one secret are one run: nothing but the secret makes a difference."""
    monkeypatch.setattr("asikit.attacks.verdict.SECRETS", (SECRETS[0], SECRETS[0]))
    for vulnerability in ("meltdown", "mds", "spectre_v2", "l1tf"):
        assert attack(Cell(vulnerability, "user_kernel", "skylake-6600u", "none")).verdict is AttackVerdict.NO_LEAK
    assert attack(Cell("mds", "cross_thread", "skylake-6600u", "none")).verdict is AttackVerdict.NO_LEAK


@pytest.mark.parametrize("name", vulnerability_names())
def test_a_cpu_that_lacks_the_bug_does_not_leak(name: str) -> None:
    """What a processor lacks is not applicable; generic lacks all but L1TF, MDS and, standing for Atoms, RFDS."""
    vulnerability = load_vulnerability(name)
    other = "zen3-5600x" if name in {"l1tf", "mds", "rfds"} else "generic"
    if vulnerability.not_expressible:
        assert attack(Cell(name, "user_kernel", other, "none")).verdict is AttackVerdict.UNKNOWN
    else:
        assert not vulnerability.concerns(load_cpu(other))
        found = attack(Cell(name, "user_kernel", other, "none"))
        assert (found.verdict, found.reason) == (AttackVerdict.NOT_APPLICABLE, f"{other} does not have it")


def test_a_vulnerability_of_ones_own(tmp_path: Path) -> None:
    """A file is enough: the verdict follows from the structure, and from what the CPU model says clears it."""
    path = tmp_path / "tomorrow.toml"
    path.write_text(_SAMPLED, encoding="utf-8")
    cell = Cell(str(path), "user_kernel", "zen3-5600x", "none")
    assert attack(cell).verdict is AttackVerdict.LEAK
    # DIV0 is not among this CPU's bugs, so ASI's flush has no division: nothing clears the divider.
    assert attack(Cell(str(path), "user_kernel", "zen3-5600x", "asi")).verdict is AttackVerdict.LEAK
    assert cpu_for(load_vulnerability(str(path))) == "zen3-5600x"


def test_a_flush_is_as_good_as_the_cpu_model_says(tmp_path: Path) -> None:
    """VERW that does not clear the fill buffers leaves MDS open under ASI."""
    text = Path("src/asikit/data/cpus/skylake-6600u.toml").read_text(encoding="utf-8")
    head, tail = text.split("[structures.fill_buffer]")
    path = tmp_path / "old-microcode.toml"
    path.write_text(head + "[structures.fill_buffer]" + tail.replace('["verw"]', "[]", 1), encoding="utf-8")
    assert attack(Cell("mds", "user_kernel", str(path), "asi")).verdict is AttackVerdict.LEAK


def test_a_finding_is_saved_as_a_scenario(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The scenario that is saved runs the attack, and prints what the attacker sees: the secret."""
    finding = attack(Cell("meltdown", "user_kernel", "skylake-6600u", "asi-no-unmapping"))
    path = tmp_path / "finding.py"
    path.write_text(scenario_text(finding), encoding="utf-8")
    scenario = load_scenario(path)
    scenario.run(Machine(scenario.config))
    assert SECRETS[0].hex() in capsys.readouterr().out


def test_a_scenario_finds_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of one's own is found from any folder, whatever it is called."""
    folder = tmp_path / 'it\'s """\\mine'
    folder.mkdir()
    (folder / "tomorrow.toml").write_text(_SAMPLED, encoding="utf-8")
    monkeypatch.chdir(folder)
    finding = attack(Cell("tomorrow.toml", "user_kernel", "zen3-5600x", "asi"))
    Path("finding.py").write_text(scenario_text(finding), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    scenario = load_scenario(folder / "finding.py")
    scenario.run(Machine(scenario.config))
    assert SECRETS[0].hex() in capsys.readouterr().out


def test_nothing_is_saved_when_nothing_was_run() -> None:
    """A vulnerability that cannot be expressed has no scenario, nor has a sibling that there is not."""
    with pytest.raises(LeakError, match="nothing to save"):
        scenario_text(attack(Cell("itlb", "-", "generic", "none")))
    with pytest.raises(LeakError, match=r"no attack was run \(zen-1200 has no sibling threads\)"):
        scenario_text(attack(Cell("div0", "cross_thread", "zen-1200", "none")))


def test_cells_are_rows_of_columns() -> None:
    """A matrix has all columns of a row together, and only vectors from which there is an attack."""
    found = cells(("none", "asi"), vulnerability="meltdown")
    assert [(cell.vector, cell.mitigation) for cell in found][:2] == [("user_kernel", "none"), ("user_kernel", "asi")]
    assert "guest_host" not in {cell.vector for cell in found}


TRIED_ON = {
    "bhi": "cascade-lake-4210r",
    "div0": "zen-1200",
    "ibrs_scope": "cascade-lake-4210r",
    "its": "cascade-lake-4210r",
    "pbrsb": "cascade-lake-4210r",
    "reptar_etc": "ice-lake-10351g1",
    "rfds": "generic",
    "srso": "zen2-7452",
    "tsa": "zen3-5600x",
    "zenbleed": "zen2-7452",
}
"""Where a vulnerability is tried that is not tried on `skylake-6600u`."""


def test_what_is_tried_on_which_cpu() -> None:
    """The rows of the matrix stay on the models that they are on."""
    tried = {name: cpu_for(load_vulnerability(name)) for name in vulnerability_names()}
    assert {name: cpu for name, cpu in tried.items() if cpu != "skylake-6600u"} == TRIED_ON


def test_more_bugs_of_one_model_move_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that gets every bug there is takes over only what no model before it in the order has."""
    before = {name: cpu_for(load_vulnerability(name)) for name in vulnerability_names()}

    def load(name: str) -> CpuModel:
        model = load_cpu(name)
        return msgspec.structs.replace(model, bugs=frozenset(Bug)) if name == "zen2-7452" else model

    monkeypatch.setattr(_MATRIX, "load_cpu", load)
    after = {name: cpu_for(load_vulnerability(name)) for name in vulnerability_names()}
    assert {name for name in before if after[name] != before[name]} == {"div0", "rfds", "tsa"}


def test_a_model_that_is_new_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shipped without a preference is taken for what no other model has."""
    names = (*cpu_names(), "a-new-one")
    monkeypatch.setattr(_MATRIX, "cpu_names", lambda: names)
    order = _MATRIX._order.__wrapped__()
    assert set(order) == set(names) - set(_MATRIX._HYBRID)
    assert order.index("a-new-one") > order.index("zen-1200")
