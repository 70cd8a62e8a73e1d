"""What is said of the project in several files is the same in each."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import asikit

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def _text(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def test_pythons() -> None:
    """The workflow runs on each Python that the package promises, and on no other."""
    listed = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    (matrix,) = re.findall(r"^ +python: \[(.*)\]$", _text(".github/workflows/ci.yml"), re.MULTILINE)
    assert re.findall(r'"([^"]+)"', matrix) == listed
    first, last = (int(one.removeprefix("3.")) for one in (listed[0], listed[-1]))
    assert PROJECT["requires-python"] == f">=3.{first},<3.{last + 1}"
    assert len(listed) == last - first + 1


def test_workflow_runs_what_one_runs_here() -> None:
    """The workflow has no steps of its own that test something: it runs .ci/run, as anybody can."""
    runs = re.findall(r"^ +-? ?run: (.*)$", _text(".github/workflows/ci.yml"), re.MULTILINE)
    assert [run for run in runs if not run.startswith("echo ")] == [".ci/run"]


def test_version() -> None:
    """The version to cite is this one, and the changelog begins with it."""
    assert f"\nversion: {asikit.__version__}\n" in _text("CITATION.cff")
    assert re.findall(r"^## \[(.*?)\]", _text("CHANGELOG.md"), re.MULTILINE)[0] == asikit.__version__


def test_licences() -> None:
    """Each licence that a file names lies in LICENSES under its SPDX name, and the package names no other."""
    there = {path.stem for path in (ROOT / "LICENSES").iterdir()}
    sources = [path for folder in ("src", "samples") for path in (ROOT / folder).rglob("*.[ch]")]
    sources.append(ROOT / "REUSE.toml")
    name = re.compile(r"SPDX-License-Identifier(?:: | = .)([\w.-]+)")
    named = {word for path in sources for word in name.findall(path.read_text())}
    assert named == there == set(PROJECT["license"].split(" AND "))
    plugin = (ROOT / "src/asikit/record/plugin").glob("*.[ch]")
    assert {"GPL-2.0-or-later" in path.read_text().splitlines()[0] for path in plugin} == {True}
    assert "Apache-2.0" in _text("REUSE.toml")


def test_paths_of_the_guide() -> None:
    """Each path that CONTRIBUTING.md names is there; of one with NAME, which is yet to come, the folder is."""
    named = re.findall(r"`((?:src|tests|docs|bench|examples|tools|\.ci)/[^`\s]*)`", _text("CONTRIBUTING.md"))
    assert len(named) > 20
    for path in named:
        fixed = re.split(r"[A-Z*]{2,}|\*", path)[0]
        assert (ROOT / (fixed if fixed == path else fixed.rpartition("/")[0])).exists(), path
