"""The package's face: its public names are lazy, and all there."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import asikit

if TYPE_CHECKING:
    from collections.abc import Iterator

SOURCES = Path(asikit.__file__).parent


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


def rooms(source: Path) -> dict[str, set[str]]:
    """Return the rooms in which each public class is defined; those of the machine count each."""
    found: dict[str, set[str]] = {}
    for file in source.rglob("*.py"):
        parts = file.relative_to(source).parts
        room = "/".join(parts[:2] if parts[0] == "machine" else parts[:1])
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found.setdefault(node.name, set()).add(room)
    return found


def test_one_name_is_one_thing() -> None:
    """No class name stands in two rooms: a reader who looks for one finds the one."""
    found = {name: sorted(where) for name, where in rooms(Path(asikit.__file__).parent).items() if len(where) > 1}
    assert found == {}


def _imported(module: str, tree: ast.AST) -> Iterator[list[str]]:
    """Give the full names of what a module imports, wherever in it, as their parts."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            base += node.module.split(".") if node.module else []
            yield from ([*base, alias.name] for alias in node.names)


def _modules() -> Iterator[tuple[str, ast.AST]]:
    for path in sorted(SOURCES.rglob("*.py")):
        name = ".".join(("asikit", *path.relative_to(SOURCES).with_suffix("").parts))
        yield name, ast.parse(path.read_text(encoding="utf-8"))


def _strangers(module: str, tree: ast.AST) -> list[str]:
    """Return what a module imports that is private to a room in which it is not."""
    found = []
    for parts in _imported(module, tree):
        for depth, part in enumerate(parts):
            private = parts[0] == "asikit" and part.startswith("_") and not part.startswith("__")
            if private and module.split(".")[:depth] != parts[:depth]:
                found.append(".".join(parts))
    return found


def test_no_room_imports_anothers_private_modules() -> None:
    """A module or name that begins with an underscore is imported inside its own room only."""
    found = {module: strangers for module, tree in _modules() if (strangers := _strangers(module, tree))}
    assert found == {}


@pytest.mark.parametrize(
    ("module", "line", "strangers"),
    [
        ("asikit.cost.measure", "from asikit.replay._tables import SideTables", ["asikit.replay._tables.SideTables"]),
        ("asikit.cost.measure", "import asikit.replay._tables", ["asikit.replay._tables"]),
        ("asikit.cost.measure", "from asikit.replay import _tables", ["asikit.replay._tables"]),
        ("asikit.cost.measure", "from ..replay import _tables", ["asikit.replay._tables"]),
        ("asikit.machine.mm.vma", "from asikit.machine.x86._walk import walk", ["asikit.machine.x86._walk.walk"]),
        ("asikit.replay.run", "from asikit.replay._tables import SideTables", []),
        ("asikit.machine.mm.vma", "from asikit.machine._names import NAMES", []),
        ("asikit.replay.run", "from asikit import __version__", []),
        ("asikit.replay.run", "from polars._typing import Expr", []),
    ],
)
def test_what_is_private(module: str, line: str, strangers: list[str]) -> None:
    """The rule sees every form of import; a room's own private modules and other packages are not its matter."""
    assert _strangers(module, ast.parse(line)) == strangers


def test_one_place_for_numba() -> None:
    """Only the ground's one module imports numba, so that all loops are compiled in the same way."""
    found = {module for module, tree in _modules() if any(parts[0] == "numba" for parts in _imported(module, tree))}
    assert found == {"asikit.compiled"}
