"""A replay's result: one policy in detail, several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.report._words import FLUSH_WORDS, REASON_WORDS, REGION_WORDS
from asikit.report.parts import PART_WORDS, parts_table
from asikit.report.view import Bar, Chart, Column, Note, Report, Row, Section, Style, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.replay import Cause, ReplayResult

__all__ = ["cause_line", "compare_replays", "replay_report"]

_COUNT = Column(number=True)
_LEAST_RATIO = 0.001


def replay_report(result: ReplayResult, *, top: int = 10) -> Report:
    """Return one result in detail: counts, entries, causes.

    :param top: The most causes and entries to show; no tables of them when 0.
    """
    sections = [Section((_facts(result),))]
    if result.parts and top:
        sections.append(Section((parts_table([result], top),), f"By {PART_WORDS[result.by][0]}"))
    if result.by_entry and top:
        sections.append(Section((_entries(result, top),), "How the kernel was entered"))
    if result.exits and top:
        sections.append(Section((_causes(result, top),), "Why it exited, most frequent first"))
    if result.amended_events:
        sections.append(Section((Note(_amended(result.amended_events)),)))
    return Report((*_selected(result), *sections), f"Policy {result.policy}: {result.title}")


def _selected(result: ReplayResult) -> list[Note]:
    """Return the line that says what of the recording was counted, if not all of it."""
    return [Note(f"Counted: {result.selection} ({result.events:,} events)")] if result.selection else []


def compare_replays(results: Sequence[ReplayResult], *, causes: int = 3, top: int = 10) -> Report:
    """Return results of one recording side by side, a column each, and the main causes below.

    :param causes: The most causes to show of each.
    :param top: The most tasks, processes, CPUs or phases to show, if the counts are divided.
    """
    parts: list[Note | Table | Chart | Section] = [*_selected(results[0]), _beside(results)]
    if results[0].parts and top:
        parts.append(Section((parts_table(results, top),), f"By {PART_WORDS[results[0].by][0]}"))
    for result in results:
        bars = tuple(Bar(cause_line(cause), f"{cause.share:.1%}", cause.share) for cause in result.top_causes(causes))
        if bars:
            parts.append(Chart(bars, f"Main causes of exits under {result.policy}"))
    return Report(tuple(parts))


def _beside(results: Sequence[ReplayResult]) -> Table:
    rows = [
        Row(("round trips into the kernel", *(f"{result.round_trips:,}" for result in results))),
        Row(("  that ran without an exit", *(_without_exit(result) for result in results))),
        Row(("exits", *(f"{r.exits:,}" if r.mechanism == "asi" else "-" for r in results)), Style.STRONG),
        Row(("  per round trip", *(_ratio(result.exits, _trips(result)) for result in results))),
    ]
    if any(result.ephmap_operations for result in results):
        rows.append(Row(("ephemeral mappings instead", *(f"{result.ephmap_operations:,}" for result in results))))
    rows += [
        Row((_flush_words(kind), *(f"{result.flushes.get(kind, 0):,}" for result in results)))
        for kind in dict.fromkeys(kind for result in results for kind in result.flushes)
    ]
    rows.append(Row(("page table switches (CR3 writes)", *(f"{result.cr3_writes:,}" for result in results))))
    if any(result.stuns for result in results):
        rows.append(Row(("sibling thread stuns", *(f"{result.stuns:,}" for result in results))))
    return Table((Column(breaks=True), *(Column(result.policy, number=True) for result in results)), tuple(rows))


def _trips(result: ReplayResult) -> int:
    """The round trips that could have exited: without ASI there is nothing to exit from."""
    return result.round_trips if result.mechanism == "asi" else 0


def _without_exit(result: ReplayResult) -> str:
    return _percent(result.round_trips_without_exit, _trips(result))


def _facts(result: ReplayResult) -> Table:
    trips = f"kernel entry to return; domains: {_and(result.classes)}"
    rows = [Row(("round trips", f"{result.round_trips:,}", trips))]

    def add(label: str, count: int, words: str, style: Style = Style.PLAIN) -> None:
        rows.append(Row((label, f"{count:,}", words), style))

    if result.unprotected_round_trips:
        add("unprotected", result.unprotected_round_trips, "round trips of other classes, not counted above")
    if result.mechanism == "asi":
        without = f"{_without_exit(result)}: ran restricted to the end, no flush"
        add("  without an exit", result.round_trips_without_exit, without)
        add("exits", result.exits, f"{_ratio(result.exits, _trips(result))} a round trip", Style.STRONG)
    for reason, count in sorted(result.exits_by_reason.items(), key=lambda item: (-item[1], item[0])):
        if count:
            add(f"  {reason.replace('_', ' ')}", count, REASON_WORDS.get(reason, ""))
    if result.ephmap_operations:
        add("ephmap", result.ephmap_operations, "touches through an ephemeral mapping, instead of an exit")
    for kind, count in result.flushes.items():
        add(kind.replace("_", " "), count, _flush_words(kind))
    noflush = f", {result.cr3_writes_noflush:,} kept the TLB" if result.cr3_writes_noflush else ""
    add("CR3 writes", result.cr3_writes, f"page table switches{noflush}")
    add("TLB flushes", result.tlb_flushes, "by CR3 writes and otherwise")
    if result.stuns:
        add("stuns", result.stuns, "the sibling hyperthread was stopped")
    return Table((Column(), _COUNT, Column(breaks=True)), tuple(rows), ruled=False)


def _entries(result: ReplayResult, top: int) -> Table:
    asi = result.mechanism == "asi"  # without it there is nothing to exit from
    rows = [
        Row((row.entry, f"{row.round_trips:,}", *((f"{row.without_exit:,}", f"{row.exits:,}") if asi else ("-", "-"))))
        for row in result.by_entry[:top]
    ]
    more = len(result.by_entry) - top
    if more > 0:
        rows.append(Row((f"... and {more:,} more entries", "", "", "")))
    numbers = (Column(heading, number=True) for heading in ("round trips", "without exit", "exits"))
    return Table((Column("entry", breaks=True), *numbers), tuple(rows))


def _causes(result: ReplayResult, top: int) -> Table:
    rows = [
        Row((f"{cause.share:.1%}", f"{cause.exits:,}", _function(cause), _touched(cause)))
        for cause in result.top_causes(top)
    ]
    more = result.cause_table.height - top
    if more > 0:
        rows.append(Row(("", "", f"... and {more:,} more causes", "")))
    columns = (
        Column("share", number=True),
        Column("exits", number=True),
        Column("function <- caller", breaks=True),
        Column("what it touched (allocated by)", breaks=True),
    )
    return Table(columns, tuple(rows), keys=3)


def _amended(count: int) -> str:
    events = "event" if count == 1 else "events"
    return f"A recording begins in the middle of things: {count:,} {events} had to be completed."


def cause_line(cause: Cause) -> str:
    """Return a cause in one line: where it happened, and what was touched."""
    known = [text for text in (_function(cause), _touched(cause)) if text != "?"]
    return ": ".join(known)


def _function(cause: Cause) -> str:
    return f"{cause.function} <- {cause.caller}" if cause.caller != "?" else cause.function


def _touched(cause: Cause) -> str:
    if not cause.region:
        return "a page fault of the kernel's own" if cause.reason == "page_fault" else REASON_WORDS[cause.reason]
    kind = cause.kind.replace("_", " ")
    memory = f"{kind} {cause.cache}" if cause.cache and cause.cache != cause.kind else kind
    region = REGION_WORDS.get(cause.region, cause.region.replace("_", " "))
    where = "" if cause.region == "direct_map" else f" in {region}"
    by = f" ({cause.allocated_by})" if cause.allocated_by not in {"", "?"} else ""
    return f"{cause.access} {memory}{where}{by}"


def _flush_words(kind: str) -> str:
    return FLUSH_WORDS.get(kind, kind.replace("_", " "))


def _percent(part: int, whole: int) -> str:
    if not whole:
        return "-"
    # Only all is 100 %, and only nothing 0 %.
    if 0 < part < whole:
        return f"{min(max(part / whole, 0.001), 0.999):.1%}"
    return f"{part / whole:.1%}"


def _ratio(part: int, whole: int) -> str:
    if not whole:
        return "-"
    return f"under {_LEAST_RATIO}" if 0 < part / whole < _LEAST_RATIO else f"{part / whole:.3f}"


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
