"""Processors and traces of known costs, for the tests of this folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from asikit.cost import BaseTime, CostRow, known_parameters, price
from asikit.machine.x86 import Bug, CpuModel, Feature, load_cpu
from asikit.replay import load_policy
from tests.builders import TraceBuilder

if TYPE_CHECKING:
    from asikit.trace import Trace

GFP_USER = 0xCC0 | 0x100000
"""Has ``__GFP_HARDWALL`` in built traces, so it is sensitive."""


def exact(**figures: float) -> dict[str, dict[str, Any]]:
    """Give a table of costs in which everything is exactly 0 but these."""
    costs = {}
    for name, parameter in known_parameters().items():
        value = figures.get(name, 1.0 if name in {"cpi", "frequency"} else 0.0)
        costs[name] = {"unit": parameter.unit.value, "value": value, "basis": "measured", "source": "a test"}
    return costs


def ranged(**figures: tuple[float, float, float]) -> dict[str, dict[str, Any]]:
    """Give costs with ranges, to lay over :func:`exact`."""
    return {
        name: {
            "unit": known_parameters()[name].unit.value,
            "low": low,
            "mid": mid,
            "high": high,
            "basis": "estimate",
            "source": "a test",
        }
        for name, (low, mid, high) in figures.items()
    }


def cpu(
    costs: dict[str, dict[str, Any]], *, bugs: tuple[Bug, ...] = (), features: tuple[Feature, ...] = (Feature.IBPB,)
) -> CpuModel:
    """Give a processor with these costs and bugs."""
    return msgspec.structs.replace(
        load_cpu("generic"), name="mine", costs=costs, bugs=frozenset(bugs), features=frozenset(features)
    )


def round_trips(number: int, *, exiting: int, pages: int = 1) -> TraceBuilder:
    """Give a trace of system calls of which the first ones touch sensitive memory; each event is 10 instructions.

    :param pages: Nonsensitive pages that each call reads first.
    """
    b = TraceBuilder()
    b.return_user()
    for trip in range(number):
        b.entry_syscall(0)
        for page in range(pages):
            b.touch_read(label=f"page {page}")
        if trip < exiting:
            b.touch_read(kind="shmem", gfp=GFP_USER, label="sensitive")
        b.return_user()
    return b


def rows(
    trace: Trace,
    model: CpuModel,
    *,
    mitigations: tuple[str, ...] = ("asi",),
    policy: str = "denylist-2025",
    base_time: BaseTime | None = None,
    smt: bool = False,
) -> list[CostRow]:
    """Price a trace and give the rows."""
    result = price(
        trace, [model], policies=[load_policy(policy)], mitigations=mitigations, base_time=base_time, smt=smt
    )
    return list(result.rows)
