"""Every report fits into the width it is given, loses nothing in it, and is data."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import msgspec
import pytest

from asikit.report.view import Report, document
from asikit.report.view.text import text
from tests.report.reports import REPORTS

if TYPE_CHECKING:
    from pathlib import Path

WIDE = 1000


@pytest.mark.parametrize("name", REPORTS)
def test_a_report_fits_loses_nothing_and_is_data(name: str, tmp_path: Path) -> None:
    """At 40, 60, 80 and 120 columns no line is wider, and every letter of the widest form is there.

    A table in pieces says what its rows are about once more in each, so that there may be more. Its JSON is read back
    as the same report.
    """
    report = REPORTS[name](tmp_path)
    wanted = _letters(text(report, WIDE))
    for width in (40, 60, 80, 120):
        shown = text(report, width)
        assert max(map(len, shown.splitlines())) <= width
        assert wanted <= _letters(shown), width
    assert msgspec.convert(json.loads(json.dumps(document(report))), Report) == report


@pytest.mark.parametrize("name", REPORTS)
def test_no_report_moves_the_cursor(name: str, tmp_path: Path) -> None:
    """Whatever is in a trace or on a console is shown escaped."""
    assert all(line.isprintable() for line in text(REPORTS[name](tmp_path), 80).split("\n"))


def _letters(shown: str) -> Counter[str]:
    return Counter(char for char in shown if not char.isspace() and char != "─")
