"""A recording, replayed and given in another tool's form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.errors import AsikitError, nearest
from asikit.export import FORMATS
from asikit.export.lkml import lkml
from asikit.export.perfetto import perfetto
from asikit.export.stacks import folded, perf_script, pprof, speedscope
from asikit.export.tables import csv, parquet
from asikit.replay import History, Selection, replay
from asikit.replay.where import Where

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import polars as pl

    from asikit.replay import Policy
    from asikit.trace import Trace

__all__ = ["ExportError", "export"]

_OF_STACKS = {"folded": folded, "speedscope": speedscope, "pprof": pprof, "perf-script": perf_script}


class ExportError(AsikitError):
    """What is asked for cannot be exported."""

    exit_code = 2


def export(
    trace: Trace, name: str, policies: Sequence[Policy], *, where: str | None = None, table: str = "exits"
) -> Iterator[bytes]:
    """Give a recording in another form, piece by piece.

    :param name: One of :data:`asikit.export.FORMATS`.
    :param policies: One; for ``lkml`` any number, side by side.
    :param where: The round trips that it is to have (:mod:`asikit.replay.where`); all when None. For ``lkml`` what is
        counted.
    :param table: What a table is of: ``exits`` or ``trips``.
    :raises ExportError: There is no such form, or it cannot say what is asked for.
    :raises SelectionError: The expression is none, or names what the recording does not have.
    """
    if name not in FORMATS:
        raise ExportError(f"no format {name!r}{nearest(name, FORMATS)}; there are {', '.join(FORMATS)}")
    if name == "lkml":
        selection = None if where is None else Selection(where=where)
        return lkml(trace, replay(trace, policies, selection=selection), where)
    if len(policies) > 1:
        raise ExportError(f"format {name} shows one policy: export a file for each")
    history = History.of(trace, policies[0])
    trips, exits = history.trips, history.exits
    if where is not None:
        trips = history.chosen(Where.parse(where))
        exits = exits.join(trips.select("trip"), on="trip", how="semi", maintain_order="left")
    if name == "perfetto":
        return perfetto(history, trips)
    if name in _OF_STACKS:
        return _OF_STACKS[name](history, exits)
    chosen: pl.DataFrame = exits if table == "exits" else trips
    return csv(chosen) if name == "csv" else parquet(chosen)
