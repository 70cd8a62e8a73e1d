"""Names from a recording are shown as text, whatever they contain."""

from __future__ import annotations

from itertools import cycle, islice
from typing import TYPE_CHECKING

import pytest

from asikit.cli import main
from asikit.report.html import page_of, write_page
from asikit.report.view import Bar, Chart, Column, Note, Report, Row, Section, Table, Verbatim
from asikit.report.view.text import printable
from tests.builders import TraceBuilder
from tests.replay.running import GFP_USER

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Page

    from tests.report.html.conftest import Opens

pytestmark = pytest.mark.needs_chromium

_HIT = "window.hit=1"
ATTEMPTS = (
    f"<script>{_HIT}</script>",
    f"</script><script>{_HIT}</script>",
    f"<img src=x onerror={_HIT}>",
    f"'\"><svg onload={_HIT}>",
    "<iframe srcdoc='<script>parent.hit=1</script>'>",
    f"javascript:{_HIT}",
    f"${{{_HIT}}}",
    f"{{{{constructor.constructor('{_HIT}')()}}}}",
    f"\\u003cscript\\u003e{_HIT}",
    f"&lt;script&gt;{_HIT}&lt;/script&gt;",
    f"]]><!--<script>{_HIT}//-->",
    "\u202egnp.exe\u202c",
    "\u2028\u2029\x00\x1b[2J\x07",
    "__proto__",
    "constructor",
    "<style>*{display:none}</style>",
    "<base href=//x><link rel=stylesheet href=//x>",
    "<meta http-equiv=refresh content=0;url=//x>",
    "e\u0301\u200f\u2066\ufeff",
    "\U0001f480" * 5,
)
"""One name in this many is of each kind."""


def names(count: int) -> list[str]:
    """Give so many names that differ."""
    return [f"{name}{number}" for number, name in enumerate(islice(cycle(ATTEMPTS), count))]


def check(page: Page, expected: list[str]) -> None:
    """Nothing was executed, nothing was made, and each name stands there."""
    assert page.evaluate("window.hit") is None
    made = "document.querySelectorAll('img, iframe, base, link, object, embed, form, style, script, meta').length"
    assert page.evaluate(made) == 2 + 1 + 3  # scripts, style, metas: the page's own
    handlers = "[...document.querySelectorAll('*')].flatMap((each) => each.getAttributeNames())"
    assert not [name for name in page.evaluate(handlers) if name.startswith("on") or name in {"src", "srcdoc"}]
    text = page.evaluate("document.body.textContent + [...document.querySelectorAll('[title]')].map((e) => e.title)")
    assert [name for name in expected if printable(name) not in text] == []


def test_ten_thousand_names(tmp_path: Path, opened: Opens) -> None:
    """Names in all parts of a report; also such as no file of a recording can hold."""
    many = names(9_000)
    halves = [f"\ud800{number}\udfff" for number in range(1_000)]
    rows = tuple(Row((name, other)) for name, other in zip(many[:4_000], many[4_000:8_000], strict=True))
    table = Table((Column(many[8_000], breaks=True), Column(many[8_001], breaks=True)), rows, many[8_002])
    chart = Chart(tuple(Bar(name, name, 1.0, note=name) for name in many[8_003:8_500]), many[8_500])
    notes = tuple(Note(name, f"  {name}: ") for name in (*many[8_501:8_999], *halves))
    parts = (table, chart, Section(notes, many[8_999]), Verbatim("\n".join(ATTEMPTS)))
    path = tmp_path / "names.html"
    write_page(page_of(Report(parts, ATTEMPTS[0]), "asi"), path)
    with opened(path) as page:
        check(page, [*many, *halves])


def test_a_hostile_recording(tmp_path: Path, opened: Opens, capsys: pytest.CaptureFixture[str]) -> None:
    """Tasks, functions, modules, caches, phases and the command of a recording."""
    b = TraceBuilder()
    b.meta |= {
        "workload": {"command": [ATTEMPTS[1], ATTEMPTS[2]], "exit_status": 0},
        "kernel": {"release": ATTEMPTS[1], "version": ATTEMPTS[2], "command_line": ATTEMPTS[3]},
    }
    hostile = names(200)
    b.task_switch("first", pid=1).return_user()
    for number, name in enumerate(hostile):
        b.task_switch(name, pid=number + 2)
        b.begin(name)
        b.entry_syscall(0)
        b.touch_read(kind="shmem", cache=name, gfp=GFP_USER, label=name, stack=(f"f{name}", f"{name}m", "entry"))
        b.return_user().end(name)
    path, page = b.write(tmp_path / "<img src=x onerror=hit>.asitrace").path, tmp_path / "report.html"
    with pytest.raises(SystemExit) as end:
        main(["report", str(path), "--policy", "denylist-2025,ephmap", "-o", str(page)])
    assert end.value.code == 0, capsys.readouterr().err
    with opened(page) as shown:
        shown.get_by_label("find a function").fill("<script")
        shown.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
        check(shown, hostile)
