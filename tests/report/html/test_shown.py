"""Pages in a real browser: they show what the reports say, and can be sorted, searched, printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from asikit.report.html import page_data, page_of, write_page
from asikit.report.view import Bar, Chart, Column, Note, Report, Row, Style, Table
from tests.report.html.conftest import PHONE
from tests.report.reports import REPORTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.report.html.conftest import Opens

pytestmark = pytest.mark.needs_chromium

_UNSEEN = {"type", "style"}


def words(value: Any) -> Iterator[str]:  # noqa: ANN401  (any JSON value)
    """Give all that a page's data says in words."""
    if isinstance(value, str):
        yield " ".join(value.split())
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in _UNSEEN:
                yield from words(each)
    elif isinstance(value, list):
        for each in value:
            yield from words(each)


def test_all_is_shown(tmp_path: Path, opened: Opens) -> None:
    """Every heading, cell, bar and note of every report stands in its page."""
    for name, build in REPORTS.items():
        folder, path = tmp_path / name, tmp_path / f"{name}.html"
        folder.mkdir()
        page = page_of(build(folder), "asi")
        write_page(page, path)
        with opened(path) as shown:
            text = " ".join(str(shown.evaluate("document.body.innerText + document.body.textContent")).split())
            missing = {said for said in words(page_data(page)) if said not in text}
            assert missing == set(), name


TABLE = Table(
    (Column("task", breaks=True), Column("exits", number=True), Column("share", number=True)),
    (
        *(Row((f"task {number}", f"{number * 700:,}", f"{number / 3:.1f}% (0.1% to 9%)")) for number in range(1, 19)),
        Row(("... and 4 more", "", "")),
    ),
)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Write a page with a table that can be sorted."""
    path = tmp_path / "table.html"
    chart = Chart((Bar("one", "+3", 3.0), Bar("other", "-2", -2.0), Bar("no figure")), "Most changed")
    warned = Note("beware", style=Style.WARNING)
    write_page(page_of(Report((warned, TABLE, chart), "A report"), "asi"), path)
    return path


def test_sorting(table: Path, opened: Opens) -> None:
    """A heading sorts, by figures where there are some, and again the other way; the rest stays below."""
    with opened(table) as page:
        rows = page.locator("main tbody tr")
        page.get_by_role("button", name="exits").click()
        assert rows.first.inner_text().split("\t")[:2] == ["task 18", "12,600"]
        assert page.locator("th[aria-sort=descending]").inner_text().startswith("exits")
        page.get_by_role("button", name="exits").press("Enter")
        assert rows.first.inner_text().startswith("task 1\t")
        assert rows.last.inner_text().startswith("... and 4 more")
        page.get_by_role("button", name="task").click()
        assert rows.nth(1).inner_text().startswith("task 10\t")


def test_finding(table: Path, opened: Opens) -> None:
    """Rows that do not have what is looked for are hidden, and how many are left is said."""
    with opened(table) as page:
        page.get_by_role("searchbox").fill("task 1")
        assert page.locator("main tbody tr:visible").count() == 10
        assert page.get_by_role("status").inner_text() == "10 of 19 rows"


def test_colours_are_not_the_only_sign(table: Path, opened: Opens) -> None:
    """A warning has a sign, a bar its figure; and who wants dark gets it, whatever the system has."""
    with opened(table) as page:
        sign = "getComputedStyle(document.querySelector('.warning'), '::before').content"
        assert "⚠" in page.evaluate(sign)
        assert page.locator(".bars li").nth(1).inner_text().split() == ["other", "-2"]
        ground = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(ground)
        button = page.get_by_role("button", name="Colours")
        button.click()
        assert page.evaluate(ground) == light
        button.click()
        assert page.evaluate(ground) != light
        assert button.inner_text() == "Colours: dark"


def test_printing(table: Path, opened: Opens) -> None:
    """On paper there are no controls, all rows, and dark ink."""
    with opened(table, scheme="dark") as page:
        page.emulate_media(media="print")
        assert page.locator("header button, .find").first.is_hidden()
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.pdf().startswith(b"%PDF")


def test_a_phone(table: Path, opened: Opens) -> None:
    """A narrow page is not wider than the phone; a wide table scrolls by itself."""
    with opened(table, size=PHONE) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
