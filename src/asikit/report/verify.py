"""Verdicts: one in detail with its counterexample, and the table of mutants."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.report.view import Column, Note, Report, Row, Section, Span, Style, Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from asikit.proofs import Counterexample, Mutant, MutantRow, Reproduction, SideBySide, Verification

__all__ = ["equivalence_report", "mutant_names", "mutants_report", "verification_report"]

_HOLDS = {True: "holds", False: "broken", None: "unknown"}
_AND_MACHINE = {
    True: "on the machine too",
    False: "not on the machine",
    None: "the machine goes wrong with the unchanged protocol too",
}


def verification_report(result: Verification) -> Report:
    """Return one verdict in detail: what was explored, each property, the counterexample, what it rests on."""
    parts = [Section((_facts(result),))]
    if result.reason:
        parts.append(Section((_labelled("  ", result.reason),)))
    if result.invariant and str(result.verdict) == "PROVED":
        parts.append(Section(_list(f"{name}: {says}" for name, says in result.invariant), "The invariant"))
    found = () if result.counterexample is None else _counterexample(result.counterexample)
    if result.machine is not None:
        found = (*found, Note(_on_machine(result.machine), "   On the machine: "))
    if found:
        title = "" if result.counterexample is None else _counterexample_title(result.counterexample)
        parts.append(Section(found, title))
    parts += [Section(_list(result.assumptions), "Assumed"), Section(_list(result.not_proved), "Not proved")]
    return Report(tuple(parts), f"{result.verdict}: {_title(result)}")


def _facts(result: Verification) -> Table:
    rows = [("method", result.method, _method(result))]
    if result.obligations:
        proved = str(result.verdict) == "PROVED"
        rows.append(("questions", f"{result.obligations:,}", "to the solver; each answered as hoped" if proved else ""))
    else:
        rows.append(("states", f"{result.states:,}", f"{result.transitions:,} transitions"))
    rows.append(("time", f"{result.seconds:.1f} s", ""))
    rows += [(item.name, _HOLDS[item.holds], item.says) for item in result.properties]
    return Table((Column(), Column(), Column(breaks=True)), tuple(map(Row, rows)), ruled=False)


def mutants_report(rows: Sequence[MutantRow]) -> Report:
    """Return a table of mutants, and below it what the counterexamples come to."""
    lines = []
    for row in rows:
        found = row.refuted.counterexample if row.refuted is not None else None
        steps, what = ("", "harmless") if found is None else (str(len(found.steps)), found.kind)
        machine = row.refuted.machine if row.refuted is not None else None
        if machine is not None:
            what += f"; {_AND_MACHINE[machine.leaks]}"
        name = f"{row.mutant}{' *' if row.variant else ''}"
        lines.append(Row((name, _cell(row.without_smt), _cell(row.with_smt), steps, what)))
    refuted = sum(row.refuted is not None for row in rows)
    columns = (
        Column("mutant", breaks=True),
        Column("SMT off"),
        Column("SMT on"),
        Column("steps", number=True),
        Column("what comes of it", breaks=True),
    )
    advice = "`asi verify --mutant NAME` shows the counterexample of one."
    return Report(
        (
            Table(columns, tuple(lines)),
            Note(f"{refuted} of {len(rows)} mutants are refuted. {advice}"),
            Note(f"{sum(_breaks_machine(row) for row in rows)} of them break the model machine too."),
            *(
                Note(
                    f"a mutant of the variant {name}; it is harmless without that variant (asi verify --mutant {name})",
                    "* ",
                )
                for name in sorted({row.variant for row in rows if row.variant})
            ),
        )
    )


def mutant_names(mutants: Sequence[Mutant], alternatives: Sequence[Mutant]) -> Report:
    """Return what there is to choose from."""
    rows: list[Row | Span] = []
    for title, those in (("Mutants", mutants), ("Alternatives", alternatives)):
        rows += [Span(title), *(Row((f"  {mutant.name}", mutant.says)) for mutant in those)]
    return Report((Table((Column(), Column(breaks=True)), tuple(rows), ruled=False),))


def equivalence_report(comparisons: Sequence[SideBySide]) -> Report:
    """Return ASI and the blanket mitigation side by side, and what it takes to tell them apart."""
    rows = (
        Row((item.situation.name, str(item.asi.verdict), str(item.blanket.verdict), item.situation.says))
        for item in comparisons
    )
    leaks = (
        Note(side.counterexample.conclusion, f"  {item.situation.name}, {side.mitigation}: ")
        for item in comparisons
        for side in (item.asi, item.blanket)
        if not item.equivalent and side.counterexample is not None
    )
    columns = (*map(Column, ("situation", "ASI", "blanket")), Column(breaks=True))
    return Report((Table(columns, tuple(rows)), *leaks))


def _title(result: Verification) -> str:
    changes = " and ".join(each for each in (result.variant, result.mutant) if each)
    what = f"{result.mitigation} with {changes}" if changes else result.mitigation
    return f"{what}, {_count(result.threads, 'hardware thread')}, domains: {', '.join(result.classes)}"


def _method(result: Verification) -> str:
    schedules = "all schedules" if result.method == "induction" else "all interleavings"
    if not result.nesting:
        return f"{schedules}, no NMIs"
    return f"{schedules}, NMIs between any two micro-operations, {result.nesting} deep"


def _counterexample_title(found: Counterexample) -> str:
    return f"Counterexample: a {found.kind}, in {_count(len(found.steps), 'step')}"


def _counterexample(found: Counterexample) -> tuple[Note, ...]:
    steps = (_labelled(f"{number:>4}. ", line) for number, line in enumerate(found.story, 1))
    return (*steps, Note(found.conclusion, "   => ", Style.STRONG))


def _on_machine(machine: Reproduction) -> str:
    missed = f" ({_count(machine.missed, 'step')} could not be followed)" if machine.missed else ""
    confirmed = "" if machine.leaks else "not confirmed: "
    return f"{confirmed}{machine.kind or 'harmless'}: {machine.says}{missed}"


def _breaks_machine(row: MutantRow) -> bool:
    return row.refuted is not None and row.refuted.leaks_on_machine is True


def _list(lines: Iterable[str]) -> tuple[Note, ...]:
    return tuple(_labelled("  ", line) for line in lines)


def _labelled(label: str, text: str) -> Note:
    """Return a note whose text begins after the label in it, as `H1`, which keeps its column too."""
    own = text.rfind("  ", 0, 5) + 2 if "  " in text[:5] else 0
    return Note(text[own:], label + text[:own])


def _cell(verdict: object | None) -> str:
    return "-" if verdict is None else str(verdict)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
