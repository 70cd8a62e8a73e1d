"""A report as lines of text that are no wider than they may be."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, assert_never

import msgspec
from rich.cells import cell_len

from asikit.report.view._fit import broken, layouts
from asikit.report.view.data import Chart, Note, Row, Section, Span, Style, Table, Verbatim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.report.view._fit import TablePiece
    from asikit.report.view.data import Bar, Report

__all__ = ["Line", "lines", "printable", "text"]

_DEEPEST_INDENT = 26


class Line(NamedTuple):
    """A line of text."""

    text: str
    style: Style = Style.PLAIN


def text(report: Report, width: int) -> str:
    """Return a report as text.

    :param width: The most columns of a line.
    """
    return "".join(f"{line.text}\n" for line in lines(report, width))


def lines(report: Report, width: int) -> list[Line]:
    """Return a report line by line, for a terminal that shows styles.

    :param width: The most columns of a line.
    """
    page = _Page(width)
    if report.title:
        page.note(Note(report.title, style=Style.STRONG))
    for part in report.parts:
        page.part(part)
    return page.lines


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor: a trace may come from somebody else."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class _Page:
    """Lines so far."""

    def __init__(self, width: int) -> None:
        self.lines: list[Line] = []
        self._width = width

    def part(self, part: Note | Verbatim | Table | Chart | Section) -> None:
        match part:
            case Note():
                self.note(part)
            case Verbatim():
                self._verbatim(part)
            case Table():
                self._table(part)
            case Chart():
                self._chart(part)
            case Section():
                self._section(part)
            case _:
                assert_never(part)

    def note(self, note: Note | Span) -> None:
        label, indent = printable(note.label), min(cell_len(note.label), _DEEPEST_INDENT, self._width // 2)
        if cell_len(label) > indent:  # too long a label is the beginning of the text
            first, *rest = broken(label + printable(note.text), self._width)
            more = broken(" ".join(line.strip() for line in rest), self._width - indent) if rest else []
        else:
            first, *more = broken(printable(note.text), self._width - indent)
            first = label + first
        for line in (first, *(" " * indent + line for line in more)):
            self._add(line, note.style)

    def _add(self, line: str, style: Style = Style.PLAIN) -> None:
        self.lines.append(Line(line.rstrip(), style))

    def _verbatim(self, verbatim: Verbatim) -> None:
        for line in verbatim.text.split("\n"):
            shown = printable(line.expandtabs())
            for start in range(0, max(1, len(shown)), self._width):
                self._add(shown[start : start + self._width])

    def _section(self, section: Section) -> None:
        if self.lines and self.lines[-1].text:
            self._add("")
        if section.title:
            self.note(Note(section.title, style=Style.STRONG))
        for part in section.parts:
            self.part(part)

    def _chart(self, chart: Chart) -> None:
        if chart.title:
            self.note(Note(chart.title, style=chart.style))
        widest = max((cell_len(bar.shown) for bar in chart.bars), default=0)
        for bar in chart.bars:
            self.note(_range(bar, chart.ranges) if chart.ranges else Note(bar.label, f"  {bar.shown:>{widest}}  "))

    def _table(self, table: Table) -> None:
        if table.title:
            self.note(Note(table.title))
        safe = _safe(table)
        for layout in layouts(safe, self._width):
            self._piece(safe, layout)

    def _piece(self, table: Table, layout: TablePiece) -> None:
        """Add a table, or some of its columns."""
        if table.ruled and not (self.lines and not self.lines[-1].text):
            self._add("")
        headings = [table.columns[number].heading for number in layout.columns]
        if any(headings):
            self._cells(table, layout, headings, Style.PLAIN if table.ruled else Style.FAINT, at_bottom=True)
        if table.ruled:
            rule = sum(layout.widths) + layout.gap * (len(layout.widths) - 1)
            self._add(" " * layout.margin + "─" * rule)
        for row in table.rows:
            if isinstance(row, Span):
                self.note(row)
                continue
            self._cells(table, layout, [row.cells[number] for number in layout.columns], row.style)
            if row.ends_group and row is not table.rows[-1]:
                self._add("")
        if table.ruled:
            self._add("")

    def _cells(
        self, table: Table, layout: TablePiece, cells: Sequence[str], style: Style, *, at_bottom: bool = False
    ) -> None:
        """Add a row, of as many lines as its highest cell."""
        columns = [
            [line for piece in cell.split("\n") for line in broken(piece, width)]
            for cell, width in zip(cells, layout.widths, strict=True)
        ]
        height = max(map(len, columns))
        blanks = [[""] * (height - len(column)) for column in columns]
        filled = [
            blank + column if at_bottom else column + blank for column, blank in zip(columns, blanks, strict=True)
        ]
        for line in zip(*filled, strict=True):
            shown = [
                _padded(cell, width, right=table.columns[number].number)
                for cell, width, number in zip(line, layout.widths, layout.columns, strict=True)
            ]
            self._add(" " * layout.margin + (" " * layout.gap).join(shown), style)


def _range(bar: Bar, what: str) -> Note:
    note = f" ({bar.note})" if bar.note else ""
    return Note(f"{bar.label}: {what} {bar.shown}{note}", "  ")


def _padded(cell: str, width: int, *, right: bool) -> str:
    blanks = " " * (width - cell_len(cell))
    return blanks + cell if right else cell + blanks


def _safe(table: Table) -> Table:
    """Return a table whose words move no terminal's cursor."""
    return msgspec.structs.replace(
        table,
        columns=tuple(
            msgspec.structs.replace(column, heading="\n".join(map(printable, column.heading.split("\n"))))
            for column in table.columns
        ),
        rows=tuple(
            msgspec.structs.replace(row, cells=tuple(map(printable, row.cells))) if isinstance(row, Row) else row
            for row in table.rows
        ),
    )
