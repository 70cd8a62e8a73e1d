"""A page as a file: what is in it, and how it is written."""

from __future__ import annotations

import json
import os
import re
import threading
from typing import TYPE_CHECKING, Any

import pytest

from asikit.cli import main
from asikit.report.html import page_data, page_of, page_text, write_page
from asikit.report.view import Note, Report, document
from tests.report.reports import REPORTS

if TYPE_CHECKING:
    from pathlib import Path

PAGE = page_of(Report((Note("one line"),)), "A title")


def read(text: str) -> Any:  # noqa: ANN401  (any JSON value)
    """Return what a page's script reads."""
    found = re.search(r'<script type="application/json" id="page">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


@pytest.mark.parametrize("name", REPORTS)
def test_it_says_what_the_report_says(name: str, tmp_path: Path) -> None:
    """All of a report is in its page; what would move a cursor is shown escaped, as a terminal shows it."""
    report = REPORTS[name](tmp_path)
    said = read(page_text(page_of(report, "asi")))
    assert said == page_data(page_of(report, "asi"))
    plain = json.loads(json.dumps(document(report)["parts"]).replace("\\u001b", "\\\\x1b"))
    assert said["parts"] == plain
    assert said["title"] == (report.title or "asi")


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", "<!--<script>", "]]>", "&lt;b&gt;", "\u2028\u2029", "\ud800", "a\0b"]
)
def test_no_name_ends_the_data(name: str) -> None:
    """Whatever a name is, the page has as many tags as without it, and its data is the name, escaped or not."""
    text = page_text(page_of(Report((Note(name),)), name))
    ours = page_text(PAGE)
    for tag in ("<script", "</script", "<!--"):
        assert text.lower().count(tag) == ours.lower().count(tag)
    shown = read(text)["parts"][0]["text"]
    assert shown == "".join(char if char.isprintable() else ascii(char)[1:-1] for char in name)
    text.encode()


def test_licence() -> None:
    """The vendored code's licence is in each copy, as it asks for."""
    assert "Permission to use, copy, modify, and/or distribute" in page_text(PAGE)


def test_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is replaced when all is written; what fails leaves the old one, and nothing else."""
    path = tmp_path / "page.html"
    path.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr("pathlib.Path.replace", full)
        with pytest.raises(OSError, match=r"page\.html"):
            write_page(PAGE, path)
    assert [each.name for each in tmp_path.iterdir()] == ["page.html"]
    assert path.read_text() == "old"
    assert write_page(PAGE, path) == path.stat().st_size
    assert path.read_text() == page_text(PAGE)


def test_a_pipe_takes_a_page(tmp_path: Path) -> None:
    """What is no file is written to, not replaced."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    taken: list[str] = []
    reader = threading.Thread(target=lambda: taken.append(pipe.read_text()))
    reader.start()
    write_page(PAGE, pipe)
    reader.join()
    assert taken == [page_text(PAGE)]
    assert pipe.is_fifo()


def test_commands_write_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--html` writes a page besides what is printed, and says what was typed; where it cannot, one line tells."""
    path = tmp_path / "verify.html"
    words = ["verify", "--threads", "1", "--nesting", "0"]

    def run(*more: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([*words, *more])
        out, err = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return end.value.code, out, err

    code, out, _ = run("--html", str(path))
    assert code == 0
    assert out.startswith("PROVED")
    page = read(path.read_text())
    assert page["title"].startswith("PROVED")
    assert ["command", f"asi {' '.join(words)} --html {path}"] in page["made"]
    missing = tmp_path / "missing" / "verify.html"
    code, _, err = run("--html", str(missing))
    assert (code, err) == (1, f"asi: error: {missing}: No such file or directory\n")
