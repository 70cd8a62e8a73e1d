"""Reports as data: what a report says, apart from where and how wide it is shown.

A :class:`Report` is made of tables, charts and notes, in sections. :func:`document` gives it as plain values, for JSON
and for other languages; :func:`asikit.report.view.text.text` sets it as text of a given width.
"""

from __future__ import annotations

from asikit.report.view.data import (
    Bar,
    Chart,
    Column,
    Note,
    Report,
    Row,
    Section,
    Span,
    Style,
    Table,
    Verbatim,
    choices,
    document,
)

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
