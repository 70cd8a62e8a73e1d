"""The leak matrix, and one cell of it step by step."""

from __future__ import annotations

from itertools import groupby
from string import ascii_lowercase
from textwrap import shorten
from typing import TYPE_CHECKING, Final

from asikit.attacks import (
    NO_VECTOR,
    AttackVerdict,
    Vector,
    load_vulnerability,
    vulnerability_names,
)
from asikit.machine.x86 import load_cpu
from asikit.mitigations import mitigation, mitigation_names
from asikit.report.html import Fold, HtmlPage, Matrix, PageSection
from asikit.report.view import Column, Note, Report, Row, Section, Span, Style, Table, choices
from asikit.sources import cited, known_sources, spelt_out

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asikit.attacks import Finding

__all__ = ["attack_names", "attack_page", "attack_reason", "attack_report"]

_LONGEST_NAME: Final = 9
_FEW_COLUMNS: Final = 6
_WIDE: Final = 8
_MOST_LINES: Final = 30
_LONGEST_STEP: Final = 320
_MOST_STORIES: Final = 200
_WORDS: Final = {
    AttackVerdict.LEAK: "LEAK",
    AttackVerdict.NO_LEAK: "-",
    AttackVerdict.NOT_APPLICABLE: "n/a",
    AttackVerdict.UNKNOWN: "?",
}
_LEGEND: Final = {
    AttackVerdict.NO_LEAK: "- is tried, nothing found",
    AttackVerdict.NOT_APPLICABLE: "n/a not applicable",
    AttackVerdict.UNKNOWN: "? unknown: not modelled, or not tried to the end",
}


def attack_report(findings: Sequence[Finding]) -> Report:
    """Return the matrix: a block for each vulnerability, a line for each vector, a column for each mitigation."""
    columns = list(dict.fromkeys(found.cell.mitigation for found in findings))
    wide = len(columns) <= _FEW_COLUMNS and all(len(name) <= _LONGEST_NAME for name in columns)
    heads = columns if wide else list(ascii_lowercase[: len(columns)])
    rows: list[Row | Span] = []
    for (name, cpu), block in groupby(findings, key=lambda found: (found.cell.vulnerability, found.cell.cpu)):
        rows += _block(name, cpu, list(block))
    leaks = sum(found.verdict is AttackVerdict.LEAK for found in findings)
    verdicts = {found.verdict for found in findings}
    legend = (text for verdict, text in _LEGEND.items() if verdict in verdicts)
    below = [Note("; ".join([f"{leaks} of {len(findings)} attacks leak (LEAK)", *legend]))]
    if not wide:
        below += [
            Note(f"{name}: {mitigation(name).says}", f"{head}  ") for head, name in zip(heads, columns, strict=True)
        ]
    shown = (Column(), *(Column(head, least=_WIDE if wide else 0) for head in heads))
    table = Table(shown, tuple(rows), ruled=False)
    return Report((table, Section(tuple(below))))


def _block(name: str, cpu: str, block: list[Finding]) -> list[Row | Span]:
    if block[0].cell.vector == NO_VECTOR:
        return [Span(block[0].reason, f"{name}: unknown, ")]
    has_it = load_vulnerability(name).concerns(load_cpu(cpu))
    title = Span(f"{name} on {cpu}{'' if has_it else ', which does not have it'}", style=Style.STRONG)
    return [
        title,
        *(
            Row((f"  {vector}", *(_WORDS[found.verdict] for found in row)))
            for vector, row in groupby(block, key=lambda found: found.cell.vector)
        ),
    ]


def attack_reason(finding: Finding) -> Report:
    """Return one cell's verdict and, step by step, how it came about."""
    cell = finding.cell
    vulnerability = load_vulnerability(cell.vulnerability)
    parts: list[Note | Section] = [Note(vulnerability.title)]
    if vulnerability.source:
        parts.append(Note(spelt_out(vulnerability.source), "source: "))
        parts += [Note(known_sources()[key].line, "  ") for key in cited(vulnerability.source)]
    parts.append(Note(f"{cell.mitigation}: {mitigation(cell.mitigation).says}"))
    if finding.way:
        parts.append(Note(f"mechanism: {finding.way}"))
    if finding.story:
        parts.append(Section(_steps(finding), "What happened, with the first secret"))
    if finding.stopped:
        parts.append(Section(tuple(_stops(finding)), "What stopped it"))
    parts.append(Section((Note(finding.reason, "=> "),)))
    return Report(
        tuple(parts), f"{finding.verdict}: {cell.vulnerability}, {cell.vector}, on {cell.cpu}, {cell.mitigation}"
    )


def _stops(finding: Finding) -> Iterator[Note]:
    """Yield what stopped it, and below each what would have to fail."""
    for stop in finding.stopped:
        yield Note(stop.says, f"  {stop.by}: ")
        yield Note(stop.unless, "    unless: ")


def _steps(finding: Finding) -> tuple[Note, ...]:
    """Return what happened: of a leak the last steps, which lead to it, else the first."""
    steps = [(step, sum(1 for _ in same)) for step, same in groupby(finding.story)]
    left_out = max(0, len(steps) - _MOST_LINES)
    skipped = left_out if finding.verdict is AttackVerdict.LEAK else 0
    notes = [Note(f"{skipped} steps, and then", " " * 5)] if skipped else []
    for number, (step, times) in enumerate(steps[skipped : skipped + _MOST_LINES], skipped + 1):
        again = f" ({times} times)" if times > 1 else ""
        notes.append(Note(shorten(step, _LONGEST_STEP, placeholder=" ...") + again, f"{number:>3}. "))
    if skipped != left_out:
        notes.append(Note(f"and {left_out} more", " " * 5))
    return tuple(notes)


def attack_page(findings: Sequence[Finding]) -> HtmlPage:
    """Return the matrix as a page, with the story of each leak."""
    table, below = attack_report(findings).parts
    assert isinstance(table, Table)
    assert isinstance(below, Section)
    leaks = [found for found in findings if found.verdict is AttackVerdict.LEAK]
    # The findings stand in the order of the table's cells.
    cells = tuple(
        (number, column)
        for number, row in enumerate(table.rows)
        if isinstance(row, Row)
        for column, cell in enumerate(row.cells)
        if cell == _WORDS[AttackVerdict.LEAK]
    )
    told = (attack_reason(found) for found in leaks[:_MOST_STORIES])
    stories = tuple(Fold(each.title, each.parts) for each in told)
    notes = [Note("Each LEAK leads to the story of how it came about.", style=Style.FAINT)]
    if leaks[_MOST_STORIES:]:
        more = len(leaks) - len(stories)
        notes.append(Note(f"{more} more leaks have no story here: asi attack --why tells one's", style=Style.FAINT))
    parts = (*below.parts, *notes, Matrix(table, cells, stories))
    return HtmlPage("Attacks on the model machine", (PageSection(parts, "What leaks"),))


def attack_names() -> Report:
    """Return what there is to choose from."""
    vulnerabilities = {name: load_vulnerability(name).title for name in vulnerability_names()}
    mitigations = {name: mitigation(name).says for name in mitigation_names()}
    return Report(
        (
            Section((choices(vulnerabilities, indent="  "),), "Vulnerabilities"),
            Section((Note(", ".join(Vector), "  "),), "Vectors"),
            Section((choices(mitigations, indent="  "),), "Mitigations"),
        )
    )
