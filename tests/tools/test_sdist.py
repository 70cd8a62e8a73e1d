"""The source archive has what `make demo`, `make test` and `.ci/run` need: the checkout but for what git ignores."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from fnmatch import fnmatch
from pathlib import Path

import asikit

ROOT = Path(__file__).parents[2]
ROOMS = (".ci", ".github", "LICENSES", "bench", "docs", "examples", "samples", "src", "tests", "tools", "typings")
"""The folders of the checkout. A new one is added here."""
FILES = (
    ".gitignore",
    ".pre-commit-config.yaml",
    "CHANGELOG.md",
    "CITATION.cff",
    "CONTRIBUTING.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "REUSE.toml",
    "SECURITY.md",
    "hatch_build.py",
    "pyproject.toml",
    "requirements.lock",
)
"""The files beside them."""


def _ignored(name: str, *, at_top: bool = False) -> bool:
    """Tell whether git ignores a name: patterns that begin with a slash are about the top."""
    lines = (ROOT / ".gitignore").read_text().splitlines()
    patterns = [line for line in lines if line and (at_top or line[0] != "/")]
    return any(fnmatch(name, pattern.strip("/")) for pattern in patterns)


def _of_checkout() -> set[str]:
    found = set(FILES)
    for room in ROOMS:
        for folder, folders, names in os.walk(ROOT / room):
            folders[:] = [name for name in folders if not _ignored(name)]
            found |= {str((Path(folder) / name).relative_to(ROOT)) for name in names if not _ignored(name)}
    return found


def test_archive_is_the_checkout(tmp_path: Path) -> None:
    """Each file of the checkout is in the archive, programs may be run, and nothing else is in it."""
    words = [sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", str(tmp_path)]
    subprocess.run(words, cwd=ROOT, capture_output=True, check=True)
    name = f"asikit-{asikit.__version__}"
    with tarfile.open(tmp_path / f"{name}.tar.gz") as archive:
        members = {member.name.removeprefix(f"{name}/"): member for member in archive}
    assert set(members) == _of_checkout() | {"PKG-INFO"}
    assert [path for path in members if path.startswith((".ci/", "tools/")) and not members[path].mode & 0o100] == []


def test_checkout_has_no_other_room() -> None:
    """The lists above are whole: what lies at the top and is not ignored is on one of them."""
    there = {path.name for path in ROOT.iterdir() if not _ignored(path.name, at_top=True)}
    assert there - {".git", "PKG-INFO"} == {*ROOMS, *FILES}
