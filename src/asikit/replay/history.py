"""What happened when, under one policy: each round trip, each exit, and each step of the protocol in between.

>>> from asikit.replay import History, ReplayPass, load_policy
>>> from asikit.trace import Trace
>>> history = History.of(Trace.open("fio.asitrace"), load_policy("denylist-2025"))  # doctest: +SKIP
>>> history.trips.filter(entry="syscall pread64")["exits"].sum()  # doctest: +SKIP
2048

Counting needs none of it: :func:`asikit.replay.replay` is several times as fast. Times are instructions that all CPUs
have retired, as :mod:`asikit.trace` has them: they never run backwards along the events, whichever CPU each is of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.replay._events import NO_ENTRY, SLOTS_PER_KIND, class_of_entry, entry_label
from asikit.replay._tally import NO_PLACE, REASONS
from asikit.replay.causes import name_sites
from asikit.replay.one_pass import ALL_CLASSES, ReplayPass
from asikit.trace import ENTRY_KINDS, RETURN_KINDS, TOUCH_KINDS, EventKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    from asikit.protocol import AsiClass
    from asikit.replay._steps import EventStep
    from asikit.replay._tables import SideTables
    from asikit.replay.one_pass import Replayed, Subject
    from asikit.replay.pieces import Piece
    from asikit.replay.policy import Policy
    from asikit.replay.result import ReplayResult
    from asikit.trace import Trace

    Transitions = npt.NDArray[np.int32]

__all__ = ["NO_STEP", "History"]

NO_STEP = -1
"""The step of a mark at which the protocol has nothing to do."""

_CPUS = 1 << 8
_UNMARKED = tuple(int(kind) for kind in (*TOUCH_KINDS, EventKind.PAGE_ALLOC, EventKind.PAGE_FREE))
_ENTRIES = [int(kind) for kind in ENTRY_KINDS]
_RETURNS = [int(kind) for kind in RETURN_KINDS]
_MARKS = {
    "row": pl.UInt64(),
    "time": pl.Int64(),
    "cpu": pl.UInt8(),
    "clock": pl.UInt64(),
    "kind": pl.UInt8(),
    "arg": pl.UInt32(),
    "stack": pl.UInt32(),
    "step": pl.Int32(),
}


class _Marks:
    """Keeps the events at which something happens: all but touches that need nothing, and the page allocator's."""

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []
        self._last = np.zeros(_CPUS, np.int64)
        self._rows = self._time = 0
        self.tables: SideTables

    def begin(self, subject: Subject) -> None:
        """Remember the side tables."""
        self.tables = subject.tables

    def follow(self, piece: Piece, transitions: Sequence[Transitions]) -> None:
        """Keep what matters of the next events."""
        (steps,) = transitions
        kept = np.flatnonzero(~np.isin(piece.kind, _UNMARKED) | (steps != NO_STEP))
        columns = {
            "row": (kept + self._rows).astype(np.uint64),
            "time": self._times(piece)[kept],
            "cpu": piece.cpu[kept],
            "clock": piece.clock[kept],
            "kind": piece.kind[kept],
            "arg": piece.arg[kept],
            "stack": piece.stack[kept],
            "step": steps[kept],
        }
        self._parts.append(pl.DataFrame(columns, schema=_MARKS))
        self._rows += piece.kind.size

    def _times(self, piece: Piece) -> npt.NDArray[np.int64]:
        passed = np.zeros(piece.clock.size, np.int64)
        for cpu in np.unique(piece.cpu):
            own = np.flatnonzero(piece.cpu == cpu)
            clock = piece.clock[own].astype(np.int64)
            passed[own] = np.diff(clock, prepend=self._last[cpu])
            self._last[cpu] = clock[-1]
        times = self._time + np.cumsum(passed)
        self._time = int(times[-1]) if times.size else self._time
        return times

    def frame(self) -> pl.DataFrame:
        """Return them, in the order of the events."""
        return pl.concat([pl.DataFrame(schema=_MARKS), *self._parts])


@dataclass(frozen=True, eq=False)
class History:
    """One recording under one policy.

    :ivar marks: The events at which something happens, in their order: ``row`` of events, ``time``, ``cpu``,
        ``clock`` (that CPU's instructions), ``kind``, ``arg``, ``stack``, ``step`` (:meth:`step`; :data:`NO_STEP`),
        ``task`` (row of tasks that runs; null if unknown), ``trip`` (of trips; null outside).
    :ivar trips: The round trips from 1 on, in the order of their entries: ``trip``, ``cpu``, ``begin`` and ``end``
        (times; ``end`` is null if the recording ends first), ``first`` and ``last`` (rows of events), ``instructions``
        (that CPU's), ``entry``, ``protected`` (from its domain's class), ``task`` (row of tasks), ``comm``,
        ``pid`` (the process), ``exits``, ``left`` (time of the first exit, null if none), ``phases`` (the open ones).
    :ivar exits: Each exit: ``row``, ``time``, ``cpu``, ``trip``, ``stack``, and what names its cause
        (:data:`asikit.replay.causes.LABELS`).
    """

    policy: Policy
    tables: SideTables
    marks: pl.DataFrame
    trips: pl.DataFrame
    exits: pl.DataFrame
    _replayed: Replayed

    @classmethod
    def of(cls, trace: Trace, policy: Policy, classes: frozenset[AsiClass] = ALL_CLASSES) -> History:
        """Replay a recording and keep what happens.

        Memory: the side tables, and some 60 bytes for each round trip's events.

        :param classes: The classes of untrusted domains to protect from.
        :raises PolicyError: The policy does not fit the recorded kernel, or contradicts itself.
        :raises ReplayError: The trace's tables contradict each other.
        :raises TraceError: A part of the trace is damaged.
        """
        follower = _Marks()
        (replayed,) = ReplayPass(trace, [policy], followers=[follower], classes=classes).run()
        tables = follower.tables
        marks = _with_trips(follower.frame())
        exits = _exits(marks, tables, replayed)
        trips = _trips(marks, exits, tables, classes)
        return cls(policy, tables, marks, trips, exits, replayed)

    def step(self, number: int) -> EventStep:
        """Return what a step leads to: the state after it, the effects asked for, the reason if it is an exit."""
        return self._replayed.step(number)

    def result(self) -> ReplayResult:
        """Return the counts, as :func:`asikit.replay.replay` gives them."""
        return self._replayed.result()


def _with_trips(marks: pl.DataFrame) -> pl.DataFrame:
    """Add who runs, and the round trip that each mark lies in."""
    entry, back = pl.col("kind").is_in(_ENTRIES), pl.col("kind").is_in(_RETURNS)
    switched = pl.when(pl.col("kind") == int(EventKind.TASK_SWITCH)).then(pl.col("arg"))
    numbered = marks.with_columns(trip=pl.when(entry).then(entry.cum_sum())).with_columns(
        task=switched.forward_fill().over("cpu"), trip=pl.col("trip").forward_fill().over("cpu")
    )
    # A mark is in the round trip up to the first return, that included.
    returned = back.cum_sum().over("cpu", "trip") - back.cast(pl.UInt32)
    inside = returned == 0
    return numbered.with_columns(trip=pl.when(inside).then(pl.col("trip")).cast(pl.UInt32))


def _exits(marks: pl.DataFrame, tables: SideTables, replayed: Replayed) -> pl.DataFrame:
    """Return the marks that are exits, with the names of their causes."""
    steps = marks["step"].unique().to_list()
    reasons = {
        number: REASONS.index(reason)
        for number in steps
        if number != NO_STEP and (reason := replayed.step(number).exit_reason) is not None
    }
    left = marks.filter(pl.col("step").is_in(list(reasons)))
    touch = pl.col("kind").is_in([int(kind) for kind in TOUCH_KINDS])
    sites = left.select(
        "kind",
        "stack",
        place=pl.when(touch).then(pl.col("arg")).otherwise(pl.lit(NO_PLACE, pl.UInt32)),
        reason=pl.col("step").replace_strict(reasons, return_dtype=pl.UInt8),
    )
    # `kind` of a cause is the page's.
    return left.select("row", "time", "cpu", "trip", "stack").hstack(name_sites(sites, tables))


def _trips(marks: pl.DataFrame, exits: pl.DataFrame, tables: SideTables, classes: frozenset[AsiClass]) -> pl.DataFrame:
    inside = marks.filter(pl.col("trip").is_not_null())
    back = pl.col("kind").is_in(_RETURNS)
    slot = SLOTS_PER_KIND * (pl.col("kind").cast(pl.UInt32) - 1) + pl.col("arg").clip(upper_bound=SLOTS_PER_KIND - 1)
    trips = inside.group_by("trip").agg(
        pl.col("cpu").first(),
        begin=pl.col("time").first(),
        end=pl.col("time").filter(back).first(),
        first=pl.col("row").first(),
        last=pl.col("row").last(),
        instructions=pl.col("clock").last() - pl.col("clock").first(),
        slot=slot.first(),
        task=pl.col("task").first(),
    )
    counted = exits.group_by("trip").agg(exits=pl.len(), left=pl.col("time").first())
    trips = trips.join(counted, on="trip", how="left").sort("trip").with_columns(pl.col("exits").fill_null(0))
    tasks = tables.tasks.select("comm", pid="tgid").with_row_index("task")
    return (
        trips.with_columns(
            entry=_entries(trips["slot"], tables),
            protected=pl.Series(class_of_entry(slot) in classes for slot in trips["slot"].to_list()),
            phases=_phases(trips["first"], tables),
        )
        .join(tasks, on="task", how="left", maintain_order="left")
        .select(
            *("trip", "cpu", "begin", "end", "first", "last", "instructions", "entry", "protected"),
            *("task", "comm", "pid", "exits", "left", "phases"),
        )
    )


def _entries(slots: pl.Series, tables: SideTables) -> pl.Series:
    syscalls, vectors = tables.meta.get("syscalls", {}), tables.meta.get("vectors", {})
    names = {
        slot: entry_label(slot, syscalls, vectors, tables.exit_names) for slot in {NO_ENTRY, *slots.unique().to_list()}
    }
    return slots.replace_strict(names, return_dtype=pl.String)


def _phases(rows: pl.Series, tables: SideTables) -> pl.Series:
    """Return the names of the phases that are open at each row, as one text."""
    names: pl.Series = pl.Series([""] * rows.len(), dtype=pl.String)
    for name, begin, end in tables.phases.select("name", "begin", "end").iter_rows():
        here = (rows >= begin) & (rows < end)
        names = pl.select(
            pl.when(here & (names == "")).then(pl.lit(name)).when(here).then(names + f" + {name}").otherwise(names)
        ).to_series()
    return names
