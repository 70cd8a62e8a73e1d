"""The one place for numba: what a loop was compiled for in an earlier version does no harm."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

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
    script = "import loops; print(loops.result(), sum(loops.doubled.stats.cache_hits.values()))"
    printed = []
    for name in ("Before", "After", "After"):
        (tmp_path / "loops.py").write_text(MODULE.format(name=name), encoding="utf-8")
        done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        printed.append(done.stdout or done.stderr)
    assert printed == ["42 0\n", "42 0\n", "42 1\n"]
