"""The manual: a page for each command and format, which says what the help and docs/ say, and is right for `man`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from asikit.cli import _frame

ROOT = Path(__file__).parents[2]
KNOWN = "missing date"
"""A page has the version, and no date: it is the same whenever it is made."""


@pytest.fixture(scope="module")
def manual(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make the manual."""
    folder = tmp_path_factory.mktemp("man")
    subprocess.run([sys.executable, str(ROOT / "tools/manual.py"), str(folder)], check=True)
    return folder


def _shown(page: Path) -> str:
    """Return a page as a reader sees it, in one long line for each paragraph."""
    words = ["mandoc", "-Tutf8", "-Owidth=1000", str(page)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    while "\b" in text:
        place = text.index("\b")
        text = text[: place - 1] + text[place + 1 :]
    return " ".join(text.split())


def test_pages(manual: Path) -> None:
    """Each command has a page, and each format."""
    commands = _frame.asi.list_commands(click.Context(_frame.asi))
    wanted = {"man1/asi.1", *(f"man1/asi-{name}.1" for name in commands)}
    wanted |= {f"man5/asi-{name}.5" for name in ("trace", "policy", "cpu", "vulnerability")}
    assert {str(path.relative_to(manual)) for path in manual.rglob("*.?")} == wanted


@pytest.mark.needs_mandoc
def test_no_warning(manual: Path) -> None:
    """The linter of manuals finds nothing but that there is no date."""
    pages = sorted(map(str, manual.rglob("*.?")))
    words = ["mandoc", "-Tlint", "-Wwarning", *pages]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert [line for line in (done.stdout + done.stderr).splitlines() if KNOWN not in line] == []


@pytest.mark.needs_mandoc
def test_page_says_what_the_help_says(manual: Path) -> None:
    """Every option and its help is on the command's page, and no character of them is lost on the way."""
    with click.Context(_frame.asi, info_name="asi", **_frame.asi.context_settings) as context:
        for name in _frame.asi.list_commands(context):
            command = _frame.asi.get_command(context, name)
            assert command is not None
            page = _shown(manual / f"man1/asi-{name}.1")
            with click.Context(command, parent=context, info_name=name) as own:
                records = [option.get_help_record(own) for option in command.get_params(own)]
            for option, says in [record for record in records if record is not None and record[1]]:
                assert f"{option} {' '.join(says.split())}" in page, name


@pytest.mark.needs_mandoc
def test_example_is_as_it_is_typed(manual: Path) -> None:
    """What docs/ show to be typed is on the page, letter by letter."""
    assert "$ asi replay src/asikit/data/samples/page-cache.asitrace --top 4" in _shown(manual / "man1/asi-replay.1")
    page = _shown(manual / "man5/asi-policy.5")
    text = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
    example = text.partition("```toml\n")[2].partition("```")[0]
    assert " ".join(example.split()) in page
