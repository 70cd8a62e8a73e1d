"""A replay's result as text: one policy in detail, several side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asikit.report._tables import printable
from asikit.report._words import FLUSH_WORDS, REASON_WORDS, REGION_WORDS
from asikit.report.parts import PART_WORDS, parts_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from asikit.replay import Cause, ReplayResult

__all__ = ["compare_replays", "replay_report"]

WIDTH = 96
"""Columns of the widest part of one policy's report."""

_LABEL_WIDTH = 36  # with the space around it, and the table's edges; a policy's column has 3 such spaces
_POLICY_WIDTH = 14


def replay_report(result: ReplayResult, *, top: int = 10) -> RenderableType:
    """Return one result in detail: counts, entries, causes.

    :param top: The most causes and entries to show; no tables of them when 0.
    """
    parts: list[RenderableType] = [
        Text(f"Policy {result.policy}: {result.title}", style="bold"),
        *_selected(result),
        Text(),
        _facts(result),
    ]
    if result.parts and top:
        parts += [Text(), Text(f"By {PART_WORDS[result.by][0]}", style="bold"), parts_table([result], top)]
    if result.by_entry and top:
        parts += [Text(), Text("How the kernel was entered", style="bold"), _entries(result, top)]
    if result.exits and top:
        parts += [Text(), Text("Why it exited, most frequent first", style="bold"), _causes(result, top)]
    parts += [Text(note) for note in _notes(result)]
    return Group(*parts)


def _selected(result: ReplayResult) -> list[Text]:
    """Return the line that says what of the recording was counted, if not all of it."""
    words = printable(result.selection)
    return [Text(f"Counted: {words} ({result.events:,} events)")] if words else []


def compare_replays(results: Sequence[ReplayResult], *, causes: int = 3, top: int = 10) -> RenderableType:
    """Return results of one recording side by side, a column each, and the main causes below.

    :param causes: The most causes to show of each.
    :param top: The most tasks, processes, CPUs or phases to show, if the counts are divided.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), width=_compared_width(results))
    table.add_column("", no_wrap=True)
    for result in results:
        table.add_column(result.policy, justify="right", overflow="fold", max_width=_POLICY_WIDTH)
    table.add_row("round trips into the kernel", *(f"{result.round_trips:,}" for result in results))
    table.add_row("  that ran without an exit", *(_without_exit(result) for result in results))
    table.add_row("exits", *(f"{r.exits:,}" if r.mechanism == "asi" else "-" for r in results), style="bold")
    table.add_row("  per round trip", *(_ratio(result.exits, _trips(result)) for result in results))
    if any(result.ephmap_operations for result in results):
        table.add_row("ephemeral mappings instead", *(f"{result.ephmap_operations:,}" for result in results))
    for kind in dict.fromkeys(kind for result in results for kind in result.flushes):
        table.add_row(_flush_words(kind), *(f"{result.flushes.get(kind, 0):,}" for result in results))
    table.add_row("page table switches (CR3 writes)", *(f"{result.cr3_writes:,}" for result in results))
    if any(result.stuns for result in results):
        table.add_row("sibling thread stuns", *(f"{result.stuns:,}" for result in results))
    parts: list[RenderableType] = [*_selected(results[0]), table]
    if results[0].parts and top:
        parts += [Text(f"By {PART_WORDS[results[0].by][0]}", style="bold"), parts_table(results, top)]
    if causes:
        for result in results:
            shown = result.top_causes(causes)
            if shown:
                parts.append(Text(f"Main causes of exits under {result.policy}", style="bold"))
                parts += [Text(f"  {cause.share:6.1%}  {cause_line(cause)}") for cause in shown]
    return Group(*parts)


def _compared_width(results: Sequence[ReplayResult]) -> int:
    names = [
        min(_POLICY_WIDTH, max(len(result.policy), len(f"{result.cr3_writes:,}"), len(f"{result.round_trips:,}")))
        for result in results
    ]
    return _LABEL_WIDTH + sum(name + 3 for name in names)


def _trips(result: ReplayResult) -> int:
    """The round trips that could have exited: without ASI there is nothing to exit from."""
    return result.round_trips if result.mechanism == "asi" else 0


def _without_exit(result: ReplayResult) -> str:
    return _percent(result.round_trips_without_exit, _trips(result))


def _facts(result: ReplayResult) -> Table:
    table = _plain()
    table.add_row("round trips", f"{result.round_trips:,}", f"kernel entry to return; domains: {_and(result.classes)}")
    if result.unprotected_round_trips:
        table.add_row(
            "unprotected", f"{result.unprotected_round_trips:,}", "round trips of other classes, not counted above"
        )
    if result.mechanism == "asi":
        without = f"{result.round_trips_without_exit:,}"
        table.add_row("  without an exit", without, f"{_without_exit(result)}: ran restricted to the end, no flush")
        table.add_row(
            "exits", f"{result.exits:,}", f"{_ratio(result.exits, _trips(result))} a round trip", style="bold"
        )
    for reason, count in sorted(result.exits_by_reason.items(), key=lambda item: (-item[1], item[0])):
        if count:
            table.add_row(f"  {reason.replace('_', ' ')}", f"{count:,}", REASON_WORDS.get(reason, ""))
    if result.ephmap_operations:
        table.add_row(
            "ephmap", f"{result.ephmap_operations:,}", "touches through an ephemeral mapping, instead of an exit"
        )
    for kind, count in result.flushes.items():
        table.add_row(kind.replace("_", " "), f"{count:,}", _flush_words(kind))
    noflush = f", {result.cr3_writes_noflush:,} kept the TLB" if result.cr3_writes_noflush else ""
    table.add_row("CR3 writes", f"{result.cr3_writes:,}", f"page table switches{noflush}")
    table.add_row("TLB flushes", f"{result.tlb_flushes:,}", "by CR3 writes and otherwise")
    if result.stuns:
        table.add_row("stuns", f"{result.stuns:,}", "the sibling hyperthread was stopped")
    return table


def _entries(result: ReplayResult, top: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name, justify in (("entry", "left"), ("round trips", "right"), ("without exit", "right"), ("exits", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    asi = result.mechanism == "asi"  # without it there is nothing to exit from
    for row in result.by_entry[:top]:
        exits = (f"{row.without_exit:,}", f"{row.exits:,}") if asi else ("-", "-")
        table.add_row(row.entry, f"{row.round_trips:,}", *exits)
    _add_rest(table, len(result.by_entry) - top, "entries")
    return table


def _causes(result: ReplayResult, top: int) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), width=WIDTH)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("exits", justify="right", no_wrap=True)
    table.add_column("function <- caller", overflow="fold", ratio=3)
    table.add_column("what it touched (allocated by)", overflow="fold", ratio=3)
    for cause in result.top_causes(top):
        table.add_row(f"{cause.share:.1%}", f"{cause.exits:,}", _function(cause), _touched(cause))
    _add_rest(table, result.cause_table.height - top, "causes")
    return table


def _add_rest(table: Table, more: int, what: str) -> None:
    if more > 0:
        row = [""] * len(table.columns)
        row[0 if what == "entries" else 2] = f"... and {more:,} more {what}"
        table.add_row(*row)


def _notes(result: ReplayResult) -> list[str]:
    if not result.amended_events:
        return []
    events = "event" if result.amended_events == 1 else "events"
    return ["", f"A recording begins in the middle of things: {result.amended_events:,} {events} had to be completed."]


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


def _plain() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    return table


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
    return "under 0.001" if 0 < part / whole < 0.001 else f"{part / whole:.3f}"  # noqa: PLR2004


def _and(names: Sequence[str]) -> str:
    return " and ".join(names)
