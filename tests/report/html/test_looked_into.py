"""The page about recordings in a real browser: what its pictures show, by mouse and by keyboard."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from axe_playwright_python.sync_playwright import Axe

from asikit.attacks import AttackVerdict, Cell, Finding
from asikit.cli import main
from asikit.report.attack import attack_page
from asikit.report.cost import percent
from asikit.report.html import page_of, write_page
from tests.builders import TraceBuilder
from tests.replay.running import GFP_USER
from tests.report.html.conftest import PHONE
from tests.report.reports import REPORTS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from playwright.sync_api import Page, ViewportSize

    from tests.report.html.conftest import Opens, Scheme

pytestmark = pytest.mark.needs_chromium

POLICIES = "denylist-2025,ephmap"
RIGHT = "getBoundingClientRect().right"
WIDTHS = f"(table) => [...table.rows].every((row) => row.lastElementChild.{RIGHT} > table.{RIGHT} - 1)"
ENTRY = "entry_SYSCALL_64"
SERIOUS = {"serious", "critical"}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run the command and give what it prints."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert end.value.code == 0, err
    return out


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """Two tasks, two phases, two CPUs; reads that an ephemeral mapping serves, and faults that exit."""
    b = TraceBuilder()
    read = ("_copy_to_iter", "filemap_read", "ksys_read", ENTRY)
    fault = ("clear_page_erms", "do_anonymous_page", "asm_exc_page_fault")
    cache: dict[str, Any] = {"kind": "shmem", "cache": "shmem", "gfp": GFP_USER}
    b.task_switch("reader", pid=7).return_user().begin("warm up")
    for number in range(6):
        b.entry_syscall(0).touch_read(**cache, label=str(number), stack=read).return_user()
    b.end("warm up").task_switch("writer", pid=8, cpu=1).return_user(cpu=1)
    for number in range(3):
        b.entry_exception(14, cpu=1).touch_write(kind="anon", gfp=GFP_USER, label=str(number), stack=fault, cpu=1)
        b.return_user(cpu=1)
    b.entry_syscall(39).return_user()
    return b.write(tmp_path / "two-tasks.asitrace").path


@pytest.fixture
def report(recording: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Write the page about that."""
    path = recording.with_name("report.html")
    printed(capsys, "report", str(recording), "--policy", POLICIES, "-o", str(path))
    return path


def frame(page: Page, name: str) -> str:
    """Give what a frame of the flame graph tells."""
    return page.get_by_role("treeitem", name=f"{name}:").get_attribute("aria-label") or ""


def test_it_shows_what_the_commands_say(
    recording: Path, report: Path, opened: Opens, capsys: pytest.CaptureFixture[str]
) -> None:
    """The answer, the flame graph's root and the tables have the figures of the JSON."""
    replays = json.loads(printed(capsys, "replay", str(recording), "--policy", POLICIES, "--json"))["results"]
    costs = json.loads(
        printed(capsys, "cost", str(recording), "--cpu", "skylake-6600u", "--policy", POLICIES, "--json")
    )
    exits = [each["exits"] for each in replays]
    with opened(report) as page:
        lead = page.locator(".lead").inner_text()
        trips = replays[0]["round_trips"]
        with_exit = trips - replays[0]["round_trips_without_exit"]
        assert f"{with_exit:,} of {trips:,} round trips" in lead
        for row in costs["rows"]:
            if row["mitigation"] != "none":
                bar = page.locator(".stacked", has_text="skylake-6600u").locator("li", has_text=row["mitigation"])
                assert any(percent(row["overhead"]["mid"]) in text for text in bar.all_inner_texts())
        sides = page.get_by_label("of", exact=True)
        for number, count in enumerate(exits):
            sides.select_option(index=number)
            assert frame(page, "all exits").startswith(f"all exits: {count} exit")
        sides.select_option(index=2)
        change = exits[1] - exits[0]
        assert change < 0
        assert frame(page, "all exits") == f"all exits: {exits[0]}, then {exits[1]} exits (\u2212{-change})"
        assert "less" in (page.get_by_role("treeitem", name="_copy_to_iter:").get_attribute("class") or "")
        assert page.get_by_role("treeitem", name="_copy_to_iter:").inner_text().startswith("\u2212")


def test_the_flame_by_mouse(report: Path, opened: Opens) -> None:
    """A click zooms in; tasks, phases and cycles can be chosen; what is looked for is marked and counted."""
    with opened(report) as page:
        whole = page.locator(".flame").evaluate("(each) => each.clientWidth")
        entry = page.get_by_role("treeitem", name=f"{ENTRY}:")
        assert entry.evaluate("(each) => each.offsetWidth") < 0.8 * whole
        entry.click()
        assert entry.evaluate("(each) => each.offsetWidth") >= whole - 2
        assert page.get_by_role("treeitem", name="asm_exc_page_fault:").count() == 0
        page.get_by_role("button", name="Zoom out").click()
        assert page.get_by_role("treeitem", name="asm_exc_page_fault:").count() == 1
        page.get_by_label("find a function").fill("COPY_TO")
        assert page.locator(".frame.found").all_inner_texts() == ["_copy_to_iter"]
        assert page.get_by_role("status").first.inner_text() == "1 found: 6 exits, 66.7%"
        page.get_by_label("task", exact=True).select_option(label="writer")
        assert frame(page, "all exits").startswith("all exits: 3 exits")
        page.get_by_label("task", exact=True).select_option(label="all")
        page.get_by_label("phase").select_option(label="warm up")
        assert frame(page, "all exits").startswith("all exits: 6 exits")
        page.get_by_label("wide as").select_option(index=1)
        assert "cycles" in frame(page, "all exits")


def test_the_flame_by_keyboard(report: Path, opened: Opens) -> None:
    """Arrows move along a stack, Enter zooms in, Escape out; one frame alone is a stop of the Tab key."""
    with opened(report) as page:
        assert page.locator(".frame[tabindex='0']").count() == 1
        page.get_by_role("treeitem", name="all exits:").focus()
        page.keyboard.press("ArrowDown")
        focus = "document.activeElement.getAttribute('aria-label')"
        assert page.evaluate(focus).startswith(f"{ENTRY}:")
        page.keyboard.press("ArrowRight")
        assert page.evaluate(focus).startswith("asm_exc_page_fault:")
        page.keyboard.press("Enter")
        assert page.get_by_role("treeitem", selected=True).inner_text() == "asm_exc_page_fault"
        assert page.get_by_role("treeitem", name=f"{ENTRY}:").count() == 0
        page.keyboard.press("Escape")
        assert page.get_by_role("treeitem", selected=True).inner_text() == "all exits"
        page.keyboard.press("ArrowUp")
        assert page.evaluate(focus).startswith("all exits:")


def test_the_timeline(report: Path, opened: Opens) -> None:
    """It tells of each moment, comes closer, and goes back."""
    with opened(report) as page:
        line = page.get_by_role("slider").first
        line.focus()
        page.keyboard.press("End")
        last = int(line.get_attribute("aria-valuenow") or 0)
        assert last == int(line.get_attribute("aria-valuemax") or -1)
        page.keyboard.press("Home")
        seen = set()
        for _ in range(last):
            text = line.get_attribute("aria-valuetext") or ""
            seen |= {word for word in ("unrestricted, 1 exit, 1 predictor flush", "CPU 1") if word in text}
            page.keyboard.press("ArrowRight")
        assert seen == {"unrestricted, 1 exit, 1 predictor flush", "CPU 1"}
        box = line.locator("svg").first
        whole = box.get_attribute("viewBox")
        page.keyboard.press("+")
        closer = box.get_attribute("viewBox")
        assert closer != whole
        page.keyboard.press("0")
        assert box.get_attribute("viewBox") == whole
        line.click(position={"x": 600, "y": 20})
        assert box.get_attribute("viewBox") != whole


def test_a_round_trip_is_opened(report: Path, opened: Opens) -> None:
    """What is folded away can be opened, and goes from an entry to a return."""
    with opened(report) as page:
        typical = page.locator("details", has_text="A typical one").first
        assert typical.locator("table").is_hidden()
        typical.locator("summary").click()
        rows = typical.locator("tbody tr")
        assert rows.first.inner_text() == "0\tsyscall read"
        assert "EXIT: page fault" in rows.nth(2).inner_text()
        assert "SYSRET to user mode" in typical.inner_text()
        # A row's sign makes no cell of its own.
        assert typical.locator("table").evaluate(WIDTHS)


def test_each_leak_has_its_story(tmp_path: Path, opened: Opens) -> None:
    """A LEAK of the matrix opens the story of that very attack."""
    leak, none = AttackVerdict.LEAK, AttackVerdict.NO_LEAK
    verdicts = {"user_kernel": {"none": leak, "asi": none}, "nmi": {"none": none, "asi": leak}}
    findings = [
        Finding(Cell("l1tf", vector, "skylake-6600u", mitigation), verdict, "why", story=(f"{vector} was attacked",))
        for vector, row in verdicts.items()
        for mitigation, verdict in row.items()
    ]
    path = tmp_path / "attack.html"
    write_page(attack_page(findings), path)
    with opened(path) as page:
        cells = page.locator("td.alarm")
        assert cells.all_inner_texts() == ["LEAK", "LEAK"]
        assert cells.nth(1).locator("xpath=..").inner_text().split() == ["nmi", "-", "LEAK"]
        cells.nth(1).get_by_role("button").press("Enter")
        assert page.locator("details[open] summary").all_inner_texts() == ["LEAK: l1tf, nmi, on skylake-6600u, asi"]
        assert page.get_by_text("nmi was attacked").is_visible()


def test_printed(report: Path, opened: Opens) -> None:
    """All fits on paper, the flame graph too."""
    with opened(report) as page:
        page.emulate_media(media="print")
        assert page.locator(".controls").first.is_hidden()
        assert page.locator(".frame").first.is_visible()
        assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe(report: Path, tmp_path: Path, opened: Opens, scheme: Scheme) -> None:
    """Nothing serious stands in the way of who does not see, or sees badly; in no page of ours."""
    names = ("replayed_once", "priced", "compared_runs", "host", "refuted", "attacks")
    others = [(name, tmp_path / f"{name}.html") for name in names]
    for name, path in others:
        path.with_suffix("").mkdir()
        write_page(page_of(REPORTS[name](path.with_suffix("")), "asi"), path)
    for path in (report, *(path for _, path in others)):
        with opened(path, scheme=scheme, trusted=True) as page:
            page.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true })")
            if path == report:
                page.get_by_label("of", exact=True).select_option(index=2)
                page.get_by_label("find a function").fill("read")
            violations = Axe().run(page).response["violations"]
            assert [
                (each["id"], [node["target"] for node in each["nodes"]][:3])
                for each in violations
                if each["impact"] in SERIOUS
            ] == [], path


LOOKS: dict[str, tuple[Scheme, ViewportSize]] = {
    "light": ("light", {"width": 1100, "height": 1600}),
    "dark": ("dark", {"width": 1100, "height": 1600}),
    "phone": ("light", PHONE),
}


@pytest.mark.parametrize("name", LOOKS)
def test_looks(report: Path, opened: Opens, name: str, looks_like: Callable[[bytes, str], None]) -> None:
    """It looks as it did: layout and colours, not each letter."""
    scheme, size = LOOKS[name]
    with opened(report, scheme=scheme, size=size, trusted=True) as page:
        page.add_style_tag(content='* { font-family: "DejaVu Sans" !important; }')
        page.locator("footer").evaluate("(each) => each.remove()")
        looks_like(page.screenshot(), name)
