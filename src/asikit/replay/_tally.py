"""What a run of the protocol over a trace has counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import polars as pl

from asikit.protocol import Effect, ExitReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["NO_PLACE", "REASONS", "EntryCounts", "Tally", "counted", "sites_frame", "together"]

NO_PLACE = 0xFFFF_FFFF
"""The place of an exit that is not due to a touch."""

REASONS = tuple(ExitReason)
"""Exit reasons by the number that they have in exit sites."""

_SITE = pl.Schema({"kind": pl.UInt8(), "place": pl.UInt32(), "stack": pl.UInt32(), "reason": pl.UInt8()})
_SCHEMA = pl.Schema({**_SITE, "exits": pl.UInt32()})


@dataclass(frozen=True, slots=True)
class EntryCounts:
    """Of one kind of entry: its complete round trips, all exits in them, and the round trips that had none."""

    round_trips: int = 0
    exits: int = 0
    without_exit: int = 0

    def __add__(self, other: EntryCounts) -> EntryCounts:
        """Return the counts of both."""
        return EntryCounts(
            self.round_trips + other.round_trips, self.exits + other.exits, self.without_exit + other.without_exit
        )


@dataclass
class Tally:
    """The counts, before anything has a name.

    :ivar events: Events read.
    :ivar amended: Events that could not follow the ones before them: the recording lacks something.
    :ivar effects: How often the protocol asked for each effect.
    :ivar reasons: Exits by reason.
    :ivar entries: By the slot of the entry (:func:`asikit.replay._events.entry_slot`).
    :ivar ephmap_operations: Touches that went through an ephemeral mapping.
    :ivar sites: ``kind``, ``place`` (:data:`NO_PLACE` if none), ``stack``, ``reason`` (a number in
        :data:`REASONS`) and their number of ``exits``.
    """

    events: int = 0
    amended: int = 0
    effects: Counter[Effect] = field(default_factory=Counter)
    reasons: Counter[ExitReason] = field(default_factory=Counter)
    entries: dict[int, EntryCounts] = field(default_factory=dict)
    ephmap_operations: int = 0
    sites: pl.DataFrame = field(default_factory=lambda: sites_frame([]))

    def same_as(self, other: Tally) -> bool:
        """Tell whether two runs counted the same."""
        mine, others = (
            (t.events, t.amended, t.effects, t.reasons, t.entries, t.ephmap_operations) for t in (self, other)
        )
        return mine == others and self.sites.sort(list(_SITE)).equals(other.sites.sort(list(_SITE)))


def together(tallies: Iterable[Tally]) -> Tally:
    """Return the sums of counts that have no event in common."""
    whole = Tally()
    sites = []
    for tally in tallies:
        whole.events += tally.events
        whole.amended += tally.amended
        whole.effects += tally.effects
        whole.reasons += tally.reasons
        whole.ephmap_operations += tally.ephmap_operations
        for slot, counts in tally.entries.items():
            whole.entries[slot] = whole.entries.get(slot, EntryCounts()) + counts
        sites.append(tally.sites)
    whole.sites = sites_frame(sites)
    return whole


def sites_frame(parts: Iterable[pl.DataFrame]) -> pl.DataFrame:
    """Return frames of exit sites as one, each site once, in no order."""
    whole = pl.concat([pl.DataFrame(schema=_SCHEMA), *parts])
    # One number a site: grouping by one column is several times as fast as by four.
    where = pl.col("place").cast(pl.UInt64) * 2**32 + pl.col("stack")
    how = pl.col("kind").cast(pl.UInt16) * len(REASONS) + pl.col("reason")
    grouped = whole.group_by(where.alias("where"), how.alias("how")).agg(pl.col("exits").sum())
    return grouped.select(
        (pl.col("how") // len(REASONS)).cast(pl.UInt8).alias("kind"),
        (pl.col("where") // 2**32).cast(pl.UInt32).alias("place"),
        (pl.col("where") % 2**32).cast(pl.UInt32).alias("stack"),
        (pl.col("how") % len(REASONS)).cast(pl.UInt8).alias("reason"),
        "exits",
    )


def counted(sites: Mapping[tuple[int, int, int, ExitReason], int]) -> pl.DataFrame:
    """Return a frame of exit sites from a count of each."""
    rows = [(*site, REASONS.index(reason), exits) for (*site, reason), exits in sites.items()]
    return sites_frame([pl.DataFrame(rows, schema=_SCHEMA, orient="row")])
