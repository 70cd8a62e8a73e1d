"""The guest's processors: their model, their number, their clock."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from asikit.cost import price
from asikit.machine.x86 import load_cpu
from asikit.record import Recording, Streams, record
from asikit.replay import load_policy
from asikit.trace import EventKind, Trace
from tests.record.conftest import Run, run
from tests.record.kernels import bzimage
from tests.record.running import Command

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]

MODEL = "Nehalem"
CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
JOBS = "--name=job --directory=/tmp --size=4m --rw=randread --bs=4k --ioengine=psync --thread --numjobs=2"


def test_model(tmp_path: Path) -> None:
    """The guest has the CPU that was asked for, and the trace says which it is."""
    done = run(
        Recording(("grep", "-m1", "model name", "/proc/cpuinfo"), cpu=MODEL, bare=True), tmp_path / "cpu.asitrace"
    )
    assert MODEL in done.out
    assert Trace.open(done.trace).meta["machine"]["cpu_model"] == f"QEMU {MODEL}"


def test_unknown_model(tmp_path: Path) -> None:
    """QEMU's word about a model that it does not know, with the way to those that it does."""
    command = Command(tmp_path)
    vmlinuz = bzimage(tmp_path / "boot/vmlinuz", "6.1.0-1-amd64")
    ended = command.run("--kernel", str(vmlinuz), "--cpu", "odd", "--", "true")
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert ended.err.startswith("asi: error: --cpu odd: ")
    assert ended.err.endswith("'odd'; what there is: qemu-system-x86_64 -cpu help\n")
    assert command.left() == []


@pytest.mark.parametrize("cpus", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_clock(tmp_path: Path, cpus: int) -> None:
    """Any number of CPUs read the TSC, which is no system call; tsc-early is its name until it is calibrated."""
    done = run(Recording(("cat", CLOCK), cpus=cpus, bare=True), tmp_path / "clock.asitrace")
    assert done.out in {"tsc\n", "tsc-early\n"}


@pytest.mark.slow
@pytest.mark.needs_fio
def test_one_cpu_and_two(tmp_path: Path) -> None:
    """Two jobs go the same round trips on one CPU as on two, but for a few, and mitigations rank alike."""

    def recorded(cpus: int) -> Trace:
        trace = tmp_path / f"{cpus}.asitrace"
        recording = Recording(("fio", *JOBS.split()), cpus=cpus, bare=True)
        streams = Streams.to(io.BytesIO(), io.BytesIO())
        done = record(recording, trace, say=lambda line: None, streams=streams)  # noqa: ARG005
        assert not any(done.lost.values())
        return Trace.open(trace)

    def round_trips(trace: Trace) -> int:
        kinds = pl.concat([part["kind"] for part in trace.events()])
        return int(kinds.is_in([kind for kind in EventKind if kind.name.startswith("ENTRY_")]).sum())

    traces = [recorded(cpus) for cpus in (1, 2)]
    one, two = map(round_trips, traces)
    assert abs(two - one) <= one // 10
    first, second = map(_ranking, traces)
    assert first == second


def _ranking(trace: Trace) -> list[tuple[str, str | None]]:
    """Give mitigations and policies in the order of what they cost."""
    policies = [load_policy(name) for name in ("denylist-2025", "ephmap")]
    mitigations = ("none", "linux", "blanket", "asi")
    rows = price(trace, [load_cpu("generic")], policies=policies, mitigations=mitigations).rows
    return [(row.mitigation, row.policy) for row in sorted(rows, key=lambda row: row.overhead.mid)]


def test_events_of_each_cpu(tmp_path: Path, compiled: Callable[[Path], str]) -> None:
    """What a task pinned to a CPU does is recorded as that CPU's, also where QEMU names another to plugins."""
    program = compiled(Path(__file__).parent / "pinned.c")
    done: Run = run(Recording((program,), cpus=2, bare=True), tmp_path / "pinned.asitrace")
    trace = Trace.open(done.trace)
    number = next(int(key) for key, name in trace.meta["syscalls"].items() if name == "getsid")
    events = pl.concat(list(trace.events())).filter(kind=EventKind.ENTRY_SYSCALL, arg=number)
    assert events["cpu"].to_list() == [0] * 50 + [1] * 50 + [0] * 50
