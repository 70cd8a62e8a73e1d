"""The one place for numba: what a loop was compiled for in an earlier version does no harm."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from pathlib import Path

MODULE = """\
from typing import NamedTuple

from asikit.compiled import jit


class {name}(NamedTuple):
    first: int


@jit
def doubled(pair: {name}) -> int:
    return 2 * pair.first


def result() -> int:
    return doubled({name}(21))
"""


def test_machine_code_of_an_earlier_version(tmp_path: Path) -> None:
    """Code that was kept for a named tuple which is gone by now is compiled anew; then it is taken from the disk."""
    script = "import loops; print(loops.result(), loops.doubled.loaded)"
    printed = []
    for name in ("Before", "After", "After"):
        (tmp_path / "loops.py").write_text(MODULE.format(name=name), encoding="utf-8")
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        printed.append(done.stdout or done.stderr)
    assert printed == ["42 0\n", "42 0\n", "42 1\n"]


LOOPS = """\
from typing import NamedTuple

import numpy as np

from asikit.compiled import jit

STEP = {step}


class Given(NamedTuple):
    numbers: np.ndarray
    flags: np.ndarray
    most: int
    backwards: bool


@jit
def add(kept, number):
    kept[0] += number * STEP


@jit
def work(given, table):
    for i in range(min(given.numbers.size, given.most)):
        if given.flags[i]:
            add(table[i & 1], given.numbers[i])
    return given.most, given.backwards, table[0, 0]


@jit
def nothing(table):
    table[:] = 7


@jit
def divided(number):
    return 1 // number


@jit
def allocates(number):
    return np.zeros(number).size
"""


def loops(folder: Path, *, step: int = 2) -> Any:  # noqa: ANN401  (a module that is made here)
    """Return the module above as if this process had not seen it before."""
    path = folder / "made_loops.py"
    path.write_text(LOOPS.format(step=step), encoding="utf-8")
    spec = spec_from_file_location("made_loops", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def worked(module: Any) -> tuple[object, list[list[int]], int, int]:  # noqa: ANN401
    """Return what the loop says, what it leaves, and how often it was compiled and loaded."""
    numbers, flags = np.arange(5, dtype=np.uint8), np.array([True, True, False, True, True])
    table = np.zeros((2, 3), np.int64)
    said = module.work(module.Given(numbers, flags, 4, backwards=True), table)
    return said, table.tolist(), module.work.compiled, module.work.loaded


def test_loaded_code_does_the_same(tmp_path: Path) -> None:
    """Every kind of argument and result goes through, in compiled code as in that from the disk."""
    wanted = ((4, True, 0), [[0, 0, 0], [8, 0, 0]])
    assert worked(loops(tmp_path)) == (*wanted, 1, 0)
    assert worked(loops(tmp_path)) == (*wanted, 0, 1)


def test_changed_constant_is_compiled_anew(tmp_path: Path) -> None:
    """A constant that a called loop uses is a part of the code, though the source of the caller is as it was."""
    worked(loops(tmp_path))
    assert worked(loops(tmp_path, step=5)) == ((4, True, 0), [[0, 0, 0], [20, 0, 0]], 1, 0)
    assert len(list(tmp_path.rglob("made_loops.work-*"))) == 1


@pytest.mark.parametrize("cut", [0, 1, -1])
def test_damaged_code_is_not_run(tmp_path: Path, cut: int) -> None:
    """A file that was cut off, or in which one byte is another, is compiled anew and written again."""
    worked(loops(tmp_path))
    (kept,) = tmp_path.rglob("made_loops.work-*")
    data = kept.read_bytes()
    kept.write_bytes(data[:cut] if cut else data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert worked(loops(tmp_path))[2:] == (1, 0)
    assert worked(loops(tmp_path))[2:] == (0, 1)


def test_nothing_is_numbas(tmp_path: Path) -> None:
    """Who runs a loop whose code is kept does not import numba."""
    script = "import sys, numpy, made_loops; made_loops.nothing(numpy.zeros(3)); print('numba' in sys.modules)"
    loops(tmp_path)
    done = [
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert done == ["True\n", "False\n"]


def test_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside a source that nobody can write to, code is kept in the user's cache; without that, nowhere."""
    (tmp_path / "__pycache__").write_text("in the way of a folder", encoding="utf-8")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert worked(loops(tmp_path))[2:] == (1, 0)
    assert worked(loops(tmp_path))[2:] == (0, 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "made_loops.py"))
    assert worked(loops(tmp_path))[2:] == (1, 0)


def test_what_a_loop_does_not_take(tmp_path: Path) -> None:
    """What numba would need its own machinery for, and what is no number, is refused by name."""
    module = loops(tmp_path)
    with pytest.raises(TypeError, match=r"allocates: a loop allocates nothing, and this one needs NRT_\w+"):
        module.allocates(3)
    with pytest.raises(TypeError, match="arrays without gaps only"):
        module.nothing(np.zeros((4, 4))[:, 1])
    with pytest.raises(TypeError, match="not str"):
        module.nothing("text")
    with pytest.raises(ArithmeticError, match="no result"):
        module.divided(0)
    assert module.divided(1) == 1
