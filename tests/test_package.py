"""The package's face: its public names are lazy, and all there."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import asikit


def test_import_loads_no_room() -> None:
    """`import asikit` loads none of the rooms and none of the libraries."""
    code = "import sys, asikit; print([name for name in sys.modules if name.startswith(('asikit', 'numpy', 'polars'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "['asikit']\n"


@pytest.mark.parametrize("name", sorted(set(asikit.__all__) - {"__version__"}))
def test_public_name(name: str) -> None:
    """Each public name is its room's object, and its room exports it."""
    room = import_module(asikit._HOME[name])
    assert getattr(asikit, name) is getattr(room, name)
    assert name in room.__all__
    assert name in dir(asikit)


def test_type_checkers_see_the_same_names() -> None:
    """The imports for type checkers and the table of lazy names agree."""
    text = Path(asikit.__file__).read_text(encoding="utf-8")
    imported = {name: room for room, name in re.findall(r"^    from (\S+) import (\w+) as \2$", text, re.MULTILINE)}
    assert imported == asikit._HOME


def test_unknown_name() -> None:
    """A name that is not there is the usual error."""
    with pytest.raises(AttributeError) as caught:
        asikit.nothing  # noqa: B018
    assert str(caught.value) == "module 'asikit' has no attribute 'nothing'"
