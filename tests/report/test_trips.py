"""The list of round trips, and one of them step by step."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from asikit.cli._frame import asi
from asikit.replay import History, SelectionError
from asikit.report.trips import trip_dict, trip_report
from asikit.report.view.text import text
from asikit.trace import TlbFlush
from tests.builders import TraceBuilder
from tests.replay.running import GFP_USER, policy

if TYPE_CHECKING:
    from pathlib import Path

SAMPLE = str(files("asikit.data") / "samples/page-cache.asitrace")


def history(folder: Path) -> History:
    """Give a recording of one long round trip and a short one."""
    b = TraceBuilder().task_switch("cat", pid=7).return_user()
    b.entry_syscall(
        0,
    ).touch_read(kind="slab", cache="filp", stack=("filp_get", "read"))
    b.nested_interrupt(236).touch_read(kind="shmem", gfp=GFP_USER, stack=("copy", "irq")).nested_return()
    b.tlb_flush(TlbFlush.USER_RANGE).task_switch("dog", pid=8, mm=2).mm_switch(2).return_user(iret=True)
    b.entry_interrupt(236)
    return History.of(b.write(folder / "t.asitrace"), policy())


def test_steps(tmp_path: Path) -> None:
    """Each event is a line, deeper in handlers; an exit and what it flushes stand where they happen."""
    shown = text(trip_report(history(tmp_path), 1), 200)
    lines = [line.strip() for line in shown.splitlines()]
    wanted = (
        "Round trip 1 under denylist-2025, CPU 0, cat 7",
        "slab filp  (filp_get <- read)",
        "interrupt 236 ",
        "shmem",
        "EXIT: page fault",
        "return from it",
        "TLB flush: user range",
        "switch to dog 8",
        "page tables of mm 2",
        "IRET to user mode",
    )
    places = [next(number for number, line in enumerate(lines) if part in line) for part in wanted]
    assert places == sorted(places)
    exits = [line for line in shown.splitlines() if "EXIT" in line]
    assert len(exits) == 1
    assert exits[0].index("EXIT") > shown.splitlines()[places[1]].index("read")  # deeper: inside of the handler
    after = lines[places[4] + 1 : places[5]]
    assert any("ibpb" in line for line in after)


def test_not_over(tmp_path: Path) -> None:
    """A round trip that the recording cuts off says so; one that is not there is refused."""
    found = history(tmp_path)
    assert "not over when the recording ended" in text(trip_report(found, 2), 80)
    with pytest.raises(SelectionError, match="--trip 3: there is no such round trip; the recording has 1 to 2"):
        trip_report(found, 3)


def test_as_values(tmp_path: Path) -> None:
    """The values are the lines; exits are marked."""
    found = history(tmp_path)
    values = trip_dict(found, 1)
    assert sum(step["exit"] for step in values["steps"]) == found.trips["exits"][0] == 1
    json.dumps(values)


def test_command() -> None:
    """The list is sorted and cut as asked, in text and in JSON; `--trip` shows one of them."""
    run = CliRunner().invoke
    listed = json.loads(
        run(asi, ["trace", SAMPLE, "--where", "entry == pread64 and exits > 0", "--json", "--top", "3"]).output
    )
    assert (listed["found"], len(listed["trips"])) == (4098, 3)
    most = json.loads(run(asi, ["trace", SAMPLE, "--sort", "instructions", "--json", "--top", "9"]).output)["trips"]
    counts = [trip["instructions"] for trip in most]
    assert counts == sorted(counts, reverse=True)
    one = run(asi, ["trace", SAMPLE, "--trip", str(listed["trips"][0]["trip"])]).output
    assert "syscall pread64" in one
    assert "EXIT: page fault" in one
    assert "... and" in run(asi, ["trace", SAMPLE, "--top", "1"]).output
