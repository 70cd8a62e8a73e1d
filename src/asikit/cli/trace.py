"""``asi trace``: the round trips of a recording, and one of them step by step."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from asikit.cli._opening import open_trace
from asikit.cli._output import show, warn, write_json

if TYPE_CHECKING:
    import polars as pl

    from asikit.replay import History

_DEFAULT_TOP = 20
_SORTS = ("time", "exits", "instructions")


@click.command()
@click.argument("trace", type=click.Path())
@click.option("--policy", metavar="NAME|FILE.toml", default="denylist-2025", show_default=True)
@click.option("--where", metavar="EXPRESSION", help="The round trips that an expression allows (docs/where.md).")
@click.option(
    "--sort",
    type=click.Choice(_SORTS),
    default="time",
    show_default=True,
    help="What comes first: the earliest, or the most.",
)
@click.option("--top", type=click.IntRange(min=1), default=_DEFAULT_TOP, show_default=True, help="Round trips to list.")
@click.option("--trip", type=click.IntRange(min=1), metavar="N", help="Show round trip N step by step.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.trace/1).")
def command(
    trace: str, *, policy: str, where: str | None, sort: str, top: int, trip: int | None, as_json: bool
) -> None:
    """List the round trips of a recording, or show one step by step.

    TRACE is a folder NAME.asitrace that `asi record` wrote. Round trips are numbered from 1 in the order of their
    entries, over all CPUs.
    """
    from asikit.replay import History, load_policy
    from asikit.report.trips import trip_dict, trip_list, trip_report

    history = History.of(open_trace(trace), load_policy(policy))
    warn(history.result().warnings)
    if trip is not None:
        if where is not None:
            raise click.UsageError(
                "--trip shows one round trip: --where does not go with it", click.get_current_context()
            )
        if as_json:
            write_json("trace", trip_dict(history, trip))
        else:
            show(trip_report(history, trip))
        return
    chosen = _sorted(_chosen(history, where), sort)
    if as_json:
        write_json(
            "trace", {"policy": history.policy.name, "found": chosen.height, "trips": chosen.head(top).to_dicts()}
        )
    else:
        show(trip_list(history, chosen, top))


def _chosen(history: History, where: str | None) -> pl.DataFrame:
    from asikit.replay.where import Where

    return history.trips if where is None else history.chosen(Where.parse(where))


def _sorted(trips: pl.DataFrame, sort: str) -> pl.DataFrame:
    return trips if sort == "time" else trips.sort(sort, "trip", descending=[True, False])
