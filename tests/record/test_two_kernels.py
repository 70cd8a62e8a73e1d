"""The same work on two kernels, compared: what their compilers inlined differently is no change."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from asikit.cost import compare
from tests.record.conftest import run
from tests.record.guests import Guest

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_apt, pytest.mark.slow]

REPLAY = (sys.executable, "-c", "from asikit.cli import main; main()", "replay", "--json")
WORKLOAD = ("sh", "-c", "for i in 1 2 3; do ls -l /bin | sort > /tmp/$i; done; cat /tmp/? | wc -l")

FEW = 2
"""Exits that come and go with a context switch."""


def test_inlined_copies_are_one_cause(tmp_path: Path) -> None:
    """No function has exits less in one place and as many more in another that only one kernel names."""

    def replayed(series: str) -> str:
        made = run(Guest(series).recording(*WORKLOAD), tmp_path / f"{series}.asitrace")
        document = tmp_path / f"{series}.json"
        document.write_bytes(subprocess.run([*REPLAY, str(made.trace)], capture_output=True, check=True).stdout)
        return str(document)

    (pair,) = compare(replayed("6.1"), replayed("6.12"), factors=["kernel", "recording"]).pairs
    gone, come = Counter[str](), Counter[str]()
    for change in pair.causes:
        function = change.name.split(" <- ")[0]
        gone[function] += 0 if change.second.median else int(change.first.median)
        come[function] += 0 if change.first.median else int(change.second.median)
    assert pair.read_as_one > 0
    assert [function for function in gone & come if min(gone[function], come[function]) > FEW] == []
