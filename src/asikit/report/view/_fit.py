"""How a table's columns share a width: as wide as they need, else broken, else in several pieces."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from rich.cells import cell_len

from asikit.report.view.data import Row

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.report.view.data import Column, Table

__all__ = ["TablePiece", "broken", "layouts"]

_LONGEST_WORD = 36
"""Longer words are broken before a table's columns move together."""
_NARROW = 18
"""A column of text is not made narrower than that, nor than its longest word, while there is another way."""
_NARROWEST = 12
"""Nor than that, even where its words must be broken."""


class TablePiece(NamedTuple):
    """A piece of a table.

    :ivar columns: Which columns it has.
    :ivar widths: How wide each is.
    :ivar gap: The blanks between two.
    :ivar margin: The blanks before the first.
    """

    columns: tuple[int, ...]
    widths: tuple[int, ...]
    gap: int
    margin: int


class _Need(NamedTuple):
    """The widths of a column: that of its longest cell, of its longest word, and what it may be folded to."""

    most: int
    words: int
    folded: int

    def whole(self) -> _Need:
        """Return the need of the same column if it is not to be broken."""
        return _Need(self.most, self.most, self.most)


def layouts(table: Table, width: int) -> list[TablePiece]:
    """Return the pieces in which a table fits into a width: one, if that can be."""
    needs = [_need(column, number, table) for number, column in enumerate(table.columns)]
    keys, others = tuple(range(table.keys)), tuple(range(table.keys, len(needs)))
    whole = _fitting((*keys, *others), needs, width, ruled=table.ruled)
    if whole is not None:
        return [whole]
    if sum(needs[number].most for number in keys) <= width // 2:  # what rows are about looks alike in all pieces
        needs = [need.whole() if number in keys else need for number, need in enumerate(needs)]

    def fitting(columns: Sequence[int]) -> TablePiece | None:
        return _fitting((*keys, *columns), needs, width, ruled=table.ruled)

    pieces: list[tuple[int, ...]] = [()]
    for number in others:
        joined = (*pieces[-1], number)
        if pieces[-1] and fitting(joined) is None:
            pieces.append((number,))
        else:
            pieces[-1] = joined
    return [fitting(columns) or _forced((*keys, *columns), needs, width) for columns in pieces]


def _need(column: Column, number: int, table: Table) -> _Need:
    cells = [row.cells[number] for row in table.rows if isinstance(row, Row)]
    heading = [cell_len(line) for line in column.heading.split("\n")]
    heading_word = _longest_word([column.heading])
    cell = max(map(cell_len, cells), default=0)
    most = max(cell, *heading, column.least)
    if not column.breaks:
        return _Need(most, max(cell, heading_word), max(cell, heading_word))
    words = max(heading_word, min(_longest_word(cells), _LONGEST_WORD), min(cell, _NARROW))
    return _Need(most, words, min(words, _NARROWEST))


def _longest_word(texts: Sequence[str]) -> int:
    return max((cell_len(word) for text in texts for word in text.split()), default=0)


def _fitting(columns: Sequence[int], needs: Sequence[_Need], width: int, *, ruled: bool) -> TablePiece | None:
    """Return how some columns fit side by side, None if they do not: first between words, then closer together."""
    loose, tight = ((3, 1), (2, 0)) if ruled else ((2, 0), (1, 0))
    own = [needs[number] for number in columns]
    for least in ([need.words for need in own], [need.folded for need in own]):
        for gap, margin in (loose, tight):
            room = width - gap * (len(own) - 1) - 2 * margin
            widths = _shared([need.most for need in own], least, room)
            if widths is not None:
                return TablePiece(tuple(columns), widths, gap, margin)
    return None


def _shared(most: Sequence[int], least: Sequence[int], room: int) -> tuple[int, ...] | None:
    """Return widths that take no more than there is room for: the widest columns give first."""
    if sum(least) > room:
        return None
    level = max(most, default=0)
    while True:
        widths = tuple(min(wanted, max(needed, level)) for wanted, needed in zip(most, least, strict=True))
        if sum(widths) <= room:
            return widths
        level -= 1


def _forced(columns: Sequence[int], needs: Sequence[_Need], width: int) -> TablePiece:
    """Return columns that do not fit, in equal shares: even figures are broken then."""
    room = max(len(columns), width - (len(columns) - 1))
    return TablePiece(tuple(columns), tuple(min(needs[n].most, room // len(columns)) for n in columns), 1, 0)


def broken(text: str, width: int) -> list[str]:
    """Break a text into lines at blanks, and a longer word where it must be; all lines keep the first's indent."""
    if cell_len(text) <= width:
        return [text]
    indent = text[: min(len(text) - len(text.lstrip()), width // 2)]
    room = max(1, width - len(indent))
    lines, line = [], ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if cell_len(joined) <= room:
            line = joined
            continue
        if line:
            lines.append(line)
        *full, line = _chopped(word, room)
        lines += full
    return [f"{indent}{each}" for each in (*lines, line)]


def _chopped(word: str, width: int) -> list[str]:
    """Return a word in pieces that are no wider than that."""
    pieces = [""]
    for char in word:
        if pieces[-1] and cell_len(pieces[-1] + char) > width:
            pieces.append("")
        pieces[-1] += char
    return pieces
