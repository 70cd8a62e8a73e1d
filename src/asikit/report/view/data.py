"""The parts of a report. All are values: equal if they say the same."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "Bar",
    "Chart",
    "Column",
    "Note",
    "Report",
    "Row",
    "Section",
    "Span",
    "Style",
    "Table",
    "Verbatim",
    "choices",
    "document",
]


class Style(StrEnum):
    """What a line means to its reader; a renderer decides how that looks."""

    PLAIN = "plain"
    STRONG = "strong"
    """A title, or the line that matters most."""
    FAINT = "faint"
    """What may be skipped."""
    NOTABLE = "notable"
    """What stands out among its likes."""
    WARNING = "warning"


class Note(msgspec.Struct, frozen=True, tag="note"):
    """A sentence or a few.

    :ivar label: What stands before it, with the space in between; further lines begin where the text begins.
    """

    text: str
    label: str = ""
    style: Style = Style.PLAIN


class Verbatim(msgspec.Struct, frozen=True, tag="verbatim"):
    """Lines of somebody else, to be shown as they are."""

    text: str


class Column(msgspec.Struct, frozen=True):
    """A column of a table.

    :ivar heading: Above it.
    :ivar number: Its cells are figures: they stand at the right, and are never broken.
    :ivar breaks: Its cells may be broken into lines at their blanks.
    :ivar least: It is at least that wide where there is room, so that tables below one another look alike.
    """

    heading: str = ""
    number: bool = False
    breaks: bool = False
    least: int = 0


class Row(msgspec.Struct, frozen=True, tag="row"):
    """A row of a table: a cell for each column.

    :ivar ends_group: Some space follows.
    """

    cells: tuple[str, ...]
    style: Style = Style.PLAIN
    ends_group: bool = False


class Span(msgspec.Struct, frozen=True, tag="span"):
    """A line of a table that is about the rows below it.

    :ivar label: As of a :class:`Note`.
    """

    text: str
    label: str = ""
    style: Style = Style.PLAIN


class Table(msgspec.Struct, frozen=True, tag="table"):
    """A table.

    :ivar title: A line above it.
    :ivar ruled: With a line below its headings; else its columns stand closer together.
    :ivar keys: How many of its first columns say what a row is about: where a table is shown in pieces, each has them.
    """

    columns: tuple[Column, ...]
    rows: tuple[Row | Span, ...]
    title: str = ""
    ruled: bool = True
    keys: int = 1


class Bar(msgspec.Struct, frozen=True):
    """A bar of a chart.

    :ivar shown: Its figure in words: ``49.4%``, ``2.55% to 17.0%``.
    :ivar value: Where it ends; None if it is about what is left out.
    :ivar begin: Where it begins.
    :ivar note: What else is to be said of it.
    """

    label: str
    shown: str = ""
    value: float | None = None
    begin: float = 0.0
    note: str = ""


class Chart(msgspec.Struct, frozen=True, tag="chart"):
    """Bars to be compared with one another.

    :ivar ranges: The bars are ranges of a figure that is called so; empty: they all begin at 0.
    """

    bars: tuple[Bar, ...]
    title: str = ""
    style: Style = Style.STRONG
    ranges: str = ""


class Section(msgspec.Struct, frozen=True, tag="section"):
    """Parts that belong together, set apart from what is before them.

    :ivar title: Above them; may be empty.
    """

    parts: tuple[Note | Verbatim | Table | Chart | Section, ...]
    title: str = ""


class Report(msgspec.Struct, frozen=True):
    """What a command has to say.

    :ivar title: Its first line; may be empty.
    """

    parts: tuple[Note | Verbatim | Table | Chart | Section, ...]
    title: str = ""


def document(report: Report) -> dict[str, Any]:
    """Return a report as plain values: a ``type`` says which part a value is."""
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found


def choices(meanings: Mapping[str, str], *, indent: str = "") -> Table:
    """Return a list of what one may choose from, each with its meaning."""
    rows = tuple(Row((f"{indent}{name}", says)) for name, says in meanings.items())
    return Table((Column(), Column(breaks=True)), rows, ruled=False)
