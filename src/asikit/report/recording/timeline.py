"""When a recording was restricted and when it was not, in bins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from asikit.protocol import PRIMITIVES, EffectKind, FlushSide
from asikit.report.html import CpuTrack, Phase, Timeline
from asikit.report.view import Column, Row, Table
from asikit.trace import instructions_before

if TYPE_CHECKING:
    import numpy.typing as npt

    from asikit.replay import History
    from asikit.report.recording.sides import PolicyView

    Numbers = npt.NDArray[np.int64]

__all__ = ["cpu_table", "timeline"]

_MOST_BINS, _LEAST_BINS, _MOST_VALUES = 600, 60, 12_000
_PER_MILLE = 1000
_MOST_PHASES = 400
_KINDS = {
    "predictor": {primitive.kind for primitive in PRIMITIVES if primitive.side is FlushSide.CONTROL},
    "buffer": {primitive.kind for primitive in PRIMITIVES if primitive.side is FlushSide.DATA},
    "stuns": {EffectKind.STUN},
}


def timeline(side: PolicyView, *, sides: int = 1) -> Timeline:
    """Return what each CPU did when, in as many bins as there is room for; only the exits are those that count.

    :param sides: How many timelines share the page's room.
    """
    history = side.history
    length = max(1, _length(history))
    cpus = _cpus(history)
    bins = min(_MOST_BINS, max(_LEAST_BINS, _MOST_VALUES // max(1, sides * len(cpus))), length)
    edges = np.linspace(0, length, bins + 1)
    tracks = tuple(_track(side, cpu, edges) for cpu in cpus)
    return Timeline(f"{side.name}: each CPU's state over time", bins, length, tracks, _phases(side))


def cpu_table(side: PolicyView) -> Table:
    """Return a row for each CPU: its state over the whole recording, and the exits that count."""
    history = side.history
    edges = np.array([0.0, max(1, _length(history))])
    rows = []
    for cpu in _cpus(history):
        restricted, unrestricted = (_covered(*spans, edges)[0] / edges[1] for spans in _spans(history, cpu))
        counts = _counts(history, cpu, edges)
        exits = side.exits.filter(pl.col("cpu") == cpu).height
        figures = (f"{restricted:.1%}", f"{unrestricted:.1%}", f"{exits:,}")
        rows.append(Row((f"CPU {cpu}", *figures, *(f"{int(counts[name][0]):,}" for name in _KINDS))))
    headings = ("restricted", "unrestricted", "exits", "predictor flushes", "buffer flushes", "stuns")
    return Table((Column("CPU"), *(Column(heading, number=True) for heading in headings)), tuple(rows))


def _length(history: History) -> int:
    return int(history.marks["time"].max() or 0)  # type: ignore[arg-type]


def _cpus(history: History) -> list[int]:
    return sorted(history.marks["cpu"].unique().to_list())


def _track(side: PolicyView, cpu: int, edges: npt.NDArray[np.float64]) -> CpuTrack:
    history, widths = side.history, np.diff(edges)
    shares = [
        np.clip(np.rint(_PER_MILLE * _covered(*spans, edges) / widths), 0, _PER_MILLE).astype(int).tolist()
        for spans in _spans(history, cpu)
    ]
    exits = np.histogram(side.exits.filter(pl.col("cpu") == cpu)["time"].to_numpy(), edges)[0].tolist()
    counts = {name: tuple(map(int, values)) for name, values in _counts(history, cpu, edges).items()}
    return CpuTrack(cpu=cpu, restricted=tuple(shares[0]), unrestricted=tuple(shares[1]), exits=tuple(exits), **counts)


def _spans(history: History, cpu: int) -> tuple[tuple[Numbers, Numbers], tuple[Numbers, Numbers]]:
    """Return the beginnings and ends of a CPU's time in the kernel: restricted, and not."""
    trips = history.trips.filter((pl.col("cpu") == cpu) & pl.col("protected"))
    end = pl.col("end").fill_null(_length(history))
    spans = trips.select("begin", "left", end=end).with_columns(turn=pl.col("left").fill_null(pl.col("end")))
    begin, turn, stop = (spans[name].to_numpy() for name in ("begin", "turn", "end"))
    return (begin, turn), (turn, stop)


def _covered(begins: Numbers, ends: Numbers, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return how much of each bin lies between a beginning and its end; a CPU's spans do not overlap."""

    def passed(points: Numbers) -> npt.NDArray[np.float64]:
        points = np.sort(points)
        sums = np.concatenate(([0.0], np.cumsum(points, dtype=np.float64)))
        before = np.searchsorted(points, edges)
        return before * edges - sums[before]

    return np.diff(passed(begins) - passed(ends))


def _counts(history: History, cpu: int, edges: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[Any]]:
    """Return how many flushes and stuns the steps of each bin ask for; a flush of several structures is one."""
    marks = history.marks.filter((pl.col("cpu") == cpu) & (pl.col("step") >= 0))
    times = marks["time"].to_numpy()
    found = {}
    for name, kinds in _KINDS.items():
        asking = {
            step: int(any(effect.kind in kinds for effect in history.step(step).effects))
            for step in marks["step"].unique().to_list()
        }
        asked = marks["step"].replace_strict(asking, return_dtype=pl.Int64).to_numpy() if asking else np.empty(0)
        found[name] = np.histogram(times, edges, weights=asked)[0]
    return found


def _phases(side: PolicyView) -> tuple[Phase, ...]:
    table = side.trace.table("phases").head(_MOST_PHASES)
    rows = [row for pair in table.select("begin", "end").iter_rows() for row in pair]
    times = instructions_before(side.trace, rows) if rows else []
    return tuple(
        Phase(name, begin, end)
        for name, begin, end in zip(table["name"].to_list(), times[::2], times[1::2], strict=True)
    )
