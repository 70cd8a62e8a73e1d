"""The figures of every processor: where they are from, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import pytest

from asikit.cost import Basis, CostError, Range, cpu_parameters, known_parameters
from asikit.machine.x86 import CpuModel, cpu_names, load_cpu

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True)
class Row:
    """Behrens et al., EuroSys 2022: cycles, mean of 1M runs; None where nothing was measured."""

    ibpb: int
    verw: int | None
    rsb_fill: int
    cr3_write: int | None
    syscall: int
    sysret: int
    lfence: int


MEASURED = {
    "broadwell-e5-2640v4": Row(5573, 610, 130, 206, 49, 40, 28),
    "skylake-6600u": Row(4537, 518, 130, 191, 42, 42, 20),
    "cascade-lake-4210r": Row(340, 458, 120, None, 70, 43, 15),
    "ice-lake-10351g1": Row(2455, None, 40, None, 21, 29, 8),
    "ice-lake-6354": Row(836, None, 69, None, 45, 32, 13),
    "zen-1200": Row(7370, None, 114, None, 63, 53, 48),
    "zen2-7452": Row(1088, None, 68, None, 53, 46, 4),
    "zen3-5600x": Row(808, None, 94, None, 83, 55, 30),
}


UNMEASURED = {
    "alder-lake-12900k",
    "emerald-rapids-8592",
    "granite-rapids-6972p",
    "raptor-lake-13900k",
    "sapphire-rapids-8480",
    "sierra-forest-6780e",
    "zen-plus-2600x",
    "zen4-9654",
    "zen5-9755",
}
"""Processors on which nobody published what a flush costs."""


@pytest.mark.parametrize("name", sorted(UNMEASURED))
def test_unmeasured_figures(name: str) -> None:
    """All of them are ranges; that of the IBPB says from which kin, and holds what was measured on them."""
    parameters = cpu_parameters(load_cpu(name))
    for key in Row.__dataclass_fields__:
        assert parameters[key].basis is Basis.ESTIMATE, key
        assert parameters[key].range.low < parameters[key].range.high, key
    ibpb = parameters["ibpb"]
    assert "no measurement" in ibpb.source
    assert ibpb.range.mid in {row.ibpb for row in MEASURED.values()}
    assert ibpb.cites == ("behrens-2022",)


@pytest.mark.parametrize("name", sorted(MEASURED))
def test_measured_figures(name: str) -> None:
    """What was measured is exact and says so; what was not is a range, and an estimate."""
    parameters = cpu_parameters(load_cpu(name))
    for key in Row.__dataclass_fields__:
        figure = getattr(MEASURED[name], key)
        parameter = parameters[key]
        if figure is None:
            assert parameter.basis is Basis.ESTIMATE, key
            assert parameter.range.low < parameter.range.high, key
        else:
            assert parameter.range == Range.exactly(figure), key
            assert parameter.basis is Basis.MEASURED, key
            assert "Behrens" in parameter.source, key


def test_every_model_has_every_cost() -> None:
    """Each figure of each processor has an order, a source, and words for what it is."""
    assert set(MEASURED) | UNMEASURED | {"generic"} == set(cpu_names())
    for name in cpu_names():
        parameters = cpu_parameters(load_cpu(name))
        assert parameters.keys() == known_parameters().keys()
        for key, parameter in parameters.items():
            figures = parameter.range
            assert 0 <= figures.low <= figures.mid <= figures.high, (name, key)
            assert len(parameter.source) > 10, (name, key)
            assert parameter.about, (name, key)


def test_shared_figures_are_estimates() -> None:
    """What no processor's file has is an estimate, and a range."""
    for name, parameter in known_parameters().items():
        assert parameter.basis is Basis.ESTIMATE, name
        assert parameter.range.low < parameter.range.high, name


def test_published_ranges_are_inside() -> None:
    """Figures of other machines (other_costs.md) lie in the shared ranges."""
    for name, figure in (
        ("page_fault", 715 + 330),
        ("fault_work", 1372 - 715 - 330),
        ("tlb_single_flush", 350),
        ("l1d_flush", 512),
        ("l1d_flush", 768),
        ("ipi", 1000),
        ("ipi", 3000),
        ("smt_off", 0.3),
    ):
        figures = known_parameters()[name].range
        assert figures.low <= figure <= figures.high, name


def with_costs(costs: Mapping[str, object]) -> CpuModel:
    """Give a model with these costs alone."""
    return msgspec.structs.replace(load_cpu("generic"), name="mine", costs=dict(costs))


GOOD = {"unit": "cycles", "value": 5, "basis": "measured", "source": "a test"}


def test_own_figures_stand_before_shared_ones() -> None:
    """A model's cost replaces the shared one, and may be in ns instead of cycles."""
    model = with_costs({"ibpb": GOOD, "ipi": GOOD | {"value": 2000}})
    assert cpu_parameters(model)["ibpb"].range == Range.exactly(5)
    assert cpu_parameters(model)["ipi"].range == Range.exactly(2000)


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({"ipbp": GOOD}, 'mine: [costs] has no parameter "ipbp"; the nearest is "ibpb"'),
        ({"ibpb": 5}, "mine: costs.ibpb: must be a table with unit, basis, source, and value or low, mid, high"),
        ({"ibpb": GOOD | {"value": -1}}, "mine: costs.ibpb: must not be negative or infinite"),
        ({"ibpb": GOOD | {"value": float("nan")}}, "mine: costs.ibpb: must not be negative or infinite"),
        ({"ibpb": GOOD | {"low": 1}}, "mine: costs.ibpb: must have either value, or low, mid and high"),
        ({"ibpb": GOOD | {"unit": "GHz"}}, "mine: costs.ibpb: unit: must be cycles, not GHz"),
        (
            {"ibpb": GOOD | {"unit": "hours"}},
            (
                'mine: costs.ibpb.unit: "hours" is not one of 1/instruction, GHz, count, cycles, cycles/instruction, '
                "ns, share"
            ),
        ),
        ({"ibpb": GOOD | {"source": " "}}, "mine: costs.ibpb: source: must say where the figures come from"),
        ({"frequency": GOOD | {"unit": "GHz", "value": 0}}, "mine: costs.frequency: must be greater than 0"),
        ({"smt_off": GOOD | {"unit": "share", "value": 30}}, "mine: costs.smt_off: must be at most 1"),
        (
            {"ibpb": {"unit": "cycles", "low": 3, "mid": 2, "high": 4, "basis": "measured", "source": "a test"}},
            "mine: costs.ibpb: must have low <= mid <= high, not 3, 2, 4",
        ),
    ],
)
def test_refusals(costs: Mapping[str, object], message: str) -> None:
    """A cost that makes no sense is refused in one line that names the model and the key."""
    with pytest.raises(CostError) as caught:
        cpu_parameters(with_costs(costs))
    assert str(caught.value) == message
