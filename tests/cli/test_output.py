"""The JSON envelope and the text of sizes."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest

from asikit import report
from asikit.cli._output import show, write_json
from asikit.report import size_text
from asikit.report.view import Note, Report


def test_envelope(capsys: pytest.CaptureFixture[str]) -> None:
    """The schema stands first, keys are sorted at every depth, lists keep their order, text stays readable."""
    write_json("thing", {"b": [{"z": 1, "a": (2, 1)}], "a": "é", "c": None})
    assert (
        capsys.readouterr().out
        == """\
{
  "schema": "asikit.thing/1",
  "a": "é",
  "b": [
    {
      "a": [
        2,
        1
      ],
      "z": 1
    }
  ],
  "c": null
}
"""
    )


def test_envelope_version(capsys: pytest.CaptureFixture[str]) -> None:
    """A document of a later version says so."""
    write_json("thing", {}, version=2)
    assert capsys.readouterr().out == '{\n  "schema": "asikit.thing/2"\n}\n'


def test_no_nan() -> None:
    """What is not JSON is not printed as if it were."""
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        write_json("thing", {"share": float("nan")})


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (1024, "1.0 KiB"),
        (3 << 20, "3.0 MiB"),
        (5 << 30, "5.0 GiB"),
        (7 << 40, "7.0 TiB"),
    ],
)
def test_size_text(size: int, text: str) -> None:
    """Sizes in the unit that people read them in."""
    assert size_text(size) == text


@pytest.mark.parametrize(("columns", "width"), [(None, 80), ("60", 60), ("120", 120)])
def test_width(
    columns: str | None, width: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no terminal a report is 80 columns wide, or as wide as COLUMNS says; a pipe gets no colour."""
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "__stdout__", None)  # whatever the tests run in
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    show(Report((Note("x" * 200),), "title"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "title"
    assert [len(line) for line in lines[1:-1]] == [width] * (len(lines) - 2)
    assert "".join(lines[1:]) == "x" * 200


def test_public_names_of_reports() -> None:
    """A name that is loaded when it is first used is the one of its module, and no module is called so."""
    for name, module in report._HOME.items():
        assert getattr(report, name) is getattr(import_module(f"asikit.report.{module}"), name)
        assert not (Path(report.__file__).parent / f"{name}.py").exists()
    with pytest.raises(AttributeError, match=r"module 'asikit.report' has no attribute 'nothing'"):
        report.nothing  # noqa: B018
