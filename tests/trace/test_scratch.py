"""Folders for the time of a block: a dead process's is cleared away, a living one's never."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asikit.trace import ScratchFolder

if TYPE_CHECKING:
    from collections.abc import Callable

FORM = ".{name}.{token}.tmp"

_HOLD = """
import sys, pathlib
from asikit.trace import ScratchFolder
with ScratchFolder(pathlib.Path(sys.argv[1]), sys.argv[2], name="theirs") as folder:
    (folder / "deep").mkdir()
    (folder / "deep/file").touch()
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """Give a function that has another process make a folder and hold it; the process prints which."""

    def holding() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(tmp_path), FORM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    return holding


def _made(process: subprocess.Popen[str]) -> Path:
    assert process.stdout is not None
    return Path(process.stdout.readline().strip())


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def test_own(tmp_path: Path) -> None:
    """The folder is there in the block, with its name and mode, and is gone after it, whatever ends the block."""
    with ScratchFolder(tmp_path, FORM, name="mine", mode=0o700) as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(".mine.")
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "file").touch()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), ScratchFolder(tmp_path, FORM):
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_renamed(tmp_path: Path) -> None:
    """A folder that has got another name in the block stays."""
    with ScratchFolder(tmp_path, FORM) as folder:
        folder.rename(tmp_path / "kept")
    assert list(tmp_path.iterdir()) == [tmp_path / "kept"]


def test_dead_and_living(tmp_path: Path, hold: Callable[[], subprocess.Popen[str]]) -> None:
    """A killed process's folder is cleared away when the next is made; one that is still held is not."""
    living, dead = hold(), hold()
    theirs, lost = _made(living), _made(dead)
    _kill(dead)
    assert (lost / "deep/file").exists()
    with ScratchFolder(tmp_path, FORM, name="mine") as folder:
        assert set(tmp_path.iterdir()) == {theirs, folder}
        assert (theirs / "deep/file").exists()
    _kill(living)
    assert list(tmp_path.iterdir()) == [theirs]
    with ScratchFolder(tmp_path, FORM, name="mine") as folder:
        assert list(tmp_path.iterdir()) == [folder]


def test_what_is_not_ours(tmp_path: Path) -> None:
    """Only folders of exactly such a name are cleared away: no file, no link, no other name."""
    token = "0123456789abcdef"  # noqa: S105  (a name's)
    (tmp_path / f".dead.{token}.tmp").mkdir()
    others = [
        ".notes.tmp",
        f".dead.{token}.tmp2",
        f".dead.{token[1:]}.tmp",
        f"dead.{token}.tmp",
        f".dead.{token[:-1]}g.tmp",
    ]
    for name in others:
        (tmp_path / name).mkdir()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / f".link.{token}.tmp").symlink_to("precious")
    (tmp_path / f".file.{token}.tmp").touch()
    with ScratchFolder(tmp_path, FORM):
        pass
    kept = {*others, "precious", f".link.{token}.tmp", f".file.{token}.tmp"}
    assert {path.name for path in tmp_path.iterdir()} == kept
    assert (tmp_path / "precious/file").exists()


@pytest.mark.needs_root
def test_of_another_user(tmp_path: Path) -> None:
    """What another user's process has left is that user's."""
    theirs = tmp_path / ".dead.0123456789abcdef.tmp"
    theirs.mkdir()
    os.chown(theirs, 12345, 12345)
    with ScratchFolder(tmp_path, FORM):
        assert theirs.exists()


def test_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file system has no locks a folder is made and removed all the same, and no other's is."""

    def flock(*_: int) -> None:
        raise OSError

    dead = tmp_path / ".dead.0123456789abcdef.tmp"
    dead.mkdir()
    monkeypatch.setattr(fcntl, "flock", flock)
    with ScratchFolder(tmp_path, FORM) as folder:
        assert set(tmp_path.iterdir()) == {dead, folder}
    assert list(tmp_path.iterdir()) == [dead]


@pytest.mark.parametrize("moment", ["before it is opened", "before it is locked", "locked by the other"])
def test_taken_for_a_dead_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
    """Who clears away may find a folder so new that it is not locked yet: another is made then."""
    opening, locking = os.open, fcntl.flock
    others: list[int] = []

    def open_(path: Path, flags: int) -> int:
        if not others and moment == "before it is opened":
            others.append(-1)
            path.rmdir()
        if not others and moment == "locked by the other":
            others.append(opening(path, flags))
            locking(others[0], fcntl.LOCK_EX)
        return opening(path, flags)

    def flock(number: int, operation: int) -> None:
        if not others and moment == "before it is locked":
            others.append(-1)
            Path(f"/proc/self/fd/{number}").readlink().rmdir()
        locking(number, operation)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(fcntl, "flock", flock)
    with ScratchFolder(tmp_path, FORM) as folder:
        assert folder.exists()
        assert len(others) == 1
        lock = opening(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            locking(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(lock)


_CROWD = """
import sys, pathlib, secrets
from asikit.trace import ScratchFolder
parent = pathlib.Path(sys.argv[1])
for _ in range(200):
    (parent / f"x{secrets.token_hex(8)}").mkdir()  # as one who was killed then
    with ScratchFolder(parent, "x{token}") as folder:
        (folder / "file").touch()
        for _ in range(3):
            assert (folder / "file").exists()
            with ScratchFolder(parent, "x{token}"):
                pass
"""


def test_crowd(tmp_path: Path) -> None:
    """Where many make folders and clear away at the same time, nobody's is taken while it is new."""
    crowd = [subprocess.Popen([sys.executable, "-c", _CROWD, str(tmp_path)]) for _ in range(4)]
    assert [process.wait() for process in crowd] == [0] * 4
    with ScratchFolder(tmp_path, "x{token}"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_interrupted_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle of the removal does not end it."""
    removing = shutil.rmtree
    calls = []

    def rmtree(path: Path, *, ignore_errors: bool) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise KeyboardInterrupt
        removing(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    with pytest.raises(KeyboardInterrupt), ScratchFolder(tmp_path, FORM):
        pass
    assert list(tmp_path.iterdir()) == []
