"""Where the recorder can go two ways, both give the same trace of the same run."""

import functools
from typing import TYPE_CHECKING

import pytest

from asikit.linux import Recording
from asikit.linux._qemu import Plugin
from asikit.trace import Trace
from tests.linux.conftest import run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

WORKLOAD = ("sh", "-c", "for i in 1 2 3; do ls -lR /bin /proc/self | sort > /tmp/$i; done")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Record on one CPU, whose run is the same each time: its clock is its instructions."""
    return Trace.open(run(Recording(WORKLOAD), tmp_path_factory.mktemp("usual") / "t.asitrace").trace)


@pytest.mark.parametrize("options", [("count=callback",), ("cpu=running",), ("count=callback", "cpu=running")])
def test_same_trace(tmp_path: "Path", monkeypatch: pytest.MonkeyPatch, usual: Trace, options: tuple[str, ...]) -> None:
    """One CPU recorded as several are: counted by callback, and with a look at which CPU it is that runs.

    Each event is the same and its clock, each table. QEMU 7.2 always says which CPU runs: there the look is not taken.
    """
    monkeypatch.setattr("asikit.linux.recording.Plugin", functools.partial(Plugin, options=options))
    other = Trace.open(run(Recording(WORKLOAD), tmp_path / "t.asitrace").trace)
    assert usual.rows("events") > 10_000
    assert other.meta["clock"] == usual.meta["clock"]
    assert other.content_hash == usual.content_hash
