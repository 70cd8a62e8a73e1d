"""``asi cost``, ``calibrate``, ``host`` and ``compare``: what they print, refuse, and end with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from asikit.cli import main
from tests.cost.running import round_trips
from tests.cost.test_compare import replayed
from tests.cost.test_host import ZEN2, saved
from tests.cost.test_pricing import SAMPLES

if TYPE_CHECKING:
    from pathlib import Path

KVM = SAMPLES / "kvm-guest.asitrace"


def asi(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Run ``asi`` and give exit code, stdout and stderr."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    out, err = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, out, err


def test_cost_text(capsys: pytest.CaptureFixture[str]) -> None:
    """A section for each processor: overheads, sources, break-even, what moves the answer; within 100 columns."""
    code, out, err = asi(capsys, "cost", KVM, "--cpu", "skylake-6600u,zen3-5600x", "--policy", "denylist-2025")
    assert (code, err) == (0, "")
    assert out.count("What moves the answer for asi, denylist-2025 most") == 2
    assert "On skylake-6600u" in out
    assert "On zen3-5600x" in out
    assert out.count("  Costs less than blanket") + out.count("  Costs more than blanket") == 2
    assert max(len(line.rstrip()) for line in out.splitlines()) <= 100


def test_break_even_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """Where ASI costs more without any exit, the text says so; elsewhere it says up to how many exits it costs less."""
    words = set()
    for sample in ("kvm-guest", "processes"):
        question = ("cost", SAMPLES / f"{sample}.asitrace", "--cpu", "zen2-7452")
        out = asi(capsys, *question)[1]
        row = json.loads(asi(capsys, *question, "--json")[1])["rows"][-1]
        for name, key in (("blanket", "break_even"), ("linux", "break_even_linux")):
            word = "less" if row[key]["mid"] > 0 else "more"
            assert f"  Costs {word} than {name} " in out
            words.add(word)
    assert words == {"less", "more"}


def test_cost_why(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With --why every figure that is used is printed with its basis and source."""
    monkeypatch.setenv("COLUMNS", "400")
    out = asi(capsys, "cost", KVM, "--cpu", "skylake-6600u", "--why")[1]
    assert "ibpb: 4,537 cycles, measured: Behrens et al., EuroSys 2022, i7-6600U: mean of 1M runs" in out
    document = json.loads(asi(capsys, "cost", KVM, "--cpu", "skylake-6600u", "--json")[1])
    for row in document["rows"]:
        for term in row["terms"]:
            assert set(term["price"]) <= row["parameters"].keys()
        for name, parameter in row["parameters"].items():
            assert f"{name}: " in out
            assert parameter["source"] in out


def test_cost_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The schema's keys, twice the same bytes, and a row for each combination."""
    words = ("cost", KVM, "--cpu", "skylake-6600u,zen-1200", "--policy", "denylist-2025,ephmap", "--json")
    code, out, err = asi(capsys, *words)
    assert (code, err) == (0, "")
    assert asi(capsys, *words)[1] == out
    document = json.loads(out)
    assert document["schema"] == "asikit.cost/1"
    found = [(row["cpu"], row["mitigation"], row["policy"]) for row in document["rows"]]
    per_cpu = [("none", None), ("linux", None), ("blanket", None), ("asi", "denylist-2025"), ("asi", "ephmap")]
    assert found == [(cpu, *one) for cpu in ("skylake-6600u", "zen-1200") for one in per_cpu]
    for row in document["rows"]:
        assert row["overhead"].keys() == {"low", "mid", "high"}
        assert (row["break_even"] is None) == (row["mitigation"] != "asi")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "missing argument 'TRACE' (see asi cost --help)"),
        (["TRACE"], "missing option '--cpu': one of `asi cost --list-cpus` (see asi cost --help)"),
        (["TRACE", "--cpu", "generic", "--base-seconds", "0"], "must be greater than 0"),
        (
            ["TRACE", "--cpu", "generic", "--base-seconds", "1", "--cpi", "1"],
            "--base-seconds and --cpi are alternatives",
        ),
        (["TRACE", "--cpu", "generic", "--cpi", "2:1"], "'2:1' is not LOW:HIGH or LOW:MID:HIGH"),
        (["TRACE", "--cpu", "generic", "--cpi", "0:1"], "'0:1' is not LOW:HIGH or LOW:MID:HIGH"),
        (["TRACE", "--cpu", "generic", "--cpi", "fast"], "'fast' is not LOW:HIGH or LOW:MID:HIGH"),
        (["TRACE", "--cpu", "skylake"], 'no CPU model "skylake"'),
        (["TRACE", "--cpu", "generic", "--policy", "blanket"], "policy blanket is not ASI's"),
        (["TRACE", "--cpu", "generic", "--mitigation", "linus"], 'no mitigation "linus"'),
        (["TRACE", "--cpu", "zen-1200", "--smt"], "zen-1200 has no sibling threads"),
        (["nowhere", "--cpu", "generic"], "nowhere: does not exist"),
    ],
)
def test_cost_refusals(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each mistake is one line."""
    code, out, err = asi(capsys, "cost", *(str(KVM) if word == "TRACE" else word for word in words))
    assert code == 2
    assert out == ""
    assert message in err
    assert err.startswith("asi: error: ")
    assert err.count("\n") == 1


def test_base_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A measured time stands in the place of instructions; twice the cycles an instruction is half the share."""
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace").path
    seconds = json.loads(asi(capsys, "cost", trace, "--cpu", "zen2-7452", "--base-seconds", "0.5", "--json")[1])
    assert seconds["base"]["seconds"] == 0.5
    one, two = (
        json.loads(asi(capsys, "cost", trace, "--cpu", "zen2-7452", "--cpi", cpi, "--json")[1])["rows"][2]["overhead"]
        for cpi in ("1", "2")
    )
    assert one["mid"] == pytest.approx(2 * two["mid"])


def test_own_mitigation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mitigation of one's own is a row with its file's name."""
    file = tmp_path / "mine.toml"
    file.write_text(
        'title = "x"\n[[work]]\nvulnerability = "ssb"\nname = "x"\nat = ["user_entry"]\ncosts = [["lfence"]]\n'
        'counts_as = "entry_code"\nsource = "x"\n',
        encoding="utf-8",
    )
    out = asi(capsys, "cost", KVM, "--cpu", "zen-1200", "--mitigation", file, "--json")[1]
    (row,) = json.loads(out)["rows"]
    assert row["mitigation"] == "mine"
    assert row["terms"][0]["count"] == 1079


def test_list_cpus(capsys: pytest.CaptureFixture[str]) -> None:
    """Every model with what it is."""
    out = asi(capsys, "cost", "--list-cpus")[1]
    assert "zen2-7452" in out
    assert "AMD EPYC 7452 (Zen 2)" in out


def test_host(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved machine as text and as JSON."""
    monkeypatch.setenv("COLUMNS", "120")
    texts = ZEN2 | {"retbleed": "Mitigation: untrained return thunk; SMT disabled"}
    folder = saved(tmp_path, texts, vendor="AuthenticAMD", family=23, model=49, flags="ibpb", smt="0")
    code, out, err = asi(capsys, "host", "--from", folder)
    assert (code, err) == (0, "")
    assert "Nearest CPU model: asi cost --cpu zen2-7452" in out
    unnecessary = "untrained return thunks, safe returns, retpolines, IBPB at a change of processes, RSB filling"
    assert f"Unnecessary with ASI: {unnecessary}" in out
    assert "Unnecessary with ASI and a stun: SMT off" in out
    document = json.loads(asi(capsys, "host", "--from", folder, "--json")[1])
    assert document["schema"] == "asikit.host/1"
    assert {one["name"]: one["asi"] for one in document["vulnerabilities"]}["retbleed"] == "covered"
    code, _, err = asi(capsys, "host", "--from", tmp_path / "none")
    assert code == 2
    assert "no such file or folder" in err


def test_compare(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The text marks what is no difference; the gate ends with 10 and says why on stderr."""
    a = replayed(tmp_path / "a.json", 100)
    b = replayed(tmp_path / "b.json", 120, policy="ephmap")
    code, out, err = asi(capsys, "compare", a, b)
    assert (code, err) == (0, "")
    words = {" ".join(line.split()) for line in out.splitlines()}
    assert "exits 100 120 +20 +20.0%" in words
    assert "round trips 1,000 1,000 ~" in words
    code, _, err = asi(capsys, "compare", a, b, "--fail-over", "10", "--factor", "policy")
    assert (code, err) == (10, "asi: exits: 20.0% more, over 10%\n")
    assert asi(capsys, "compare", a, b, "--fail-over", "25")[0] == 0
    document = json.loads(asi(capsys, "compare", a, b, "--json")[1])
    assert document["schema"] == "asikit.compare/1"
    code, _, err = asi(capsys, "compare", a, b, "--factor", "kernel")
    assert code == 1
    assert "the sides differ not only in kernel: policy is denylist-2025 and ephmap" in err


def test_compare_takes_what_the_commands_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON of `asi replay` and of `asi cost`, as it is printed; identities are in it."""
    for command, more in (("replay", ()), ("cost", ("--cpu", "zen3-5600x"))):
        files = []
        for policy in ("denylist-2025", "allowlist-2022"):
            out = asi(capsys, command, KVM, "--policy", policy, *more, "--json")[1]
            files.append(tmp_path / f"{command}-{policy}.json")
            files[-1].write_text(out, encoding="utf-8")
        code, out, err = asi(capsys, "compare", *files, "--factor", "policy", "--fail-over", "5")
        assert code == 10
        assert "policy: denylist-2025 -> allowlist-2022" in out
        assert f"asi: exits{' of asi' if command == 'cost' else ''}: " in err
        document = json.loads(asi(capsys, "compare", *files, "--json")[1])
        assert document["differs"].keys() == {"policy"}


def test_calibrate_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It writes over nothing, and only a model file."""
    there = tmp_path / "there.toml"
    there.touch()
    code, _, err = asi(capsys, "calibrate", "-o", there)
    assert (code, err) == (1, f"asi: error: {there}: there already; give another name, or --force\n")
    code, _, err = asi(capsys, "calibrate", "-o", tmp_path / "cpu.json")
    assert code == 2
    assert "a CPU model's name ends in .toml" in err


@pytest.mark.needs_cc
def test_calibrate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is written is what `asi cost` takes."""
    file = tmp_path / "cpu.toml"
    code, out, err = asi(capsys, "calibrate", "--samples", "3", "-o", file, "--like", "zen3-5600x")
    assert code == 0
    assert "Not measured" in out
    assert "writing CR3 needs ring 0" in out
    assert err == f"asi: wrote {file}: asi cost TRACE --cpu {file}\n"
    assert asi(capsys, "cost", KVM, "--cpu", file)[0] == 0
    document = json.loads(asi(capsys, "calibrate", "--samples", "3", "--json")[1])
    assert document["schema"] == "asikit.calibrate/1"
    assert document["measured"]["system_call"]["samples"] == 3
