"""The command `asi attack`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest

from asikit.attacks.matrix import _without_interrupts
from asikit.cli import main
from asikit.cli.attack import _exit_code


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(["attack", *words])
    captured = capsys.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, captured.out, captured.err


_ONE = ("--vulnerability", "meltdown", "--vector", "user_kernel")


@pytest.mark.parametrize(
    ("words", "code"),
    [
        ((*_ONE, "--mitigation", "none"), 10),
        ((*_ONE, "--mitigation", "asi"), 0),
        (("--vulnerability", "itlb"), 11),
        (("--vulnerability", "mds", "--vector", "flip", "--mitigation", "asi"), 11),
        (("--vulnerability", "vmscape", "--vector", "nmi"), 12),
        ((*_ONE, "--cpu", "zen3-5600x"), 12),
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int) -> None:
    """0 without a leak, 10 with one, 11 where something is unknown, of what has no program too, 12 if none applies."""
    assert _run(capsys, *words)[0] == code


@pytest.mark.parametrize(
    ("verdicts", "code"),
    [
        ({"NO LEAK", "NOT APPLICABLE"}, 0),
        ({"NO LEAK", "NOT APPLICABLE", "UNKNOWN"}, 11),
        ({"NOT APPLICABLE", "UNKNOWN"}, 11),
        ({"NO LEAK", "NOT APPLICABLE", "UNKNOWN", "LEAK"}, 10),
        ({"NOT APPLICABLE"}, 12),
    ],
)
def test_the_exit_code_is_the_worst_verdicts(verdicts: set[str], code: int) -> None:
    """0 takes an attack that took place, and what does not apply takes nothing from it."""
    assert _exit_code(verdicts) == code


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """A row has the six keys that were promised, and the observation that tells the secrets apart."""
    code, out, _ = _run(capsys, *_ONE, "--mitigation", "none,asi", "--json")
    document = json.loads(out)
    assert code == 10
    assert document["schema"] == "asikit.attack/1"
    assert [row["verdict"] for row in document["rows"]] == ["LEAK", "NO LEAK"]
    assert {"vulnerability", "vector", "cpu", "mitigation", "verdict", "reason"} <= set(document["rows"][0])
    assert document["rows"][0]["observation"]["number"] == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--mitigation", "asy"), 'no mitigation "asy"; the nearest is "asi"'),
        (("--mitigation", ""), 'no mitigation ""'),
        (("--mitigation", "none,,asi"), 'no mitigation ""'),
        (("--vector", ""), 'no vector ""'),
        (("--vulnerability", ""), 'no vulnerability ""'),
        (("--cpu", ""), 'no CPU model ""'),
        (("--vulnerability", "mds", "--vector", "nmi", "--mitigation", "asi", "--save", "."), "is a directory"),
        (("--vector", "user_kernal"), 'the nearest is "user_kernel"'),
        (("--vulnerability", "meltdwn"), 'the nearest is "meltdown"'),
        (("--cpu", "skylake"), 'the nearest is "skylake-6600u"'),
        (("--why",), "are for one cell"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str) -> None:
    """A wrong name is one line with the nearest right one, and exit code 2."""
    code, out, err = _run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_all_stands_among_others_too(capsys: pytest.CaptureFixture[str]) -> None:
    """`all` is every mitigation wherever it stands, and spaces after a comma do no harm."""
    _, alone, _ = _run(capsys, *_ONE, "--mitigation", "all", "--json")
    assert _run(capsys, *_ONE, "--mitigation", "asi, all", "--json")[1] == alone


def test_json_explains_too(capsys: pytest.CaptureFixture[str]) -> None:
    """With --why the row says what happened."""
    _, out, _ = _run(capsys, *_ONE, "--mitigation", "none", "--why", "--json")
    (row,) = json.loads(out)["rows"]
    assert row["mechanism"] == "deferred"
    assert any("transient load" in step for step in row["story"])


def test_a_cpu_without_it_is_said_to_be_one(capsys: pytest.CaptureFixture[str]) -> None:
    """A row of no leaks on a CPU model that lacks the vulnerability says so."""
    _, out, _ = _run(capsys, *_ONE, "--cpu", "zen3-5600x")
    assert "meltdown on zen3-5600x, which does not have it\n" in out
    assert " n/a " in out
    assert "0 of 4 attacks leak (LEAK); n/a not applicable\n" in out


@pytest.mark.parametrize(
    ("words", "verdict", "reason"),
    [
        (("--vulnerability", "vmscape", "--vector", "nmi"), "NOT APPLICABLE", "its attacker is a guest"),
        (("--vulnerability", "mds", "--vector", "flip"), "UNKNOWN", "not modelled: no program has its mechanism"),
        (("--vulnerability", "itlb"), "UNKNOWN", "not modelled: it is a denial of service"),
        (_ONE, "NO LEAK", "observations, all equal"),
    ],
)
def test_three_words(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], verdict: str, reason: str) -> None:
    """What does not apply, what is not modelled, and what was tried without result are three words in text and JSON."""
    _, out, _ = _run(capsys, *words, "--mitigation", "asi", "--json")
    (row,) = json.loads(out)["rows"]
    assert row["verdict"] == verdict
    assert reason in row["reason"]
    if "--vector" in words:
        _, out, _ = _run(capsys, *words, "--mitigation", "asi", "--why")
        assert out.startswith(f"{verdict}: ")


def test_why_ends_in_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    """However long an attack was, the steps that are shown are those that lead to the leak."""
    words = ("--vulnerability", "l1tf", "--vector", "cross_thread", "--mitigation", "asi-no-stun", "--why")
    _, out, _ = _run(capsys, *words)
    story, _, end = out.rstrip().rpartition("\n\n=> ")
    last = " ".join(story[story.rindex(". the attacker sees") :].split())
    assert "steps, and then" in story
    assert "the attacker sees nothing new (" in story
    assert last.startswith(". the attacker sees " + " ".join(end.split()).partition(" differs:")[0])


def test_nothing_is_written_where_nothing_can_be(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A path that cannot be written is one line and exit code 1."""
    code, out, err = _run(capsys, *_ONE, "--mitigation", "asi", "--save", str(tmp_path / "no" / "x.py"))
    assert (code, out, err.count("\n")) == (1, "", 1)


def test_ctrl_c_is_one_line() -> None:
    """Ctrl-C reaches the attacking processes too, and they keep quiet; what is left of the matrix is not waited for."""
    command = [str(Path(sys.executable).with_name("asi")), "attack"]
    for seconds in (1.0, 2.5):  # while the processes start, and while they attack
        with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, start_new_session=True, text=True) as run:
            time.sleep(seconds)
            os.killpg(run.pid, signal.SIGINT)
            out, err = run.communicate(timeout=60)
        assert (run.returncode, out, err) == (130, "", "asi: interrupted\n")


def test_processes_start_without_ctrl_c() -> None:
    """What a process starts inherits the mask, and this one gets its own back."""
    with _without_interrupts():
        assert signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_text_fits_80_columns(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The matrix of all mitigations, and the explanation of a cell; files with long names as well."""
    folder = tmp_path / ("a" * 60)
    folder.mkdir()
    mine = folder / "mine.toml"
    mine.write_text(Path("src/asikit/data/vulnerabilities/meltdown.toml").read_text(encoding="utf-8"), encoding="utf-8")
    for words in (
        ("--vulnerability", "meltdown", "--mitigation", "all"),
        ("--vulnerability", str(mine), "--vector", "user_kernel"),
        ("--vulnerability", str(mine), "--vector", "user_kernel", "--mitigation", "none", "--why"),
        ("--vulnerability", "spectre_v2", "--vector", "user_kernel", "--mitigation", "asi-no-predictor-flush", "--why"),
    ):
        _, out, _ = _run(capsys, *words)
        assert max(map(len, out.splitlines())) <= 80
