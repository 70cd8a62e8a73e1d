"""A name that stands for nothing is wrong usage, whichever command it is given to."""

from __future__ import annotations

from pathlib import Path

import pytest

from asikit.cli import main

SAMPLE = str(Path("src/asikit/data/samples/phases.asitrace"))
SCENARIO = str(Path("examples/null_syscall.py"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cost", SAMPLE, "--cpu", "zen2"], 'no CPU model "zen2"; the nearest is "zen2-7452" (shipped: '),
        (
            ["cost", SAMPLE, "--cpu", "generic", "--policy", "eph"],
            'no policy "eph"; the nearest is "ephmap" (',
        ),
        (
            ["cost", SAMPLE, "--cpu", "generic", "--mitigation", "linus"],
            'no mitigation "linus"; the nearest is "linux" (there are none, ',
        ),
        (["cost", SAMPLE, "--cpu", "nowhere.toml"], "nowhere.toml: cannot read the CPU model: No such file"),
        (["cost", "nowhere.asitrace", "--cpu", "generic"], "nowhere.asitrace: does not exist"),
        (["cost", SAMPLE, "--cpu", "generic", "--phase", "stedy"], 'the nearest is "steady"'),
        (["attack", "--cpu", "zen2"], 'no CPU model "zen2"; the nearest is "zen2-7452" (shipped: '),
        (["attack", "--mitigation", "asi-no-stn"], 'no mitigation "asi-no-stn"; the nearest is "asi-no-stun"'),
        (
            ["attack", "--vulnerability", "retblead"],
            'no vulnerability "retblead"; the nearest is "retbleed" (',
        ),
        (["attack", "--vector", "cross"], 'no vector "cross"; the nearest is "cross_'),
        (["run", "nowhere.py"], "nowhere.py: cannot be read: No such file or directory"),
        (["run", SCENARIO, "--policy", "denylist"], 'no policy "denylist"; the nearest is "denylist-2025" (shipped: '),
        (["replay", SAMPLE, "--policy", "denylist"], 'no policy "denylist"; the nearest is "denylist-2025" (shipped: '),
        (["replay", "nowhere.asitrace"], "nowhere.asitrace: does not exist"),
        (["replay", SAMPLE, "--class", "usrspace"], "no class 'usrspace'"),
        (["info", "nowhere.asitrace"], "nowhere.asitrace: does not exist"),
        (["compare", "a.json", "b.json"], "a.json: cannot read the document: No such file"),
        (["compare", "a.json", "b.json", "--factor", "polcy"], 'no factor "polcy"; the nearest is "policy"'),
        (["calibrate", "--like", "zen3"], 'no CPU model "zen3"; the nearest is "zen3-5600x" (shipped: '),
        (["host", "--from", "nowhere"], "nowhere: no such file or folder"),
        (["verify", "--mutant", "no-stn"], "no mutant 'no-stn'"),
        (["inf"], "no such command 'inf'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_exit_code(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line that names what was written and, where there is one, what was meant; exit code 2."""
    with pytest.raises(SystemExit) as end:
        main(words)
    out, err = capsys.readouterr()
    assert (end.value.code, out, err.count("\n")) == (2, "", 1)
    assert message in err
