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

from asikit.replay._chosen import check_names, entry_names
from asikit.replay._events import NO_ENTRY, SLOTS_PER_KIND, class_of_entry, entry_label
from asikit.replay._tally import NO_PLACE, REASONS
from asikit.replay.causes import name_sites
from asikit.replay.errors import SelectionError
from asikit.replay.one_pass import ALL_CLASSES, ReplayPass
from asikit.replay.where import WhereField
from asikit.trace import ENTRY_KINDS, RETURN_KINDS, TOUCH_KINDS, Clocks, EventKind

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
    from asikit.replay.where import Where, WhereTerm
    from asikit.trace import Trace

    Transitions = npt.NDArray[np.int32]

__all__ = ["NO_STEP", "History"]

NO_STEP = -1
"""The step of a mark at which the protocol has nothing to do."""

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
        self._clocks = Clocks()
        self._rows = 0
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
            "time": self._clocks.times(piece.cpu, piece.clock)[kept],
            "cpu": piece.cpu[kept],
            "clock": piece.clock[kept],
            "kind": piece.kind[kept],
            "arg": piece.arg[kept],
            "stack": piece.stack[kept],
            "step": steps[kept],
        }
        self._parts.append(pl.DataFrame(columns, schema=_MARKS))
        self._rows += piece.kind.size

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
        ``pid`` (the process), ``exits``, ``left`` (time of the first exit, null if none), ``phases`` (names
        of the open ones).
    :ivar exits: Each exit: ``row``, ``time``, ``cpu``, ``trip``, ``stack``, and what names its cause
        (:data:`asikit.replay.causes.LABELS`).
    """

    trace: Trace
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
        return cls(trace, policy, tables, marks, trips, exits, replayed)

    def step(self, number: int) -> EventStep:
        """Return what a step leads to: the state after it, the effects asked for, the reason if it is an exit."""
        return self._replayed.step(number)

    def steps_of(self, trip: int) -> pl.DataFrame:
        """Return all events of a round trip in their order, touches too: as in ``marks``.

        :raises SelectionError: There is no such round trip.
        """
        found = self.trips.filter(trip=trip)
        if not found.height:
            raise SelectionError(
                f"--trip {trip}: there is no such round trip; the recording has 1 to {self.trips.height}"
            )
        cpu, first, last = found.select("cpu", "first", "last").row(0)
        parts, row = [], 0
        for chunk in self.trace.events():
            if row <= last and row + chunk.height > first:
                parts.append(chunk.with_row_index("row", row).filter(pl.col("row").is_between(first, last), cpu=cpu))
            row += chunk.height
        events = pl.concat(parts).with_columns(pl.col("row").cast(pl.UInt64))
        steps = self.marks.filter(cpu=cpu).select("row", "step")
        return events.join(steps, on="row", how="left", maintain_order="left").with_columns(
            pl.col("step").fill_null(NO_STEP)
        )

    def chosen(self, where: Where) -> pl.DataFrame:
        """Return the round trips that are meant.

        :raises SelectionError: No round trip has a name that the expression compares with.
        """
        values: dict[WhereField, list[tuple[str, ...]]] = {
            WhereField.TASK: [(comm,) if comm is not None else () for comm in self.trips["comm"].to_list()],
            WhereField.PID: [(str(pid),) if pid is not None else () for pid in self.trips["pid"].to_list()],
            WhereField.CPU: [(str(cpu),) for cpu in self.trips["cpu"].to_list()],
            WhereField.PHASE: [tuple(names) for names in self.trips["phases"].to_list()],
            WhereField.ENTRY: [entry_names(entry) for entry in self.trips["entry"].to_list()],
            WhereField.EXITS: [(str(exits),) for exits in self.trips["exits"].to_list()],
            WhereField.INSTRUCTIONS: [(str(number),) for number in self.trips["instructions"].to_list()],
        }
        check_names(where.comparisons, values)
        true = [_true_of_each(comparison, values[comparison.field]) for comparison in where.comparisons]
        keep = [where.true(column.__getitem__) for column in zip(*true, strict=True)]
        return self.trips.filter(pl.Series(keep, dtype=pl.Boolean))

    def result(self) -> ReplayResult:
        """Return the counts, as :func:`asikit.replay.replay` gives them."""
        return self._replayed.result()


def _true_of_each(comparison: WhereTerm, values: Sequence[tuple[str, ...]]) -> list[bool]:
    known = {names: comparison.holds_of_any(names) for names in set(values)}
    return [known[names] for names in values]


def _with_trips(marks: pl.DataFrame) -> pl.DataFrame:
    """Add who runs, and the round trip that each mark lies in."""
    switched = pl.when(pl.col("kind") == int(EventKind.TASK_SWITCH)).then(pl.col("arg"))
    entry, back = (np.isin(marks["kind"].to_numpy(), kinds) for kinds in (_ENTRIES, _RETURNS))
    number = pl.Series(np.where(entry, np.cumsum(entry), 0), dtype=pl.UInt32).replace(0, None)
    numbered = marks.with_columns(trip=number, back=pl.Series(back)).with_columns(
        task=switched.forward_fill().over("cpu"), trip=pl.col("trip").forward_fill().over("cpu")
    )
    # A mark is in the round trip up to the first return, that included.
    returned = pl.col("back").cum_sum().over("cpu", "trip") - pl.col("back").cast(pl.UInt32)
    return numbered.with_columns(trip=pl.when(returned == 0).then(pl.col("trip"))).drop("back")


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
    inside = marks.filter(pl.col("trip").is_not_null()).with_columns(back=pl.col("kind").is_in(_RETURNS))
    slot = SLOTS_PER_KIND * (pl.col("kind").cast(pl.UInt32) - 1) + pl.col("arg").clip(upper_bound=SLOTS_PER_KIND - 1)
    trips = inside.group_by("trip").agg(
        pl.col("cpu").first(),
        begin=pl.col("time").first(),
        end=pl.col("time").filter(pl.col("back")).first(),
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
    """Return the names of the phases that are open at each row."""
    phases = list(tables.phases.select("name", "begin", "end").iter_rows())
    bounds = np.array(sorted({0, *(row for _, *stretch in phases for row in stretch)}), np.uint64)
    names = [sorted({name for name, begin, end in phases if begin <= bound < end}) for bound in bounds.tolist()]
    stretch = np.searchsorted(bounds, rows.to_numpy(), side="right") - 1
    return pl.Series(names, dtype=pl.List(pl.String)).gather(stretch)
