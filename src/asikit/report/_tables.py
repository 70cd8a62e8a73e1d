"""Tables as wide as their text, whatever the terminal: a pipe's 80 columns would cut figures off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["fitted", "printable"]

_WIDEST = 160


def fitted(table: Table) -> Table:
    """Return the table, set to the width that its text needs."""
    table.width = Console(width=_WIDEST).measure(table).maximum
    return table


def printable(text: str) -> str:
    """Escape what would move a terminal's cursor: a trace may come from somebody else."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
