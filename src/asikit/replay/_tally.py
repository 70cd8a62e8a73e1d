"""What a run of the protocol over a trace has counted."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import polars as pl

from asikit.protocol import Effect, ExitReason
from asikit.trace import TOUCH_KINDS

__all__ = ["NO_PLACE", "EntryCounts", "Tally", "sites_frame"]

NO_PLACE = 0xFFFF_FFFF
"""The place of an exit that is not due to a touch."""

_SITES = pl.Schema({"kind": pl.UInt8(), "place": pl.UInt32(), "stack": pl.UInt32(), "reason": pl.String()})


@dataclass(frozen=True, slots=True)
class EntryCounts:
    """Of one kind of entry: its complete round trips, all exits in them, and the round trips that had none."""

    round_trips: int = 0
    exits: int = 0
    without_exit: int = 0


@dataclass
class Tally:
    """The counts, before anything has a name.

    :ivar events: Events read.
    :ivar amended: Events that could not follow the ones before them: the recording lacks something.
    :ivar effects: How often the protocol asked for each effect.
    :ivar reasons: Exits by reason.
    :ivar entries: By the slot of the entry (:func:`asikit.replay._events.entry_slot`).
    :ivar ephmap_operations: Touches that went through an ephemeral mapping.
    :ivar sites: ``kind``, ``place`` (:data:`NO_PLACE` if none), ``stack``, ``reason`` and their number of ``exits``.
    """

    events: int = 0
    amended: int = 0
    effects: Counter[Effect] = field(default_factory=Counter)
    reasons: Counter[ExitReason] = field(default_factory=Counter)
    entries: dict[int, EntryCounts] = field(default_factory=dict)
    ephmap_operations: int = 0
    sites: pl.DataFrame = field(default_factory=lambda: sites_frame([]))

    def same_as(self, other: "Tally") -> bool:
        """Tell whether two runs counted the same."""
        mine, others = ((t.events, t.amended, t.effects, t.reasons, t.entries, t.ephmap_operations) for t in (self, other))
        return mine == others and self.sites.equals(other.sites)


def sites_frame(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return frames of exit sites as one, each site once, sorted."""
    empty = pl.DataFrame(schema=_SITES | {"exits": pl.UInt64()})
    return (
        pl.concat([empty, *parts])
        .group_by(list(_SITES))
        .agg(pl.col("exits").sum())
        .sort(list(_SITES))
    )


def exits_frame(kind: pl.Series, arg: pl.Series, stack: pl.Series, reason: pl.Series) -> pl.DataFrame:
    """Return the sites of exits, given one by one."""
    place = pl.when(pl.col("kind").is_in(sorted(TOUCH_KINDS))).then(pl.col("arg")).otherwise(pl.lit(NO_PLACE, pl.UInt32))
    frame = pl.DataFrame({"kind": kind, "arg": arg, "stack": stack, "reason": reason})
    sites = frame.select("kind", place.alias("place"), "stack", "reason")
    return sites.group_by(list(_SITES)).agg(pl.len().cast(pl.UInt64).alias("exits"))


def counted(sites: Mapping[tuple[int, int, int, str], int]) -> pl.DataFrame:
    """Return a frame of exit sites from a count of each."""
    rows = [(*site, exits) for site, exits in sites.items()]
    return sites_frame([pl.DataFrame(rows, schema=_SITES | {"exits": pl.UInt64()}, orient="row")])
