"""Tables as wide as their text, whatever the terminal: a pipe's 80 columns would cut figures off."""

from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["fitted"]

_WIDEST = 160


def fitted(table: "Table") -> "Table":
    """Return the table, set to the width that its text needs."""
    table.width = Console(width=_WIDEST).measure(table).maximum
    return table
