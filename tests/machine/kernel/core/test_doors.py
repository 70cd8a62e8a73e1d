"""What the kernel's parts know of the kernel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from asikit.machine.kernel.core import kernel
from asikit.machine.kernel.core.report import MachineTally
from asikit.machine.kernel.core.watching import AllocationWatch

WHOLE = {"boot.py", "execution.py", "kernel.py"}
"""Who knows all of the kernel: who makes it, who runs it."""


def test_parts_know_doors_and_not_the_kernel() -> None:
    """No other part imports `Kernel`, not even for its type."""
    room = Path(str(kernel.__file__)).parent
    knowing = {path.name for path in room.glob("*.py") if "import Kernel\n" in path.read_text(encoding="utf-8")}
    assert knowing | {"kernel.py"} == WHOLE


def test_part_works_with_its_doors_alone() -> None:
    """A part gets along with what it asks for."""
    tally = MachineTally()
    doors = SimpleNamespace(tally=tally, invariants=None, observers=[], cpus=[], layout=None)
    watch = AllocationWatch(cast("Any", doors))
    watch.on_alloc(5, 2, cast("Any", 0), 0)
    watch.on_free(5, 1)
    assert (tally.allocations["pages"], tally.allocations["frees"]) == (4, 2)
