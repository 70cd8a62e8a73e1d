"""Verdicts as text: one in detail with its counterexample, and the table of mutants."""

from __future__ import annotations

from textwrap import fill
from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import JustifyMethod, RenderableType

    from asikit.proofs import Counterexample, MutantRow, Reproduction, SideBySide, Verification

__all__ = ["equivalence_report", "mutants_report", "verification_report"]

WIDTH = 96
"""Columns of the widest part."""

_HOLDS = {True: "holds", False: "broken", None: "unknown"}
_AND_MACHINE = {
    True: "on the machine too",
    False: "not on the machine",
    None: "the machine goes wrong without the mutant too",
}


def verification_report(result: Verification) -> RenderableType:
    """Return one verdict in detail: what was explored, each property, the counterexample, what it rests on."""
    parts: list[RenderableType] = [Text(f"{result.verdict}: {_title(result)}", style="bold"), Text()]
    proved = str(result.verdict) == "PROVED"
    table = _plain("left", "left", "left")
    table.add_row("method", result.method, _method(result))
    if result.obligations:
        table.add_row("questions", f"{result.obligations:,}", "to the solver; each answered as hoped" if proved else "")
    else:
        table.add_row("states", f"{result.states:,}", f"{result.transitions:,} transitions")
    table.add_row("time", f"{result.seconds:.1f} s")
    for item in result.properties:
        table.add_row(item.name, _HOLDS[item.holds], item.says)
    parts.append(table)
    if result.reason:
        parts += [Text(), _wrapped("  ", result.reason)]
    if result.invariant and proved:
        parts += [
            Text(),
            Text("The invariant", style="bold"),
            _list(f"{name}: {says}" for name, says in result.invariant),
        ]
    if result.counterexample is not None:
        parts += [Text(), *_counterexample(result.counterexample)]
    if result.machine is not None:
        parts += [_wrapped("   On the machine: ", _on_machine(result.machine))]
    parts += [Text(), Text("Assumed", style="bold"), _list(result.assumptions)]
    parts += [Text(), Text("Not proved", style="bold"), _list(result.not_proved)]
    return Group(*parts)


def mutants_report(rows: Sequence[MutantRow]) -> RenderableType:
    """Return a table of mutants, and below it what the counterexamples come to."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), width=WIDTH)
    table.add_column("mutant", no_wrap=True)
    for name in ("SMT off", "SMT on"):
        table.add_column(name, no_wrap=True)
    table.add_column("steps", justify="right", no_wrap=True)
    table.add_column("what comes of it", overflow="fold", ratio=1)
    for row in rows:
        found = row.refuted.counterexample if row.refuted is not None else None
        steps, what = ("", "harmless") if found is None else (str(len(found.steps)), found.kind)
        machine = row.refuted.machine if row.refuted is not None else None
        if machine is not None:
            what += f"; {_AND_MACHINE[machine.leaks]}"
        table.add_row(
            f"{row.mutant}{' *' if row.variant else ''}", _cell(row.without_smt), _cell(row.with_smt), steps, what
        )
    refuted = sum(row.refuted is not None for row in rows)
    return Group(
        table,
        Text(f"{refuted} of {len(rows)} mutants are refuted. `asi verify --mutant NAME` tells one's counterexample."),
        Text(f"{sum(_breaks_machine(row) for row in rows)} of them break the model machine too."),
        *(
            _wrapped("* ", f"a mutant of {variant}, by which it comes to matter (asi verify --mutant {variant})")
            for variant in sorted({row.variant for row in rows if row.variant})
        ),
    )


def equivalence_report(comparisons: Sequence[SideBySide]) -> RenderableType:
    """Return ASI and the blanket mitigation side by side, and what it takes to tell them apart."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), width=WIDTH)
    for name in ("situation", "ASI", "blanket"):
        table.add_column(name, no_wrap=True)
    table.add_column("", overflow="fold", ratio=1)
    for item in comparisons:
        table.add_row(item.situation.name, str(item.asi.verdict), str(item.blanket.verdict), item.situation.says)
    leaks = (
        _wrapped(f"  {item.situation.name}, {side.mitigation}: ", side.counterexample.conclusion)
        for item in comparisons
        for side in (item.asi, item.blanket)
        if not item.equivalent and side.counterexample is not None
    )
    return Group(table, *leaks)


def _title(result: Verification) -> str:
    changes = " and ".join(each for each in (result.variant, result.mutant) if each)
    what = f"{result.mitigation} with {changes}" if changes else result.mitigation
    return f"{what}, {_count(result.threads, 'hardware thread')}, domains: {', '.join(result.classes)}"


def _method(result: Verification) -> str:
    schedules = "all schedules" if result.method == "induction" else "all interleavings"
    if not result.nesting:
        return f"{schedules}, no NMIs"
    return f"{schedules}, NMIs between any two micro-operations, {result.nesting} deep"


def _counterexample(found: Counterexample) -> list[RenderableType]:
    title = f"Counterexample: a {found.kind}, in {_count(len(found.steps), 'step')}"
    lines = [_wrapped(f"{number:>4}. ", line) for number, line in enumerate(found.story, 1)]
    end = _wrapped("   => ", found.conclusion)
    end.stylize("bold")
    return [Text(title, style="bold"), *lines, end]


def _on_machine(machine: Reproduction) -> str:
    missed = f" ({_count(machine.missed, 'step')} could not be followed)" if machine.missed else ""
    return f"{machine.kind or 'harmless'}: {machine.says}{missed}"


def _breaks_machine(row: MutantRow) -> bool:
    return row.refuted is not None and row.refuted.leaks_on_machine is True


def _list(lines: Iterable[str]) -> RenderableType:
    return Group(*(_wrapped("  ", line) for line in lines))


def _wrapped(label: str, text: str) -> Text:
    # A label inside the text, as `H1`, keeps its column too.
    indent = " " * (len(label) + (text.rfind("  ", 0, 5) + 2 if "  " in text[:5] else 0))
    wrapped = fill(text, WIDTH, initial_indent=label, subsequent_indent=indent, break_on_hyphens=False)
    return Text(wrapped)


def _plain(*justify: JustifyMethod, width: int = WIDTH) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0), width=width)
    for number, side in enumerate(justify, 1):
        table.add_column(justify=side, no_wrap=number < len(justify), overflow="fold")
    return table


def _cell(verdict: object | None) -> str:
    return "-" if verdict is None else str(verdict)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
