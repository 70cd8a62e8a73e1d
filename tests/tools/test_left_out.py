"""What `make test` leaves to `make test-all` is said, also by the process that only shares tests out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = "tests/record/test_as_typed.py"


@pytest.mark.parametrize("processes", ["0", "2"])
def test_slow_tests_are_counted(processes: str) -> None:
    """A slow test that is left out is no green one: the last lines say how many there are, and where."""
    words = ("-n", processes, "-m", "not slow", f"{FILE}::test_there_are_sixty", f"{FILE}::test_as_typed[true]")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert "left to make test-all: 1 slow test(s): tests/record 1\n" in done.stdout
    assert "1 passed" in done.stdout.splitlines()[-1]
