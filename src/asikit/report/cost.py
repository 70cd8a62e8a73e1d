"""Costs as text: what each mitigation adds, where it comes from, and where every figure comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asikit.report._tables import fitted, printable
from asikit.report.parts import PART_WORDS, rest_label
from asikit.sources import known_sources

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from asikit.cost import BreakEven, CostResult, CostRow, Parameter, Range

__all__ = ["cost_report", "cost_sources", "interval", "percent"]

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


def cost_report(result: CostResult, *, top: int = 5) -> RenderableType:
    """Return a section for each processor.

    :param top: The most parameters to show of those that move the answer, and the most parts.
    """
    parts: list[RenderableType] = [Text(_base_line(result))]
    if result.selection:
        parts.append(Text(f"Counted: {printable(result.selection)}; all shares are of this part's time"))
    for cpu in dict.fromkeys(row.cpu for row in result.rows):
        rows = [row for row in result.rows if row.cpu == cpu]
        parts += [Text(), Text(f"On {cpu}", style="bold"), _overheads(rows)]
        if any(row.by_source for row in rows):
            parts += [Text("Where it comes from (share of the run's time, best guess)"), _by_source(rows)]
        if result.parts and top:
            heading = f"By {PART_WORDS[result.by][0]} (share of the run's time, best guess)"
            parts += [Text(heading), _by_part(result, rows, top)]
        parts += [Text(line) for row in rows for line in _asi_lines(row)]
        parts += _sensitivities(rows, top)
        parts += [Text(note) for note in dict.fromkeys(note for row in rows for note in row.notes)]
    return Group(*parts)


def cost_sources(result: CostResult) -> RenderableType:
    """Return every term of every row, and the source of every figure."""
    parts: list[RenderableType] = []
    for row in result.rows:
        if not row.terms:
            continue
        parts += [Text(), Text(f"{row.label} on {row.cpu}: what is added up", style="bold")]
        parts += [
            Text(f"  {term.count:>16,.6g} x {' x '.join(term.price)}: {term.what} [{term.source.value}]")
            for term in row.terms
        ]
        parts.append(Text("  and its figures"))
        parts += [Text(f"    {_parameter_line(name, parameter)}") for name, parameter in row.parameters.items()]
    keys = dict.fromkeys(key for row in result.rows for one in row.parameters.values() for key in one.cites)
    if keys:
        known = known_sources()
        parts += [Text(), Text("What was used", style="bold")]
        parts += [Text(f"  {known[key].short}: {known[key].line}") for key in keys]
    return Group(*parts)


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
    shown = workload if len(workload) <= 60 else f"{workload[:57]}..."  # noqa: PLR2004
    time = "" if result.base_seconds is None else f", {result.base_seconds:g} s measured"
    return f"{shown}: {result.instructions:,} instructions, {kernel:.0%} of them in the kernel{time}"


def _overheads(rows: Sequence[CostRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("mitigation", no_wrap=True, vertical="bottom")
    for heading in ("overhead", "low", "high", "cycles per\nround trip", "low", "high"):
        table.add_column(heading, justify="right", no_wrap=True, vertical="bottom")
    for row in rows:
        share, cycles = row.overhead, row.per_round_trip
        table.add_row(
            row.label,
            *(percent(figure) for figure in (share.mid, share.low, share.high)),
            *(f"{figure:,.0f}" for figure in (cycles.mid, cycles.low, cycles.high)),
        )
    return fitted(table)


def _by_source(rows: Sequence[CostRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    shown = [row for row in rows if row.by_source]
    for row in shown:
        table.add_column(row.policy or row.mitigation, justify="right", overflow="fold", max_width=16)
    for source, words in SOURCE_WORDS.items():
        if any(source in row.by_source for row in shown):
            cells = (percent(row.by_source[source].mid) if source in row.by_source else "-" for row in shown)
            table.add_row(words, *cells)
    return fitted(table)


def _by_part(result: CostResult, rows: Sequence[CostRow], top: int) -> Table:
    """Return a row for each part; the last is for those that have none of their own, so that the columns add up."""
    shown = [number for number, row in enumerate(result.rows) if row in rows and row.by_source]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for heading in (
        "instructions",
        *(result.rows[number].policy or result.rows[number].mitigation for number in shown),
    ):
        table.add_column(heading, justify="right", overflow="fold", max_width=16)
    lines = [(printable(part.name), [part]) for part in result.parts[:top]]
    if result.parts[top:]:
        lines.append((rest_label(len(result.parts) - top, result.by), list(result.parts[top:])))
    for name, parts in lines:
        instructions = sum(part.instructions for part in parts) / result.instructions
        cells = (percent(sum(part.rows[number].overhead.mid for part in parts)) for number in shown)
        table.add_row(name, percent(instructions), *cells)
    return fitted(table)


def _asi_lines(row: CostRow) -> list[str]:
    if row.per_exit is None or row.per_exit_ns is None:
        return []
    cycles, time = row.per_exit, row.per_exit_ns
    lines = [
        f"{row.label}: one exit and the return that enters again",
        (
            f"  cost {cycles.mid:,.0f} cycles ({cycles.low:,.0f} to {cycles.high:,.0f}),"
            f" or {time.mid:,.0f} ns ({time.low:,.0f} to {time.high:,.0f})."
        ),
    ]
    if row.per_ephmap_ns is not None:
        one = row.per_ephmap_ns
        lines.append(f"  One ephemeral mapping costs {one.mid:,.0f} ns ({one.low:,.0f} to {one.high:,.0f}).")
    for name, even in (("blanket", row.break_even), ("linux", row.break_even_linux)):
        if even is not None:
            lines.append(f"  {_even_text(name, even)}")
    return lines


def _even_text(name: str, even: BreakEven) -> str:
    figures = even.fraction
    here = f"here {percent(even.observed)} do"
    if figures.mid <= 0:
        ends = f"{percent(figures.low)} to {percent(figures.high)}"
        return f"More than {name} even if no round trip exits ({percent(figures.mid)}, {ends}); {here}."
    return f"Less than {name} while under {interval(figures)} of the round trips exit; {here}."


def _sensitivities(rows: Sequence[CostRow], top: int) -> list[RenderableType]:
    lines = []
    for row in rows:
        shown = row.sensitivity[:top]
        if not shown:
            continue
        lines.append(f"What moves the answer for {row.label} most, each alone over its range:")
        lines += [
            f"  {item.parameter}: overhead {percent(item.low)} to {percent(item.high)}"
            f" ({_figures(row.parameters[item.parameter])})"
            for item in shown
        ]
    return [Text(), *map(Text, lines)] if lines else []


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
