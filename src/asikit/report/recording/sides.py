"""What a page about recordings is made from: each recording replayed, followed and priced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from asikit.cost import policy_on, price
from asikit.replay import History, MechanismKind, replay
from asikit.replay.grouping import Grouping, Labeller

if TYPE_CHECKING:
    from collections.abc import Sequence

    import polars as pl

    from asikit.cost import CostResult, CostRow
    from asikit.machine.x86 import CpuModel
    from asikit.replay import By, Policy, ReplayResult, Selection
    from asikit.trace import Trace

__all__ = ["MITIGATIONS", "Asked", "PolicyView", "RecordingView", "look"]

MITIGATIONS = ("none", "linux", "blanket", "asi")
"""What a recording is priced with: ASI against its alternatives."""


@dataclass(frozen=True)
class Asked:
    """What a page is to be about.

    :ivar cpus: The first is the one that the answer is about.
    :ivar selection: The part of each recording that counts; all of it when None.
    :ivar by: What parts the counts are divided into, too.
    """

    policies: tuple[Policy, ...]
    cpus: tuple[CpuModel, ...]
    selection: Selection | None = None
    by: By | None = None


@dataclass(frozen=True)
class PolicyView:
    """A recording under one policy of ASI's.

    :ivar name: What tells it from the others.
    :ivar history: On the first processor, of the whole recording.
    :ivar exits: Those of the history that count.
    :ivar row: Its price there.
    """

    name: str
    trace: Trace
    result: ReplayResult
    history: History
    exits: pl.DataFrame
    row: CostRow


@dataclass(frozen=True)
class RecordingView:
    """A recording under all policies.

    :ivar name: What tells it from the others.
    :ivar results: As ``asi replay`` gives them.
    :ivar cost: As ``asi cost`` gives it; None if no policy is ASI's.
    :ivar sides: Of ASI's policies, in their order.
    """

    name: str
    trace: Trace
    results: tuple[ReplayResult, ...]
    cost: CostResult | None
    sides: tuple[PolicyView, ...]


def look(traces: Sequence[Trace], asked: Asked) -> tuple[RecordingView, ...]:
    """Replay, follow and price each recording.

    :raises CostError: What is selected has no instructions; also :class:`PolicyError`, :class:`TraceError`.
    :raises SelectionError: A recording does not have what is selected.
    """
    names = _names(traces)
    return tuple(_look(trace, name, asked, several=len(traces) > 1) for trace, name in zip(traces, names, strict=True))


def _look(trace: Trace, name: str, asked: Asked, *, several: bool) -> RecordingView:
    results = tuple(replay(trace, asked.policies, selection=asked.selection, by=asked.by))
    asi = [policy for policy in asked.policies if policy.mechanism.kind is MechanismKind.ASI]
    if not asi:
        return RecordingView(name, trace, results, None, ())
    cost = price(trace, asked.cpus, policies=asi, mitigations=MITIGATIONS, selection=asked.selection, by=asked.by)
    first = asked.cpus[0]
    rows = {row.policy: row for row in cost.rows if row.cpu == first.name and row.policy is not None}
    by_policy = {result.policy: result for result in results}
    sides = []
    for policy in asi:
        words = [*([name] if several else []), *([policy.name] if len(asi) > 1 or not several else [])]
        history = History.of(trace, policy_on(policy, first))
        exits = _counted(history, asked.selection)
        sides.append(
            PolicyView(", ".join(words), trace, by_policy[policy.name], history, exits, rows[policy.name]),
        )
    return RecordingView(name, trace, results, cost, tuple(sides))


def _counted(history: History, selection: Selection | None) -> pl.DataFrame:
    """Return the exits that a replay with this selection counts."""
    exits = history.exits
    if selection is None:
        return exits
    labeller = Labeller(Grouping.of(history.trace, selection, None))
    rows, counts, first = exits["row"].to_numpy().astype(np.int64), np.zeros(exits.height, np.bool_), 0
    for chunk in history.trace.events():
        groups = labeller.label(*(chunk[name].to_numpy() for name in ("cpu", "kind", "arg")))
        here = slice(*np.searchsorted(rows, [first, first + chunk.height]))
        counts[here] = groups[rows[here] - first] > 0
        first += chunk.height
    return exits.filter(counts)


def _names(traces: Sequence[Trace]) -> list[str]:
    """Return what each recording is called: its folder's name, with as much before it as tells it apart."""
    stems = [trace.path.resolve().name.removesuffix(".asitrace") for trace in traces]
    return [stem if stems.count(stem) == 1 else str(trace.path) for stem, trace in zip(stems, traces, strict=True)]
