"""What a trace holds, counted: the figures of ``asi info``."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import polars as pl

from asikit.trace._errors import TraceError
from asikit.trace._kinds import NO_PAGE, RETURN_KINDS, TOUCH_KINDS, EventKind, PageKind, TlbFlush
from asikit.trace._schema import FIRST_KIND, LAST_KIND
from asikit.trace._time import instructions_before

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.trace._reader import Trace


@dataclass(frozen=True, slots=True)
class CpuSummary:
    """One CPU: its events, and its clock (instructions since the recording began) at the last of them."""

    cpu: int
    events: int
    clock: int


@dataclass(frozen=True, slots=True)
class TouchCount:
    """First touches of the pages of one kind in one region, by the kind of access."""

    region: str
    kind: str
    read: int
    write: int
    fetch: int

    @property
    def total(self) -> int:
        """All three together."""
        return self.read + self.write + self.fetch


@dataclass(frozen=True, slots=True)
class PhaseSummary:
    """What the workload called by one name.

    :ivar times: How often it began.
    :ivar events: Events in it, each once.
    :ivar instructions: What all CPUs retired in it.
    :ivar not_ended: How often it lasted to the end of the recording, as nobody ended it.
    """

    name: str
    times: int
    events: int
    instructions: int
    not_ended: int


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A trace's counts."""

    events: dict[EventKind, int]
    """Events by kind; every kind is there."""
    cpus: tuple[CpuSummary, ...]
    """The CPUs that have events, in the order of their numbers."""
    touches: tuple[TouchCount, ...]
    """The touches, most first."""
    tlb_flushes: dict[TlbFlush, int]
    """TLB flushes by what they discard; each is there."""
    phases: tuple[PhaseSummary, ...] = ()
    """The workload's phases, in the order of their first beginning."""

    @property
    def round_trips(self) -> int:
        """Returns to user mode and to guests: each ends a round trip."""
        return sum(self.events[kind] for kind in RETURN_KINDS)


def summarize(trace: Trace) -> TraceSummary:
    """Count a trace's events; memory stays bounded by the side tables, however long the trace.

    :raises TraceError: A part is damaged, an event's kind is unknown, or a touch's place is not in the trace.
    """
    counts, touched, flushed = _count_events(trace)
    strange = counts.filter(~pl.col("kind").is_between(int(FIRST_KIND), int(LAST_KIND)))
    if strange.height:
        raise TraceError.at(trace.path / "events", f"unknown kind {_least(strange, 'kind')}")
    by_kind = dict(counts.group_by("kind").agg(pl.col("count").sum()).iter_rows())
    by_cpu = counts.group_by("cpu").agg(pl.col("count").sum(), pl.col("clock").max()).sort("cpu")
    return TraceSummary(
        events={kind: int(by_kind.get(int(kind), 0)) for kind in EventKind},
        cpus=tuple(CpuSummary(*row) for row in by_cpu.iter_rows()),
        touches=_touches(trace, touched),
        tlb_flushes={flush: int(flushed.get(int(flush), 0)) for flush in TlbFlush},
        phases=_phases(trace),
    )


def _count_events(trace: Trace) -> tuple[pl.DataFrame, pl.DataFrame, Counter[int]]:
    """Count the events by CPU and kind, the touches by place and kind, and the TLB flushes by arg.

    Each part is added to the sums so far.
    """
    counts, touched = [], []
    flushed: Counter[int] = Counter()
    for part in trace.events(columns=["cpu", "clock", "kind", "arg"]):
        counts.append(part.group_by("cpu", "kind").agg(pl.len().cast(pl.Int64).alias("count"), pl.col("clock").max()))
        touches = part.filter(pl.col("kind").is_in([int(kind) for kind in TOUCH_KINDS]))
        touched.append(touches.group_by("arg", "kind").agg(pl.len().cast(pl.Int64).alias("count")))
        counts = [pl.concat(counts).group_by("cpu", "kind").agg(pl.col("count").sum(), pl.col("clock").max())]
        touched = [pl.concat(touched).group_by("arg", "kind").agg(pl.col("count").sum())]
        flushed.update(part.filter(pl.col("kind") == int(EventKind.TLB_FLUSH))["arg"].to_list())
    return counts[0], touched[0], flushed


def _touches(trace: Trace, touched: pl.DataFrame) -> tuple[TouchCount, ...]:
    places = trace.table("places").with_row_index("place")
    pages = trace.table("pages").select(page_kind="kind").with_row_index("page")
    joined = touched.join(places, left_on="arg", right_on="place", how="left")
    joined = joined.join(pages, on="page", how="left")
    lost = joined.filter(pl.col("region").is_null())
    if lost.height:
        raise TraceError.at(trace.path / "events", f"place {_least(lost, 'arg')} is not in places")
    lost = joined.filter(pl.col("page_kind").is_null() & (pl.col("page") != NO_PAGE))
    if lost.height:
        raise TraceError.at(trace.path / "places.parquet", f"page {_least(lost, 'page')} is not in pages")
    grouped = joined.group_by("region", pl.col("page_kind").fill_null(PageKind.MMIO.value)).agg(
        _count(EventKind.TOUCH_READ), _count(EventKind.TOUCH_WRITE), _count(EventKind.TOUCH_FETCH)
    )
    rows = [TouchCount(*row) for row in grouped.iter_rows()]
    return tuple(sorted(rows, key=lambda row: (-row.total, row.region, row.kind)))


def _phases(trace: Trace) -> tuple[PhaseSummary, ...]:
    phases = trace.table("phases")
    if not phases.height:
        return ()
    rows = sorted({*phases["begin"].to_list(), *phases["end"].to_list()})
    time = dict(zip(rows, instructions_before(trace, rows), strict=True))
    found = []
    for (name,), own in phases.group_by("name", maintain_order=True):
        stretches = merged(zip(own["begin"].to_list(), own["end"].to_list(), strict=True))
        found.append(
            PhaseSummary(
                name=str(name),
                times=own.height,
                events=sum(end - begin for begin, end in stretches),
                instructions=sum(time[end] - time[begin] for begin, end in stretches),
                not_ended=int((~own["ended"]).sum()),
            )
        )
    return tuple(found)


def merged(stretches: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Give stretches of rows as ones that do not overlap, in order."""
    whole: list[tuple[int, int]] = []
    for begin, end in sorted(stretches):
        if whole and begin <= whole[-1][1]:
            whole[-1] = (whole[-1][0], max(end, whole[-1][1]))
        else:
            whole.append((begin, end))
    return whole


def _count(kind: EventKind) -> pl.Expr:
    return pl.col("count").filter(pl.col("kind") == int(kind)).sum().alias(kind.name)


def _least(frame: pl.DataFrame, column: str) -> int:
    return int(min(frame[column].to_list()))
