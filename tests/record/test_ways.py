"""Where the recorder can go two ways, both give the same trace of the same run."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import pytest

from asikit.record import Recording, recording
from asikit.record._qemu import GuestMachine, Plugin
from asikit.trace import Trace
from tests.record.conftest import run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

WORKLOAD = ("sh", "-c", "for i in 1 2 3; do ls -lR /bin /proc/self | sort > /tmp/$i; done")


@pytest.fixture(scope="module", autouse=True)
def same_time() -> Iterator[None]:
    """Have each guest begin at one time of day, which the kernel divides with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recording, "GuestMachine", functools.partial(GuestMachine, clock=0.0))
        yield


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """Record on one CPU, whose run is the same each time: its clock is its instructions."""
    return Trace.open(run(Recording(WORKLOAD, bare=True), tmp_path_factory.mktemp("usual") / "t.asitrace").trace)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("count=callback",), ("cpu=running",), ("count=callback", "cpu=running")])
def test_same_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usual: Trace, options: tuple[str, ...]) -> None:
    """One CPU recorded as several are: counted by callback, and with a look at which CPU it is that runs.

    Each event is the same and its clock, each table. QEMU 7.2 always says which CPU runs: there the look is not taken.
    """
    monkeypatch.setattr(recording, "Plugin", functools.partial(Plugin, options=options))
    other = Trace.open(run(Recording(WORKLOAD, bare=True), tmp_path / "t.asitrace").trace)
    assert usual.rows("events") > 10_000
    assert other.meta["clock"] == usual.meta["clock"]
    assert other.content_hash == usual.content_hash
