"""The model against what others measured: a real ASI kernel, and IBPB at every entry."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from asikit.cost import CostResult, CostRow, cpu_parameters, price
from asikit.machine.x86 import load_cpu
from asikit.replay import load_policy
from asikit.trace import Trace
from tests.builders import TraceBuilder

SAMPLES = Path(str(files("asikit.data") / "samples"))

# bjackman/falba, example-db: fio, 4 KiB random reads of a file on tmpfs; ns for a read.
OFF_NS, ON_NS, EPHMAP_NS = 977, 2207, 1168
EXITS_PER_READ = 0.9997
# Its machine has 5-level paging and needs an IBPB at each exit: of the processors with known costs, Ice Lake server's.
LIKE_THEIRS = "ice-lake-6354"

# Inception artefact, UnixBench: ns that an IBPB at every kernel entry adds to a system call, on a processor of the same
# core: EPYC 7252, Ryzen 5 1600X, 5600G.
ADDED_NS = {"zen2-7452": (435, 597), "zen-1200": (2333, 2333), "zen3-5600x": (212, 212)}


def fio() -> CostResult:
    """Price the recording of fio: without ephemeral mappings and with."""
    return price(
        Trace.open(SAMPLES / "page-cache.asitrace"),
        [load_cpu(LIKE_THEIRS)],
        policies=[load_policy("denylist-2025"), load_policy("ephmap")],
        mitigations=["asi"],
    )


def test_fio_exit() -> None:
    """What an exit and re-entry cost on the real kernel lies in the model's interval, and near its guess."""
    on, _ = fio().rows
    measured = (ON_NS - OFF_NS) / EXITS_PER_READ
    assert on.per_exit_ns is not None
    assert on.per_exit_ns.low <= measured <= on.per_exit_ns.high
    assert 0.5 <= on.per_exit_ns.mid / measured <= 2


def test_fio_order_and_ratios() -> None:
    """Reads are fastest with ASI off, slower by ephemeral mappings, slowest by exits; by nearly the real ratios."""
    on, ephmap = fio().rows
    assert on.per_exit_ns is not None
    assert ephmap.per_ephmap_ns is not None
    assert ephmap.per_ephmap_ns.low <= EPHMAP_NS - OFF_NS <= ephmap.per_ephmap_ns.high
    by_exit = OFF_NS + EXITS_PER_READ * on.per_exit_ns.mid
    by_ephmap = OFF_NS + ephmap.per_ephmap_ns.mid
    assert OFF_NS < by_ephmap < by_exit
    assert by_exit / OFF_NS == pytest.approx(ON_NS / OFF_NS, rel=0.25)
    assert by_ephmap / OFF_NS == pytest.approx(EPHMAP_NS / OFF_NS, rel=0.1)


def entry_ns(name: str, tmp_path: Path) -> CostRow:
    """Price system calls with an IBPB at each entry."""
    b = TraceBuilder()
    b.return_user()
    for _ in range(50):
        b.entry_syscall(39).return_user()
    trace = b.write(tmp_path / f"{name}.asitrace")
    return price(trace, [load_cpu(name)], policies=[], mitigations=["ibpb-entry"]).rows[0]


@pytest.mark.parametrize("name", sorted(ADDED_NS))
def test_ibpb_at_every_entry(name: str, tmp_path: Path) -> None:
    """The added time of a system call is within a factor of two of the measured one, and the interval meets it."""
    row = entry_ns(name, tmp_path)
    hertz = cpu_parameters(load_cpu(name))["frequency"].range
    trips = row.round_trips
    # The recording's first return has no entry: one round trip more than entries.
    per_call = row.per_round_trip.times(trips / (trips - 1))
    low, high = ADDED_NS[name]
    assert low / 2 <= per_call.mid / hertz.mid <= 2 * high
    assert per_call.low / hertz.high <= high
    assert low <= per_call.high / hertz.low
