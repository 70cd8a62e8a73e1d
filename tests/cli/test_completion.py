"""Completion: what shells ask and are told, the scripts, and where they are written."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import asikit
from tests.cli.terminal import ASI

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLES = Path(asikit.__file__).parent / "data/samples"


def _asked(*words: str) -> list[str]:
    """Return what bash is told when the last word is to be completed."""
    environment = {
        "COMP_WORDS": " ".join(["asi", *words]),
        "COMP_CWORD": str(len(words)),
        "_ASI_COMPLETE": "bash_complete",
    }
    done = subprocess.run([*ASI], env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (("rep",), ["replay"]),
        (("replay", "--pol"), ["--policy"]),
        (("replay", "--policy", "no-"), ["no-boot-memory", "no-module-text"]),
        (("replay", "--policy", "ephmap,bl"), ["ephmap,blanket"]),
        (("cost", "--cpu", "zen2"), ["zen2-7452"]),
        (("calibrate", "--like", "zen2"), ["zen2-7452"]),
        (("attack", "--mitigation", "none,asi-no-s"), ["none,asi-no-stun", "none,asi-no-shootdown"]),
        (("attack", "--vulnerability", "l1t"), ["l1tf"]),
        (("attack", "--vector", "user_"), ["user_kernel", "user_user"]),
        (("verify", "--mutant", "al"), ["all"]),
        (("verify", "--method", "ind"), ["induction"]),
        (("help", "trace"), ["trace-format"]),
    ],
)
def test_values(words: tuple[str, ...], wanted: list[str]) -> None:
    """Commands, options and the names that they take, the last of a list too."""
    assert _asked(*words) == wanted


def test_traces(tmp_path: Path) -> None:
    """A trace is completed as a path, with the folders on the way; other files are left out."""
    (tmp_path / "one.asitrace").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "old.txt").touch()
    assert _asked("replay", f"{tmp_path}/o") == [f"{tmp_path}/one.asitrace", f"{tmp_path}/other/"]
    assert _asked("info", f"{tmp_path}/no/o") == []


def test_recorded_command_is_not_completed_as_ours() -> None:
    """The CPU of `asi record` and of `asi replay` is none of ours."""
    assert _asked("record", "--cpu", "zen") == []
    assert _asked("replay", "--cpu", "zen") == []


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder with the scripts of all shells, and with `asi` to find by its name."""
    folder = tmp_path_factory.mktemp("home")
    command = folder / "bin/asi"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {ASI[0]} -m asikit "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    for shell in ("bash", "zsh", "fish"):
        done = subprocess.run(
            [*ASI, "--install-completion", shell], env=_home(folder), capture_output=True, text=True, check=True
        )
        assert (done.stdout, done.stderr.startswith(f"asi: wrote {folder}/")) == ("", True)
    return folder


def _home(folder: Path) -> dict[str, str]:
    around = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return {**around, "HOME": str(folder), "PATH": f"{folder}/bin:{os.environ['PATH']}"}


def _shell(folder: Path, *words: str) -> list[str]:
    done = subprocess.run(words, env=_home(folder), cwd=folder, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return sorted(done.stdout.split())


def test_bash(installed: Path) -> None:
    """Bash, having read the script, completes a policy."""
    script = (
        f". {installed}/.local/share/bash-completion/completions/asi; "
        'COMP_WORDS=(asi replay --policy no-); COMP_CWORD=3; _asi_completion asi; echo "${COMPREPLY[@]}"'
    )
    assert _shell(installed, "bash", "--norc", "-c", script) == ["no-boot-memory", "no-module-text"]


@pytest.mark.needs_fish
def test_fish(installed: Path) -> None:
    """Fish finds the script by itself, and completes a policy."""
    assert _shell(installed, "fish", "-c", "complete -C 'asi replay --policy no-'") == [
        "no-boot-memory",
        "no-module-text",
    ]


@pytest.mark.needs_zsh
def test_zsh(installed: Path) -> None:
    """Zsh finds the script in its path of functions, as that of `asi`."""
    folder = installed / ".local/share/zsh/site-functions"
    script = f"fpath=({folder} $fpath); autoload -Uz compinit; compinit -u -D; echo $_comps[asi]"
    assert _shell(installed, "zsh", "-f", "-c", script) == ["_asi"]
    assert _shell(installed, "zsh", "-n", f"{folder}/_asi") == []


@pytest.mark.parametrize(
    ("words", "shell", "says"),
    [
        (("--install-completion", "csh"), "/bin/bash", "'csh' is none of bash, zsh, fish: name one"),
        (("--install-completion",), "/bin/dash", "'dash' is none of bash, zsh, fish: name one"),
    ],
)
def test_other_shell(words: tuple[str, ...], shell: str, says: str, tmp_path: Path) -> None:
    """Another shell is a usage error."""
    environment = {**_home(tmp_path), "SHELL": shell}
    done = subprocess.run([*ASI, *words], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, says in done.stderr, done.stderr.count("\n")) == (2, True, 1)


def _written(folder: Path) -> Iterator[Path]:
    return (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def test_own_shell_is_the_default(tmp_path: Path) -> None:
    """Without a name it is the user's shell; nothing but the script is written."""
    assert shutil.which("sh")
    environment = {**_home(tmp_path), "SHELL": "/usr/bin/fish"}
    subprocess.run([*ASI, "--install-completion"], env=environment, capture_output=True, check=True)
    assert list(_written(tmp_path)) == [Path(".config/fish/completions/asi.fish")]
