"""The command `asi attack`."""

import json

import pytest

from asikit.cli import main


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
    ],
)
def test_exit_codes(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int) -> None:
    """0 without a leak, 10 with one, 11 where something is unknown."""
    assert _run(capsys, *words)[0] == code


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


def test_text_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """The matrix of all mitigations, and the explanation of a cell."""
    for words in (
        ("--vulnerability", "meltdown", "--mitigation", "all"),
        ("--vulnerability", "spectre_v2", "--vector", "user_kernel", "--mitigation", "asi-no-predictor-flush", "--why"),
    ):
        _, out, _ = _run(capsys, *words)
        assert max(map(len, out.splitlines())) <= 80
