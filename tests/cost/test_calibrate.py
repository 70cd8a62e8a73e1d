"""Measuring this machine: what the program prints, and the model file made of it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import msgspec
import pytest

from asikit.cost import (
    Basis,
    Calibration,
    CalibrationError,
    Measurement,
    Unit,
    base_model,
    calibrate,
    cpu_parameters,
    known_parameters,
    model_text,
    price,
    read_identity,
)
from asikit.cost._statistics import estimate
from asikit.cost.calibrate import parse
from asikit.machine.x86 import Bug, load_cpu
from tests.cost.running import cpu, exact, round_trips, rows
from tests.cost.test_host import SKYLAKE, saved

if TYPE_CHECKING:
    from pathlib import Path


def test_parse() -> None:
    """Samples by name; a measurement that ended early is missing, with its reason."""
    text = "imul 0.5\nimul 0.6\nibpb 100.0\nmissing ibpb killed by signal 7\nverw -1.25\n"
    with pytest.raises(CalibrationError, match="printed 'ibpb', which is no sample"):
        parse("ibpb")
    assert parse(text) == ({"imul": [0.5, 0.6], "verw": [-1.25]}, {"ibpb": "killed by signal 7"})


def test_samples_become_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three cycles in 1.5 ns are 2 GHz; a cost below nothing is lost in the noise, and named as such."""
    verw = ["verw 10.0", "verw 30.0", "verw 20.0"]
    lines = [*["imul 1.5"] * 7, *verw, *["lfence -1.0"] * 7, "missing ibpb no such thing"]
    module = import_module("asikit.cost.calibrate")  # the package's own name is the function's
    monkeypatch.setattr(module, "_run", lambda _: "\n".join(lines))
    monkeypatch.setattr(module, "read_identity", lambda: None)
    calibration = calibrate(samples=7)
    figures = {one.name: (one.unit.value, one.figures.median, one.figures.low) for one in calibration.measured}
    assert figures == {"frequency": ("GHz", 2.0, 2.0), "verw": ("ns", 20.0, None)}
    assert calibration.missing["lfence"] == "lost in the noise: -1 ns, -1 to -1 ns"
    assert calibration.missing["ibpb"] == "no such thing"


@pytest.mark.needs_cc
def test_calibrate_this_machine(tmp_path: Path) -> None:
    """Each cost is measured or has a reason; the model file that comes of it prices a trace, and keeps the sources."""
    calibration = calibrate(samples=7)
    measured = {one.name: one for one in calibration.measured}
    assert measured.keys() <= known_parameters().keys()
    assert {"frequency", "system_call", "minor_fault", "fork", "clear_pageblock"} <= measured.keys()
    assert {"cr3_write", "page_fault"} <= calibration.missing.keys()
    assert not measured.keys() & calibration.missing.keys()
    for name in ("ibpb", "l1d_flush", "ipi", "context_switch", "fork_page_copy", "verw", "lfence", "rsb_fill"):
        assert name in measured or calibration.missing[name], name
    for one in calibration.measured:
        assert one.figures.low is not None
        assert one.figures.high is not None
        assert one.figures.low <= one.figures.median <= one.figures.high
    file = tmp_path / "mine.toml"
    file.write_text(
        model_text(calibration, base_model(calibration.identity, None), date="2026-01-01"), encoding="utf-8"
    )
    model = load_cpu(file)
    parameters = cpu_parameters(model)
    for name, one in measured.items():
        assert parameters[name].basis is Basis.MEASURED, name
        assert parameters[name].range.mid == pytest.approx(one.figures.median, rel=0.1, abs=0.1), name
    assert model.costs["not_measured"] == dict(calibration.missing)
    trace = round_trips(3, exiting=1).write(tmp_path / "t.asitrace")
    assert price(trace, [model], policies=[], mitigations=["blanket"]).rows[0].overhead.high > 0


def test_model_file_of_another_machine(tmp_path: Path) -> None:
    """Bugs, features and paging are the machine's own by the kernel's names; structures are the nearest model's."""
    folder = saved(
        tmp_path / "skylake",
        SKYLAKE,
        model=78,
        name='A "fast" CPU',
        flags="ibpb ibrs md_clear flush_l1d pcid smep",
        bugs="cpu_meltdown spectre_v1 spectre_v2 spec_store_bypass l1tf mds itlb_multihit mmio_stale_data null_seg",
    )
    identity = read_identity(folder)
    figures = Measurement("ibpb", Unit.NANOSECONDS, estimate([10, 11, 12, 13, 14, 15, 16]), "a test")
    frequency = Measurement("frequency", Unit.GIGAHERTZ, estimate([2.0]), "a test")
    calibration = Calibration(identity, (frequency, figures), {"ipi": 'there is "one" CPU'})
    file = tmp_path / "mine.toml"
    file.write_text(model_text(calibration, base_model(identity, None), date="2026-01-01"), encoding="utf-8")
    model = load_cpu(file)
    assert model.title == 'A "fast" CPU'
    assert model.threads == 2
    assert model.bugs == {
        Bug.MELTDOWN, Bug.SPECTRE_V1, Bug.SPECTRE_V2, Bug.SSB, Bug.L1TF, Bug.MDS, Bug.ITLB, Bug.MMIO,
    }  # fmt: skip
    assert {feature.value for feature in model.features} == {"ibpb", "ibrs", "md_clear", "flush_l1d"}
    assert (model.paging.pcid, model.paging.invpcid, model.paging.maxphyaddr) == (True, False, 46)
    assert model.structures == load_cpu("skylake-6600u").structures
    parameters = cpu_parameters(model)
    assert (parameters["ibpb"].range.low, parameters["ibpb"].range.mid) == (10, 13)
    assert parameters["ibpb"].unit is Unit.NANOSECONDS
    # The published figure of the nearest model is kept, but was not measured on this specimen.
    assert parameters["verw"].range.mid == 518
    assert parameters["verw"].basis is Basis.ESTIMATE


def test_price_in_ns_is_the_price_in_cycles(tmp_path: Path) -> None:
    """A measured 100 ns at 3 GHz costs what 300 cycles cost."""
    trace = round_trips(3, exiting=1).write(tmp_path / "t.asitrace")
    cycles = cpu(exact(ibpb=300, cr3_write=1, frequency=3))
    costs = dict(cycles.costs) | {"ibpb": cycles.costs["ibpb"] | {"unit": "ns", "value": 100.0}}
    nanoseconds = msgspec.structs.replace(cycles, costs=costs)
    assert rows(trace, cycles)[0].overhead.mid == pytest.approx(rows(trace, nanoseconds)[0].overhead.mid)


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a C compiler it says so in one line."""
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(CalibrationError) as caught:
        calibrate(samples=1)
    wanted = "the C compiler no-such-compiler is missing; install one (Debian: apt-get install gcc libc6-dev) or set CC"
    assert str(caught.value) == wanted
