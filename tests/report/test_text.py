"""Parts of a report as text: notes, charts, sections, what is somebody else's, and tables that have no room."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asikit.report.view import (
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
)
from asikit.report.view._fit import broken, layouts
from asikit.report.view.text import lines, text

NUMBERS = Column(number=True)


def shown(*parts: Note | Verbatim | Table | Chart | Section, width: int = 30, title: str = "") -> list[str]:
    """Return the lines of a report of these parts."""
    return text(Report(parts, title), width).splitlines()


def test_note() -> None:
    """Further lines of a note begin below its text, not below its label."""
    note = Note("a sentence that is longer than the line", "  12. ")
    assert shown(note) == ["  12. a sentence that is", "      longer than the line"]


def test_note_with_a_long_label() -> None:
    """A label that is longer than half of the line is the beginning of the sentence."""
    note = Note("is a sentence that is longer than the line", "a label of twenty: ")
    assert shown(note) == [
        "a label of twenty: is a",
        "               sentence that",
        "               is longer than",
        "               the line",
    ]


def test_long_word() -> None:
    """A word that is longer than a line is broken where the line ends, and nothing of it is lost."""
    assert shown(Note("one " + "x" * 35 + " two"), width=20) == ["one", "x" * 20, "x" * 15 + " two"]


def test_title_and_sections() -> None:
    """A section is one empty line away from what is before it, and from nothing else."""
    inner = Section((Note("three"),), "inner")
    parts = (Section((Note("one"),)), Section((Note("two"), inner), "outer"))
    assert shown(*parts, title="title") == ["title", "", "one", "", "outer", "two", "", "inner", "three"]
    assert shown(*parts)[0] == "one"


def test_styles() -> None:
    """Titles are strong, the headings of a table without a rule faint; each line says what it is."""
    table = Table((Column("a"),), (Row(("1",)), Row(("2",), Style.WARNING)), ruled=False)
    report = Report((table, Section((Note("n", style=Style.NOTABLE),), "s")), "t")
    assert [(line.text, line.style.value) for line in lines(report, 80)] == [
        ("t", "strong"),
        ("a", "faint"),
        ("1", "plain"),
        ("2", "warning"),
        ("", "plain"),
        ("s", "strong"),
        ("n", "notable"),
    ]


def test_verbatim() -> None:
    """What a program has written keeps its lines and blanks, and moves no cursor."""
    part = Verbatim("a  b\n\n\tc\x1b[2J" + "d" * 30)
    assert shown(part, width=20) == ["a  b", "", "        c\\x1b[2Jdddd", "d" * 20, "d" * 6]


def test_foreign_text() -> None:
    """Nothing in a note, a label, a heading, a cell, a span or a bar moves the cursor."""
    evil = "\x1b[2J\r\u202e"
    table = Table((Column(evil), NUMBERS), (Row((evil, "1")), Span(evil, evil)), evil)
    found = shown(Note(evil, evil), Section((table,), evil), Chart((Bar(evil, evil),), evil), Verbatim(evil), width=200)
    assert all(line.isprintable() for line in found)
    assert sum(line.count("\\x1b[2J\\r\\u202e") for line in found) == 12


def test_bars() -> None:
    """Bars that begin at 0 are figures and what they are of; what is left out has no figure."""
    chart = Chart((Bar("the first", "49.4%", 0.494), Bar("second", "1.0%", 0.01), Bar("... and 8 more")), "Causes")
    assert shown(chart) == ["Causes", "  49.4%  the first", "   1.0%  second", "         ... and 8 more"]


def test_ranges() -> None:
    """Bars with two ends say what moves between them."""
    chart = Chart((Bar("cpi", "2% to 9%", 0.09, 0.02, "0.3 to 2, estimate"),), ranges="overhead")
    assert shown(chart, width=80) == ["  cpi: overhead 2% to 9% (0.3 to 2, estimate)"]


def test_choices() -> None:
    """Names and meanings in two columns; a long meaning stays in its column."""
    assert shown(choices({"a": "short", "long name": "a meaning that is long"}, indent="  "), width=31) == [
        "  a          short",
        "  long name  a meaning that is",
        "             long",
    ]


TABLE = Table(
    (Column("name", breaks=True), Column("first\ncount", number=True), Column("what it is", breaks=True)),
    (Row(("alpha", "1,000", "the first of the letters"), ends_group=True), Row(("beta", "20", "the second"))),
)


def test_table() -> None:
    """Figures stand at the right, headings at the bottom; groups are an empty line apart."""
    assert shown(TABLE, width=60) == [
        "",
        "         first",
        " name    count   what it is",
        " ────────────────────────────────────────",
        " alpha   1,000   the first of the letters",
        "",
        " beta       20   the second",
        "",
    ]


def test_table_is_broken_between_words() -> None:
    """Where there is less room, the widest column of text is broken; the rule is as wide as the table."""
    assert shown(TABLE, width=38)[2:6] == [
        " name    count   what it is",
        " ────────────────────────────────────",
        " alpha   1,000   the first of the",
        "                 letters",
    ]


def test_table_moves_together() -> None:
    """Before words are broken, columns stand closer together."""
    assert shown(TABLE, width=33)[2:6] == [
        "name   count  what it is",
        "─────────────────────────────────",
        "alpha  1,000  the first of the",
        "              letters",
    ]


def test_table_in_pieces() -> None:
    """Figures that do not fit beside one another are shown below one another, each with what its row is."""
    columns = (Column("name"), *(Column(f"count {number}", number=True) for number in range(3)))
    table = Table(columns, (Row(("alpha", "1,000,000", "2,000,000", "3,000,000")),))
    assert shown(table, width=28) == [
        "",
        "name     count 0    count 1",
        "───────────────────────────",
        "alpha  1,000,000  2,000,000",
        "",
        " name      count 2",
        " ─────────────────",
        " alpha   3,000,000",
        "",
    ]


def test_span() -> None:
    """A line of a table that is about the rows below it is as wide as the line, whatever the columns are."""
    table = Table(
        (Column(), Column()), (Span("a block of rows with a long name", "=> "), Row(("  a", "b"))), ruled=False
    )
    assert shown(table) == ["=> a block of rows with a long", "   name", "  a  b"]


def test_columns_of_one_width() -> None:
    """A column may be asked to be wider than what is in it; where there is no room it is not."""
    table = Table((Column(least=10), Column(number=True, least=8)), (Row(("a", "1")),), ruled=False)
    assert shown(table) == ["a" + " " * 18 + "1"]
    assert shown(table, width=12) == ["a" + " " * 10 + "1"]


def test_wide_characters() -> None:
    """A character that takes two columns counts for two."""
    table = Table((Column("名前", breaks=True), NUMBERS), (Row(("漢字", "1")), Row(("ab", "20"))), ruled=False)
    assert shown(table) == ["名前", "漢字   1", "ab    20"]
    assert shown(Note("漢" * 8), width=10) == ["漢" * 5, "漢" * 3]


@pytest.mark.parametrize("width", [5, 10, 20])
def test_hardly_any_room(width: int) -> None:
    """Even where nothing fits no line is wider than it may be."""
    parts = (
        TABLE,
        Note("a sentence", "label: "),
        Chart((Bar("label", "10%"),)),
        Verbatim("verbatim"),
        Section((), "s"),
    )
    assert max(map(len, shown(*parts, width=width))) <= width


@given(st.text(alphabet="ab 漢", max_size=40), st.integers(4, 20))
def test_broken_text_keeps_its_letters(words: str, width: int) -> None:
    """No line is wider than the width, and the letters are all there, in their order."""
    pieces = broken(words, width)
    assert all(len(piece.encode("gbk")) <= width for piece in pieces)
    assert "".join(pieces).replace(" ", "") == words.replace(" ", "")


_COLUMNS = st.builds(
    Column, heading=st.text("ab ", max_size=12), number=st.booleans(), breaks=st.booleans(), least=st.integers(0, 9)
)
_TABLES = st.lists(_COLUMNS, min_size=1, max_size=6).flatmap(
    lambda columns: st.builds(
        Table,
        columns=st.just(tuple(columns)),
        rows=st.lists(
            st.builds(Row, st.tuples(*[st.text("xy ", max_size=14)] * len(columns))), min_size=1, max_size=3
        ).map(tuple),
        ruled=st.booleans(),
        keys=st.integers(1, len(columns)),
    )
)


@given(_TABLES, st.integers(12, 60))
def test_every_column_is_shown_within_the_width(table: Table, width: int) -> None:
    """Each column that is no key is in one piece, the keys are in all, and no piece is too wide."""
    pieces = layouts(table, width)
    keys = tuple(range(table.keys))
    assert all(piece.columns[: table.keys] == keys for piece in pieces)
    others = [number for piece in pieces for number in piece.columns[table.keys :]]
    assert others == list(range(table.keys, len(table.columns)))
    for piece in pieces:
        assert 2 * piece.margin + sum(piece.widths) + piece.gap * (len(piece.widths) - 1) <= width
    assert max(map(len, shown(table, width=width))) <= width
