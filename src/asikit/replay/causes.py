"""Names for what a replay has counted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.protocol import AsiClass, EffectKind, ExitReason
from asikit.replay._events import NO_ENTRY, class_of_entry, entry_label
from asikit.replay._stacks import CauseStacks
from asikit.replay._steps import protocol_config
from asikit.replay._tally import NO_PLACE, REASONS
from asikit.replay._unmatched import unmatched_names
from asikit.replay.policy import ACCESSES, MechanismKind, Policy
from asikit.replay.result import EntryRow, Part, ReplayResult
from asikit.trace import TOUCH_KINDS, EventKind, PageKind, Region

if TYPE_CHECKING:
    from collections.abc import Iterable
    from collections.abc import Set as AbstractSet

    import numpy.typing as npt

    from asikit.replay._tables import SideTables
    from asikit.replay._tally import EntryCounts, Tally
    from asikit.replay.grouping import Group

    Rows = npt.NDArray[np.uint32]
    Flags = npt.NDArray[np.bool_]

__all__ = ["LABELS", "name_part", "name_result", "name_sites"]

LABELS = ("reason", "function", "caller", "access", "region", "kind", "cache", "allocated_by")
"""What names a cause."""
_ACCESS_OF_KIND = [
    ACCESSES[kind - EventKind.TOUCH_READ] if kind in TOUCH_KINDS else "" for kind in range(max(EventKind) + 1)
]


def name_result(tally: Tally, tables: SideTables, policy: Policy, classes: frozenset[AsiClass]) -> ReplayResult:
    """Return the result of a replay.

    :raises ReplayError: An exit refers to a stack that is not there.
    """
    protected = _protected(tally, classes)
    cr3 = {effect: times for effect, times in tally.effects.items() if effect.kind is EffectKind.WRITE_CR3}
    noflush = sum(times for effect, times in cr3.items() if effect.noflush)
    cr3_writes = sum(cr3.values())
    causes, stacks = _causes(tally, tables)
    return ReplayResult(
        policy=policy.name,
        title=policy.title,
        mechanism=policy.mechanism.kind.value,
        classes=tuple(sorted(asi_class.name.lower() for asi_class in classes)),
        events=tally.events,
        round_trips=sum(counts.round_trips for counts in protected.values()),
        round_trips_without_exit=sum(counts.without_exit for counts in protected.values()),
        unprotected_round_trips=sum(
            counts.round_trips for slot, counts in tally.entries.items() if slot not in protected
        ),
        exits=tally.reasons.total(),
        exits_by_reason={reason.value: tally.reasons[reason] for reason in ExitReason},
        flushes=_flushes(tally, policy, classes),
        cr3_writes=cr3_writes,
        cr3_writes_noflush=noflush,
        tlb_flushes=cr3_writes - noflush + _times(tally, EffectKind.TLB_FLUSH),
        stuns=_times(tally, EffectKind.STUN),
        ephmap_operations=tally.ephmap_operations,
        amended_events=tally.amended,
        by_entry=_by_entry(tally, protected.keys(), tables),
        cause_table=causes,
        stacks=stacks,
        warnings=unmatched_names(policy, tables),
    )


def name_part(tally: Tally, group: Group, policy: Policy, classes: frozenset[AsiClass]) -> Part:
    """Return the counts of a group."""
    protected = _protected(tally, classes).values()
    cr3 = {effect: times for effect, times in tally.effects.items() if effect.kind is EffectKind.WRITE_CR3}
    flushing = sum(times for effect, times in cr3.items() if not effect.noflush)
    return Part(
        name=group.name,
        pids=group.pids,
        events=tally.events,
        round_trips=sum(counts.round_trips for counts in protected),
        round_trips_without_exit=sum(counts.without_exit for counts in protected),
        exits=tally.reasons.total(),
        exits_by_reason={reason.value: tally.reasons[reason] for reason in ExitReason},
        flushes=_flushes(tally, policy, classes),
        cr3_writes=sum(cr3.values()),
        tlb_flushes=flushing + _times(tally, EffectKind.TLB_FLUSH),
        stuns=_times(tally, EffectKind.STUN),
        ephmap_operations=tally.ephmap_operations,
    )


def _protected(tally: Tally, classes: frozenset[AsiClass]) -> dict[int, EntryCounts]:
    """Return the counts of the entries from domains that are protected from."""
    return {slot: counts for slot, counts in tally.entries.items() if class_of_entry(slot) in {*classes, None}}


def _times(tally: Tally, kind: EffectKind) -> int:
    return sum(times for effect, times in tally.effects.items() if effect.kind is kind)


def _flushes(tally: Tally, policy: Policy, classes: frozenset[AsiClass]) -> dict[str, int]:
    if policy.mechanism.kind is MechanismKind.OFF:
        kinds: tuple[EffectKind, ...] = ()
    else:
        config = protocol_config(policy, classes)
        kinds = (*config.control_flush, *config.data_flush)
    return {kind.value: _times(tally, kind) for kind in kinds}


def _by_entry(tally: Tally, protected: AbstractSet[int], tables: SideTables) -> tuple[EntryRow, ...]:
    syscalls = tables.meta.get("syscalls", {})
    vectors = tables.meta.get("vectors", {})
    rows = [
        EntryRow(
            entry_label(slot, syscalls, vectors, tables.exit_names),
            counts.round_trips,
            counts.exits,
            counts.without_exit,
        )
        for slot, counts in tally.entries.items()
        if slot in protected and slot != NO_ENTRY
    ]
    # What a round trip of another class did is not of this one's round trips, but its exits are exits.
    outside = sum(n.exits for slot, n in tally.entries.items() if slot not in protected or slot == NO_ENTRY)
    if outside:
        rows.append(EntryRow(entry_label(NO_ENTRY, {}, {}, {}), 0, outside, 0))
    return tuple(sorted(rows, key=lambda row: (-row.round_trips, -row.exits, row.entry)))


def name_sites(sites: pl.DataFrame, tables: SideTables) -> pl.DataFrame:
    """Return the names of each site: the columns :data:`LABELS`.

    :param sites: As in :class:`asikit.replay._tally.Tally`.
    :raises ReplayError: A site refers to a stack that is not there.
    """
    page, touched = _pages(sites, tables)
    place = np.where(touched, sites["place"].to_numpy(), np.uint32(tables.places.height))
    tables.check_stacks(sites["stack"].to_numpy())
    function, caller = tables.functions(sites["stack"].to_numpy())
    regions = np.append(tables.region_of_place, np.uint8(len(Region)))
    nobody = tables.symbol_names.len()
    symbols = _words(pl.concat([tables.symbol_names, pl.Series([""])]))
    return pl.DataFrame(
        {
            "reason": _words([reason.value for reason in REASONS]).gather(sites["reason"]),
            "function": symbols.gather(function),
            "caller": symbols.gather(caller),
            "access": _words(_ACCESS_OF_KIND).gather(sites["kind"]),
            "region": _words([*Region, ""]).gather(regions[place]),
            "kind": _words([*PageKind, ""]).gather(np.where(touched, tables.kind_of_page[page], len(PageKind))),
            "cache": _words(tables.cache_names).gather(tables.cache_of_page[page]),
            "allocated_by": symbols.gather(np.where(touched, tables.allocator_of_page[page], nobody)),
        }
    )


def _pages(sites: pl.DataFrame, tables: SideTables) -> tuple[Rows, Flags]:
    """Return the page of each site, and whether it has one: sites without borrow the unknown row at the end."""
    touched = (sites["place"] != NO_PLACE).to_numpy()
    place = np.where(touched, sites["place"].to_numpy(), np.uint32(tables.places.height))
    return np.append(tables.page_of_place, np.uint32(tables.pages.height))[place], touched


def _causes(tally: Tally, tables: SideTables) -> tuple[pl.DataFrame, CauseStacks]:
    """Name each site, then count the sites of the same names together; and keep what names their stacks."""
    sites = tally.sites
    named = name_sites(sites, tables).with_columns(sites["exits"])
    grouped = named.group_by(LABELS).agg(pl.col("exits").sum())
    ordered = grouped.sort("exits", *LABELS, descending=[True, *[False] * len(LABELS)])
    frames = tables.allocation_frame_of_page[_pages(sites, tables)[0]]
    stacks = CauseStacks(named, LABELS, tables.access_frame[sites["stack"].to_numpy()], frames, tables)
    return ordered.with_columns(pl.col(LABELS).cast(pl.String)), stacks


def _words(names: Iterable[str] | pl.Series) -> pl.Series:
    """Return names that group and sort as fast as numbers, in the order of the alphabet."""
    series = pl.Series(names, dtype=pl.String)
    return series.cast(pl.Enum(series.unique().sort()))
