"""Every command that the documentation shows with its output is run, and prints what is shown."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LONG = (
    "asi verify",
    "asi verify --nesting 2",
    "asi verify --method induction",
    "asi verify --mutant exit-asks-own-taints",
)
"""Commands that visit millions of states, or prove as much: `make test-all` runs them."""
_STATUS = re.compile(r"\[exit status (\d+)\]")


@dataclass(frozen=True)
class Example:
    """A command of a page, and what it is shown to print: ``...`` is anything, on a line of its own any lines."""

    page: str
    command: str
    shown: tuple[str, ...]

    @property
    def records(self) -> bool:
        """Whether it needs what a recording needs."""
        return self.command.startswith("asi record")


def _examples(page: Path) -> list[Example]:
    found: list[Example] = []
    for block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        for piece in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = piece.rstrip("\n").split("\n")
            found.append(Example(page.name, command, tuple(shown)))
    return found


def _words(command: str) -> list[str]:
    """Give the words to execute: our own ``asi`` and ``python``; ``make demo`` is its recipe, as its set-up is done."""
    words = shlex.split(command)
    own = {"asi": [str(Path(sys.executable).with_name("asi"))], "python": [sys.executable]}
    if command == "make demo":
        words = ["asi", "demo"]
    return own[words[0]] + words[1:]


def _pattern(shown: tuple[str, ...]) -> str:
    lines = [
        r"(?:.*\n)*" if line.strip() == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\s*\n"
        for line in shown
    ]
    return "".join(lines)


def _check(example: Example, folder: Path) -> None:
    *shown, last = example.shown or ("",)
    found = _STATUS.fullmatch(last)
    wanted = int(found[1]) if found else 0
    lines = tuple(shown) if found else example.shown
    done = subprocess.run(
        _words(example.command), cwd=folder, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    printed = "".join(f"{line.rstrip()}\n" for line in (done.stdout + done.stderr).splitlines())
    assert done.returncode == wanted, printed
    assert re.fullmatch(_pattern(lines), printed), f"{example.command} printed:\n{printed}"


def _folder(tmp_path: Path) -> Path:
    """Give a folder that looks like the checkout, to which the examples may write."""
    for name in ("src", "docs", "samples", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


PLAIN = [page for page in PAGES if any(not example.records for example in _examples(page)) and page.name != "record.md"]


@pytest.mark.parametrize("page", PLAIN, ids=lambda page: page.name)
def test_examples(page: Path, tmp_path: Path) -> None:
    """Each command of a page prints what the page shows."""
    folder = _folder(tmp_path)
    for example in _examples(page):
        if example.command not in LONG:
            _check(example, folder)


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG)
def test_long_examples(command: str, tmp_path: Path) -> None:
    """So do those that take long, each by itself."""
    (example,) = [example for page in PLAIN for example in _examples(page) if example.command == command]
    _check(example, _folder(tmp_path))


@pytest.mark.needs_qemu
@pytest.mark.needs_busybox
@pytest.mark.needs_cc
def test_recording_examples(tmp_path: Path) -> None:
    """The commands of the page on recording, one after the other, print what it shows."""
    for example in _examples(ROOT / "docs" / "record.md"):
        _check(example, tmp_path)


def test_every_command_has_a_page_with_an_example() -> None:
    """Each command of ``asi`` has a page of its own in docs/, with an example that is run."""
    commands = [path.stem for path in (ROOT / "src/asikit/cli").glob("*.py") if not path.stem.startswith("_")]
    for command in commands:
        page = ROOT / "docs" / f"{command}.md"
        assert any(example.command.startswith(f"asi {command}") for example in _examples(page)), page


def test_readme_shows_the_demo() -> None:
    """The demo's table in the README is the one that ``make demo`` prints now: the example is there to be run."""
    assert "make demo" in [example.command for example in _examples(ROOT / "README.md")]


def test_readme_has_the_first_steps() -> None:
    """What ``tools/first-steps`` runs in fresh Debians has the README's way from nothing to a replayed recording."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [
        line
        for block in re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.split("\n")
    ]
    wanted = ("apt-get", "make demo", ". .venv/bin/activate", "asi record -- ls", "asi replay ls.asitrace", "asi cost")
    assert [word for line in lines for word in wanted if line.startswith(word)] == list(wanted)


def test_links_lead_somewhere() -> None:
    """Each relative link of a page names a file that exists."""
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
