"""Every command that the documentation shows with its output is run, and prints what is shown.

A page is followed as its reader would: its commands one after the other, in a folder of its own. A block of a file's
text that begins with a comment of nothing but the file's name is that file, written before the next command.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE = re.compile(r"(?:#|//) ([\w.-]+\.\w+)\n")
LONG = (
    "asi verify",
    "asi verify --nesting 2",
    "asi verify --method induction",
    "asi verify --mutant exit-asks-own-taints",
)
"""Commands that visit millions of states, or prove as much: `make test-all` runs them."""
_STATUS = re.compile(r"\[exit status (\d+)\]")
_RECORDED = re.compile(r"(?:^|\s)[\w.-]+\.(?:asitrace|json|folded)\b")
_NUMBER = re.compile(r"-?\d[\d,.]*")


@dataclass(frozen=True)
class Example:
    """A command of a page, and what it is shown to print: ``...`` is anything, on a line of its own any lines.

    :ivar files: The files that the page tells its reader to write before.
    :ivar of_a_recording: It makes a recording, or reads one that the page made: another kernel and another machine give
        other numbers, so a number stands for any, and the columns have any width.
    """

    page: str
    command: str
    shown: tuple[str, ...]
    files: tuple[tuple[str, str], ...] = ()
    of_a_recording: bool = False

    @property
    def records(self) -> bool:
        """Whether it needs what a recording needs."""
        return self.command.startswith("asi record")


def _examples(page: Path) -> list[Example]:
    found: list[Example] = []
    files: list[tuple[str, str]] = []
    for kind, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind != "console":
            name = _FILE.match(block)
            files += [(name[1], block)] if name else []
            continue
        for piece in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *shown = piece.rstrip("\n").split("\n")
            recorded = any(example.records for example in found) and _RECORDED.search(command) is not None
            example = Example(page.name, command, tuple(shown), tuple(files), recorded)
            found.append(replace(example, of_a_recording=recorded or example.records))
            files.clear()
    return found


def _environment() -> dict[str, str]:
    """Give the environment of somebody who has activated the virtual environment that runs the tests."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def _typed(command: str) -> str:
    """Give the command as it is run: ``make demo`` is its recipe, as its set-up is done."""
    return "asi demo" if command == "make demo" else command


def _exactly(text: str) -> str:
    return re.escape(text)


def _any_numbers(text: str) -> str:
    """Match a line of a recording: whatever its numbers are, and however wide its columns."""
    parts = [_NUMBER.sub("0", part) for part in re.split(r"[\s─]+", text)]
    return r"[\s─]+".join(re.escape(part).replace("0", r"-?\d[\d,.]*") for part in parts)


def _pattern(example: Example, shown: tuple[str, ...]) -> str:
    literal = _any_numbers if example.of_a_recording else _exactly
    lines = [
        r"(?:.*\n)*" if line.strip() == "..." else ".*".join(map(literal, line.split("..."))) + r"\s*\n"
        for line in shown
    ]
    return "".join(lines)


def _check(example: Example, folder: Path) -> None:
    for name, text in example.files:
        (folder / name).write_text(text, encoding="utf-8")
    *shown, last = example.shown or ("",)
    found = _STATUS.fullmatch(last)
    wanted = int(found[1]) if found else 0
    lines = tuple(shown) if found else example.shown
    done = subprocess.run(
        ["/bin/sh", "-c", _typed(example.command)],
        cwd=folder,
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    printed = "".join(f"{line.rstrip()}\n" for line in (done.stdout + done.stderr).splitlines())
    assert done.returncode == wanted, printed
    assert re.fullmatch(_pattern(example, lines), printed), f"{example.command} printed:\n{printed}"


def _folder(page: Path, tmp_path: Path) -> Path:
    """Give the folder that a page is followed in: an empty one, or one like the checkout, to which it may write."""
    if page.stem.startswith(_IN_EMPTY_FOLDER):
        return tmp_path
    for name in ("src", "docs", "samples", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


def _follow(page: Path, folder: Path) -> None:
    for example in _examples(page):
        if example.command not in LONG:
            _check(example, folder)


RECORDING = [page for page in PAGES if any(example.records for example in _examples(page))]
PLAIN = [page for page in PAGES if _examples(page) and page not in RECORDING]
_QUICK = "record.md"
_IN_EMPTY_FOLDER = ("record", "start", "tutorial")
"""How the pages begin whose reader has nothing but an installed asikit."""


@pytest.mark.parametrize("page", PLAIN, ids=lambda page: page.name)
def test_examples(page: Path, tmp_path: Path) -> None:
    """Each command of a page prints what the page shows."""
    _follow(page, _folder(page, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG)
def test_long_examples(command: str, tmp_path: Path) -> None:
    """So do those that take long, each by itself."""
    (example,) = [example for page in PLAIN for example in _examples(page) if example.command == command]
    _check(example, tmp_path)


@pytest.mark.needs_qemu
@pytest.mark.needs_busybox
@pytest.mark.needs_cc
@pytest.mark.needs_fio
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[] if page.name == _QUICK else pytest.mark.slow, id=page.name) for page in RECORDING],
)
def test_recording_examples(page: Path, tmp_path: Path) -> None:
    """The commands of a page that records print what it shows."""
    _follow(page, _folder(page, tmp_path))


@pytest.mark.parametrize(
    ("printed", "matches"),
    [
        (" 4.2%   9   read shmem <-\n", True),
        (" 100.0%   12,345   read shmem <-\n", True),
        (" 100.0%   many   read shmem <-\n", False),
        (" 4.2%   9   read anon <-\n", False),
        (" 4.2%   9   read shmem <-\n and 3 more\n", False),
    ],
)
def test_numbers_of_a_recording_are_any_numbers(printed: str, matches: bool) -> None:
    """On a page that records, other numbers in wider columns are as shown; other words, or more lines, are not."""
    example = Example("page", "asi replay x.asitrace", (" 32.7%  2,047  read shmem <-",), of_a_recording=True)
    assert (re.fullmatch(_pattern(example, example.shown), printed) is not None) is matches
    exactly = replace(example, of_a_recording=False)
    assert not re.fullmatch(_pattern(exactly, exactly.shown), printed)


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
