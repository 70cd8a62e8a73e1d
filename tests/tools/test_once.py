"""What is made once in a run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.once import Once

if TYPE_CHECKING:
    from pathlib import Path


def test_many_that_ask_at_once(tmp_path: Path) -> None:
    """One makes it, the others wait and get the same; a folder of its own stays."""

    def make(folder: Path) -> Path:
        with (folder / "asked").open("a") as asked:
            asked.write("made\n")
        return folder

    def ask(_: int) -> Path:
        return Once(tmp_path)("thing", make)

    with ThreadPoolExecutor(8) as askers:
        (folder,) = set(askers.map(ask, range(8)))
    assert (folder / "asked").read_text() == "made\n"


def test_names_are_apart(tmp_path: Path) -> None:
    """Each name has a thing of its own."""
    once = Once(tmp_path)
    assert [once(name, lambda folder: folder.parent.name) for name in ("a", "b", "a")] == ["a", "b", "a"]


def test_failure_is_not_kept(tmp_path: Path) -> None:
    """What could not be made is tried again by the next that asks."""
    with pytest.raises(ZeroDivisionError):
        Once(tmp_path)("thing", lambda _: 1 // 0)
    assert Once(tmp_path)("thing", lambda _: 7) == 7
