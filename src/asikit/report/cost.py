"""Costs: what each mitigation adds, where it comes from, and where every figure comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.report.parts import PART_WORDS, rest_label
from asikit.report.view import Bar, Chart, Column, Note, Report, Row, Section, Style, Table
from asikit.sources import known_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.cost import BreakEven, CostResult, CostRow, Parameter, Range

__all__ = ["cost_report", "cost_sources", "interval", "percent"]

_LONGEST = 60
"""The most characters of a workload's command line to show."""
SOURCE_WORDS = {
    "predictor_flush": "predictor flush (IBPB, BHB)",
    "predictor_refill": "  mispredictions after it",
    "rsb_fill": "return stack refill",
    "buffer_flush": "buffer flush (VERW)",
    "l1d_flush": "L1D flush",
    "l1d_refill": "  cold L1D after it",
    "cr3_writes": "CR3 writes",
    "tlb_refill": "  lost TLB entries",
    "page_faults": "page faults",
    "transitions": "asi_enter, asi_exit: code",
    "stun": "stun, and the sibling's time",
    "smt_off": "no sibling threads",
    "ephmap": "ephemeral mappings",
    "pageblocks": "pageblocks: zeroing, shootdown",
    "entry_code": "entry and return code",
    "kernel_branches": "slower branches in the kernel",
}


def cost_report(result: CostResult, *, top: int = 5) -> Report:
    """Return a section for each processor.

    :param top: The most parameters to show of those that move the answer, and the most parts.
    """
    parts: list[Note | Section] = [Note(_base_line(result))]
    if result.selection:
        parts.append(Note(f"Counted: {result.selection}; all shares are of this part's time"))
    parts += [_processor(result, cpu, top) for cpu in dict.fromkeys(row.cpu for row in result.rows)]
    return Report(tuple(parts))


def _processor(result: CostResult, cpu: str, top: int) -> Section:
    rows = [row for row in result.rows if row.cpu == cpu]
    parts: list[Note | Table | Section] = [_overheads(rows)]
    if any(row.by_source for row in rows):
        parts.append(_by_source(rows))
    parts += _each(result, cpu)
    if result.parts and top:
        parts.append(_by_part(result, rows, top))
    parts += [note for row in rows for note in _asi_notes(row)]
    charts = [_sensitivity(row, top) for row in rows if row.sensitivity[:top]]
    if charts:
        parts.append(Section(tuple(charts)))
    parts += [Note(note) for note in dict.fromkeys(note for row in rows for note in row.notes)]
    return Section(tuple(parts), f"On {cpu}")


def cost_sources(result: CostResult) -> Report:
    """Return every term of every row, and the source of every figure."""
    keys = dict.fromkeys(key for row in result.rows for one in row.parameters.values() for key in one.cites)
    known = known_sources()
    used = tuple(Note(f"{known[key].short}: {known[key].line}", "  ") for key in keys)
    terms = tuple(_sources(row) for row in result.rows if row.terms)
    return Report((*terms, Section(used, "What was used")) if used else terms)


def _sources(row: CostRow) -> Section:
    terms = (
        Note(f"{' x '.join(term.price)}: {term.what} [{term.source.value}]", f"  {term.count:>16,.6g} x ")
        for term in row.terms
    )
    figures = (Note(_parameter_line(name, parameter), "    ") for name, parameter in row.parameters.items())
    return Section((*terms, Note("  and its figures"), *figures), f"{row.label} on {row.cpu}: what is added up")


def percent(share: float) -> str:
    """Return a share as people read it, with two or three digits: ``0.43%``, ``12.5%``, ``310%``."""
    hundredths = 100 * share
    size = abs(hundredths)
    digits = 0 if size >= 100 or size == 0 else 1 if size >= 10 else 2  # noqa: PLR2004
    return f"{hundredths:.{digits}f}%"


def interval(figures: Range) -> str:
    """Return a range of shares: ``12.5% (3.10% to 40.2%)``, or one figure when it is exact."""
    middle = percent(figures.mid)
    return middle if figures.is_exact else f"{middle} ({percent(figures.low)} to {percent(figures.high)})"


def _base_line(result: CostResult) -> str:
    kernel = result.kernel_instructions / max(1, result.instructions)
    workload = " ".join(" ".join(map(str, result.trace.get("workload", ()))).split())
    shown = workload if len(workload) <= _LONGEST else f"{workload[: _LONGEST - 3]}..."
    time = "" if result.base_seconds is None else f", {result.base_seconds:g} s measured"
    return f"{shown}: {result.instructions:,} instructions, {kernel:.0%} of them in the kernel{time}"


def _overheads(rows: Sequence[CostRow]) -> Table:
    headings = ("overhead", "low", "high", "cycles per\nround trip", "low", "high")
    shown = []
    for row in rows:
        share, cycles = row.overhead, row.per_round_trip
        figures = (
            *(percent(figure) for figure in (share.mid, share.low, share.high)),
            *(f"{figure:,.0f}" for figure in (cycles.mid, cycles.low, cycles.high)),
        )
        shown.append(Row((row.label, *figures)))
    columns = (Column("mitigation", breaks=True), *(Column(heading, number=True) for heading in headings))
    return Table(columns, tuple(shown))


def _by_source(rows: Sequence[CostRow]) -> Table:
    shown = [row for row in rows if row.by_source]
    lines = []
    for source, words in SOURCE_WORDS.items():
        if any(source in row.by_source for row in shown):
            cells = (percent(row.by_source[source].mid) if source in row.by_source else "-" for row in shown)
            lines.append(Row((words, *cells)))
    columns = (Column(breaks=True), *(Column(row.policy or row.mitigation, number=True) for row in shown))
    return Table(columns, tuple(lines), "Where it comes from (share of the run's time, best guess)")


def _each(result: CostResult, cpu: str) -> list[Note | Table | Section]:
    """Return a table for each mitigation of which it was asked what each vulnerability adds, the dearest first."""
    own = [row for row in result.each if row.cpu == cpu]
    parts: list[Note | Table | Section] = []
    for mitigation in dict.fromkeys(row.mitigation for row in own):
        rows = [row for row in own if row.mitigation == mitigation]
        lines = []
        for row in sorted(rows, key=lambda row: (-(row.overhead.mid if row.overhead else 0), row.vulnerabilities)):
            if row.overhead is not None and row.per_round_trip is not None:
                share, cycles = row.overhead, row.per_round_trip
                figures = (
                    *(percent(figure) for figure in (share.mid, share.low, share.high)),
                    *(f"{figure:,.0f}" for figure in (cycles.mid, cycles.low, cycles.high)),
                )
                lines.append(Row((", ".join(row.vulnerabilities), *figures)))
        headings = ("overhead", "low", "high", "cycles per\nround trip", "low", "high")
        columns = (Column("against", breaks=True), *(Column(heading, number=True) for heading in headings))
        if lines:
            title = f"What each costs in {mitigation}: the run with it, less the run without it"
            parts.append(Table(columns, tuple(lines), title))
        unknown = [", ".join(row.vulnerabilities) for row in rows if row.overhead is None]
        if unknown:
            parts.append(Note(f"No price in {mitigation}, as a trace cannot count it: {', '.join(unknown)}."))
    return parts


def _by_part(result: CostResult, rows: Sequence[CostRow], top: int) -> Table:
    """Return a row for each part; the last is for those that have none of their own, so that the columns add up."""
    shown = [number for number, row in enumerate(result.rows) if row in rows and row.by_source]
    named = (result.rows[number].policy or result.rows[number].mitigation for number in shown)
    columns = (Column(breaks=True), *(Column(heading, number=True) for heading in ("instructions", *named)))
    lines = [(part.name, [part]) for part in result.parts[:top]]
    if result.parts[top:]:
        lines.append((rest_label(len(result.parts) - top, result.by), list(result.parts[top:])))
    cells = []
    for name, parts in lines:
        instructions = sum(part.instructions for part in parts) / result.instructions
        figures = (percent(sum(part.rows[number].overhead.mid for part in parts)) for number in shown)
        cells.append(Row((name, percent(instructions), *figures)))
    title = f"By {PART_WORDS[result.by][0]} (share of the run's time, best guess)"
    return Table(columns, tuple(cells), title)


def _asi_notes(row: CostRow) -> list[Note]:
    if row.per_exit is None or row.per_exit_ns is None:
        return []
    cycles, time = row.per_exit, row.per_exit_ns
    cost = f"cost {cycles.mid:,.0f} cycles ({cycles.low:,.0f} to {cycles.high:,.0f})"
    also = f"or {time.mid:,.0f} ns ({time.low:,.0f} to {time.high:,.0f})."
    notes = [Note(f"{row.label}: one exit and the return that enters again"), Note(f"{cost}, {also}", "  ")]
    if row.per_ephmap_ns is not None:
        one = row.per_ephmap_ns
        notes.append(Note(f"One ephemeral mapping costs {one.mid:,.0f} ns ({one.low:,.0f} to {one.high:,.0f}).", "  "))
    for name, even in (("blanket", row.break_even), ("linux", row.break_even_linux)):
        if even is not None:
            notes.append(Note(_even_text(name, even), "  "))
    return notes


def _even_text(name: str, even: BreakEven) -> str:
    figures = even.fraction
    here = f"here {percent(even.observed)} do"
    if figures.mid <= 0:
        ends = f"{percent(figures.low)} to {percent(figures.high)}"
        return f"Costs more than {name} even if no round trip exits ({percent(figures.mid)}, {ends}); {here}."
    return f"Costs less than {name} while fewer than {interval(figures)} of the round trips exit; {here}."


def _sensitivity(row: CostRow, top: int) -> Chart:
    bars = (
        Bar(
            item.parameter,
            f"{percent(item.low)} to {percent(item.high)}",
            item.high,
            item.low,
            _figures(row.parameters[item.parameter]),
        )
        for item in row.sensitivity[:top]
    )
    title = f"What moves the answer for {row.label} most, each alone over its range:"
    return Chart(tuple(bars), title, Style.PLAIN, ranges="overhead")


def _figures(parameter: Parameter) -> str:
    figures = parameter.range
    unit = "" if parameter.unit.value == "count" else f" {parameter.unit.value}"
    known = parameter.basis.value
    if figures.is_exact:
        return f"{figures.mid:,.6g}{unit}, {known}"
    return f"{figures.low:,.6g} to {figures.high:,.6g}{unit}, {known}"


def _parameter_line(name: str, parameter: Parameter) -> str:
    figures = parameter.range
    middle = "" if figures.is_exact else f", best guess {figures.mid:,.6g}"
    return f"{name}: {_figures(parameter)}{middle}: {parameter.source}"
