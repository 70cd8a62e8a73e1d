"""The kernel stacks of all exits, as one tree: by side, task and phase, by count and by cycles."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.cost import step_cycles
from asikit.replay import By, Selection
from asikit.replay.grouping import Grouping, Labeller
from asikit.report.html import Flame, FlameRows
from asikit.trace import RETURN_KINDS, Stacks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asikit.report.recording.sides import PolicyView

__all__ = ["ROOM", "exits_apart", "flame"]

ROOM = 700_000
"""So many characters of a page are for stacks, the commonest first; the exits of rarer ones stand together."""
_ROW, _NODE = 24, 12
"""About as many characters does a row take, a node."""
_REST = "(rarer stacks)"
_UNKNOWN = "(no stack)"
_RETURNS = [int(kind) for kind in RETURN_KINDS]


def flame(sides: Sequence[PolicyView]) -> Flame:
    """Return the exits of all sides in one tree, so that any two can be compared."""
    counted = pl.concat(
        [exits_apart(side).with_columns(side=pl.lit(number, pl.UInt32)) for number, side in enumerate(sides)]
    ).sort("exits", descending=True, maintain_order=True)
    tree = _Tree()
    stacks = [Stacks(side.trace) for side in sides]
    nodes: list[int] = []
    for side, stack in counted.select("side", "stack").iter_rows():
        if tree.size + _ROW * len(nodes) > ROOM:
            break
        nodes.append(tree.stack(stacks[side], stack))
    kept = counted.head(len(nodes))
    rest = counted.slice(len(nodes)).group_by("side", "task", "phase", maintain_order=True)
    rest_rows = rest.agg(pl.col("exits", "cycles").sum())
    if rest_rows.height:
        nodes += [tree.child(0, _REST)] * rest_rows.height
    columns = ("side", "task", "phase", "exits", "cycles")
    rows = pl.concat([kept.select(columns), rest_rows.select(columns)])
    tasks, phases = _numbers(rows["task"]), _numbers(rows["phase"])
    flame_rows = FlameRows(
        tuple(nodes),
        tuple(rows["side"].to_list()),
        tuple(tasks[name] for name in rows["task"].to_list()),
        tuple(phases[name] for name in rows["phase"].to_list()),
        tuple(rows["exits"].to_list()),
        tuple(rows["cycles"].round().cast(pl.Int64).to_list()),
    )
    return Flame(
        "Exits by kernel stack",
        tuple(tree.names),
        tuple(tree.parents),
        tuple(tree.name_of),
        tuple(side.name for side in sides),
        tuple(tasks),
        tuple(phases),
        flame_rows,
        sides[0].row.cpu,
    )


def exits_apart(side: PolicyView) -> pl.DataFrame:
    """Return how many exits count, and what they cost, for each ``stack``, ``task`` and ``phase``.

    An exit counts in the task and the phases in which ``asi replay --by`` counts it. What the return after the last
    exit of a round trip costs is that exit's.
    """
    history = side.history
    marks = history.marks
    tasks = Grouping.of(side.trace, Selection(), By.TASK)
    labels = Labeller(tasks).label(marks["cpu"].to_numpy(), marks["kind"].to_numpy(), marks["arg"].to_numpy())
    phases = Grouping.of(side.trace, Selection(), By.PHASE)
    price = step_cycles(history, side.row)
    leaving = [step for step in price if history.step(step).exit_reason is not None]
    returned = pl.col("kind").is_in(_RETURNS) & pl.col("trip").is_not_null()
    priced = (
        marks.select("row", "step", "trip", "kind")
        .with_columns(task=pl.Series(labels))
        .filter(returned | pl.col("step").is_in(leaving))
        .with_columns(cycles=pl.col("step").replace_strict(price, default=0.0, return_dtype=pl.Float64))
    )
    back = priced.filter(returned)
    after = back.select("trip", after=pl.col("cycles"))
    exits = (
        history.exits.select("row", "trip", "stack")
        .join(priced.select("row", "cycles", "task"), on="row", how="left", maintain_order="left")
        .join(after, on="trip", how="left", maintain_order="left")
    )
    last = pl.col("row") == pl.col("row").max().over("trip")
    segment = np.searchsorted(phases.bounds, exits["row"].to_numpy().astype(np.int64), side="right") - 1
    # Group 0 is what is not selected: here nothing.
    task_names = np.array(["", *(group.name for group in tasks.groups)], object)
    phase_names = np.array(["", *(group.name for group in phases.groups)], object)
    named = exits.with_columns(
        cycles=pl.col("cycles") + pl.when(last).then(pl.col("after")).fill_null(0),
        task=pl.Series(task_names[exits["task"].to_numpy()].tolist(), dtype=pl.String),
        phase=pl.Series(phase_names[phases.segment_key[segment]].tolist(), dtype=pl.String),
    )
    groups = named.join(side.exits, on="row", how="semi", maintain_order="left").group_by(
        "stack", "task", "phase", maintain_order=True
    )
    return groups.agg(exits=pl.len(), cycles=pl.col("cycles").sum())


def _numbers(names: pl.Series) -> Mapping[str, int]:
    """Return each name's number, in the order of the names."""
    return {name: number for number, name in enumerate(names.unique().sort().to_list())}


class _Tree:
    """Stacks of several recordings by the names of their functions, outermost first.

    :ivar size: About how many characters it takes.
    """

    def __init__(self) -> None:
        self.names: list[str] = ["all exits"]
        self.parents = [0]
        self.name_of = [0]
        self.size = 0
        self._numbers: dict[str, int] = {}
        self._children: dict[tuple[int, int], int] = {}
        self._known: dict[tuple[int, int], int] = {}

    def stack(self, stacks: Stacks, stack: int) -> int:
        """Return the node of a stack's innermost function."""
        key = (id(stacks), stack)
        if key not in self._known:
            node = 0
            for frame in reversed(stacks.frames(stack)):
                node = self.child(node, f"{frame.name} [{frame.module}]" if frame.module else frame.name)
            self._known[key] = node or self.child(0, _UNKNOWN)
        return self._known[key]

    def child(self, parent: int, name: str) -> int:
        """Return the node of a function that another one called."""
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
            self.size += len(name) + len('"",')
        key = (parent, number)
        if key not in self._children:
            self._children[key] = len(self.parents)
            self.size += _NODE
            self.parents.append(parent)
            self.name_of.append(number)
        return self._children[key]
