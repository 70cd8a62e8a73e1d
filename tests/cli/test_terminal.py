"""What a command does on a terminal: the pager, colours, the line of progress. A pipe gets none of it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import asikit
from asikit.attacks import cells
from asikit.cli import attack, main, verify
from asikit.cli._progress import Progress
from asikit.proofs import Capability, world_for
from asikit.trace import Trace
from tests.cli.terminal import ASI, Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

SAMPLE = str(Path(asikit.__file__).parent / "data/samples/phases.asitrace")
LIST = ("replay", "--list-policies")
MARKS = "sed 's/^/> /'"


def _piped(*words: str) -> str:
    done = subprocess.run([*ASI, *words], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout


def _marked(text: str) -> str:
    return "".join(f"> {line}\n" for line in text.splitlines())


@pytest.mark.parametrize("words", [LIST, ("host", "--help"), ("info", SAMPLE, "--json")])
def test_short_output_has_no_pager(words: Sequence[str]) -> None:
    """What fits on the screen is printed as it is, and as it is printed into a pipe, but for colours."""
    terminal = Terminal.run(*ASI, *words, rows=500, environment={"ASI_PAGER": MARKS, "NO_COLOR": "1"})
    assert (terminal.finish(), terminal.shown) == (0, _piped(*words))


@pytest.mark.parametrize("words", [("info", SAMPLE), ("info", SAMPLE, "--json")])
def test_long_output_has_one(words: Sequence[str]) -> None:
    """What is longer than the screen goes through the pager, whole."""
    terminal = Terminal.run(*ASI, *words, environment={"ASI_PAGER": MARKS, "PAGER": "false", "NO_COLOR": "1"})
    assert (terminal.finish(), terminal.shown) == (0, _marked(_piped(*words)))


def test_long_lines_count_as_the_screen_shows_them() -> None:
    """A line that is wider than the screen takes several of its lines."""
    document = _piped("info", SAMPLE, "--json")
    lines = document.count("\n")
    for columns, wanted in ((2000, document), (10, _marked(document))):
        terminal = Terminal.run(
            *ASI, "info", SAMPLE, "--json", rows=lines + 1, columns=columns, environment={"ASI_PAGER": MARKS}
        )
        assert (terminal.finish(), terminal.shown) == (0, wanted)


@pytest.mark.parametrize(
    ("before", "environment", "marked"),
    [
        ((), {"PAGER": MARKS}, True),
        ((), {"ASI_PAGER": "", "PAGER": MARKS}, False),
        ((), {"ASI_PAGER": "cat", "PAGER": MARKS}, False),
        ((), {"ASI_PAGER": "no-such-pager -x", "PAGER": MARKS}, False),
        ((), {"ASI_PAGER": "'", "PAGER": MARKS}, False),
        ((), {"PAGER": MARKS, "TERM": "dumb"}, False),
        (("--no-pager",), {"PAGER": MARKS}, False),
    ],
)
def test_which_pager(before: Sequence[str], environment: dict[str, str], *, marked: bool) -> None:
    """ASI_PAGER goes before PAGER; an empty one, one that is not there and `--no-pager` are none."""
    text = _piped("info", SAMPLE, "--json")
    terminal = Terminal.run(*ASI, *before, "info", SAMPLE, "--json", environment=environment)
    assert (terminal.finish(), terminal.shown) == (0, _marked(text) if marked else text)


@pytest.mark.parametrize(("environment", "options"), [({}, "FRX"), ({"LESS": "-S"}, "-S")])
def test_options_of_less(environment: dict[str, str], options: str) -> None:
    """The pager gets less' options as git gives them, unless the user has some."""
    pager = {"ASI_PAGER": "sh -c 'cat >/dev/null; echo \"$LESS\"'"}
    terminal = Terminal.run(*ASI, "info", SAMPLE, environment={**pager, **environment})
    assert (terminal.finish(), terminal.shown) == (0, f"{options}\n")


def test_default_pager(tmp_path: Path) -> None:
    """Without a variable the pager is less."""
    less = tmp_path / "less"
    less.write_text("#!/bin/sh\nsed 's/^/less: /'\n", encoding="utf-8")
    less.chmod(0o755)
    path = f"{tmp_path}:{Path(shutil.which('sed') or '').parent}:/usr/bin:/bin"
    terminal = Terminal.run(*ASI, "info", SAMPLE, "--json", environment={"PATH": path})
    assert (terminal.finish(), terminal.shown.startswith("less: {\n")) == (0, True)


def test_pager_that_is_left_early() -> None:
    """Who leaves the pager has seen enough: no message, and the command's own exit status."""
    for pager in ("true", "head -1"):
        terminal = Terminal.run(
            *ASI, "attack", "--vulnerability", "l1tf", "--mitigation", "none", environment={"ASI_PAGER": pager}
        )
        assert terminal.finish() == 10
        assert "asi: " not in terminal.shown.replace("asi: attack", "")


def test_interrupt_is_the_pagers() -> None:
    """Ctrl-C while the pager runs is the pager's: the command waits for it, and ends as it would have ended."""
    script = "trap 'echo caught; exit 0' INT; cat >/dev/null; echo ready; while :; do sleep 1; done"
    terminal = Terminal.run(*ASI, "info", SAMPLE, environment={"ASI_PAGER": f"sh -c {shlex.quote(script)}"})
    terminal.until("ready")
    terminal.type("\x03")
    assert terminal.finish() == 0
    assert terminal.shown.endswith("caught\n")
    assert "asi: interrupted" not in terminal.shown


def test_colours() -> None:
    """A terminal gets styles, the same text without them where NO_COLOR is set."""
    shown = {}
    for name, environment in (("plain", {"NO_COLOR": "1"}), ("styled", {})):
        terminal = Terminal.run(*ASI, "info", SAMPLE, rows=500, environment=environment)
        terminal.finish()
        shown[name] = terminal.shown
    assert "\x1b[" not in shown["plain"]
    assert "\x1b[1m" in shown["styled"]
    assert shown["plain"] == _piped("info", SAMPLE)


@pytest.mark.parametrize(
    ("done", "total", "seconds", "text"),
    [
        (0, 0, 2.2, "asi: working, 2 s"),
        (12, 96, 5.0, "asi: working, 12 of 96 attacks, 5 s, about 35 s left"),
        (96, 96, 5.0, "asi: working, 96 of 96 attacks, 5 s"),
        (1234567, 0, 61.0, "asi: working, 1,234,567 attacks, 1 min 1 s"),
        (1, 1000, 10.0, "asi: working, 1 of 1,000 attacks, 10 s, about 2 h 46 min left"),
    ],
)
def test_progress(done: int, total: int, seconds: float, text: str) -> None:
    """The line says what is done and for how long, and how long it will take where the end is known."""
    line = Progress()
    if done:
        line.at(done, "attacks", total=total)
    assert line.text(seconds) == text


_WAITS = """
import sys, types, click
from asikit.cli import main
from asikit.cli._pager import put
from asikit.cli._progress import progress
module = types.ModuleType("asikit.cli.info")
def work():
    progress().at(3, "pages", total=4)
    sys.stdin.readline()
    put("done\\n")
module.command = click.command("info")(work)
sys.modules["asikit.cli.info"] = module
main(["info"])
"""


def test_command_that_takes_long_shows_a_line() -> None:
    """Whatever takes long says so at the foot of the terminal, and clears that before it prints."""
    terminal = Terminal.run(*ASI[:2], _WAITS)
    terminal.until(r"asi: info, 3 of 4 pages, \d+ s, about \d+ s left")
    terminal.type("\n")
    assert terminal.finish() == 0
    assert terminal.shown.endswith("\r\x1b[Kdone\n")


class _Heard(Progress):
    """Keeps what a command says of how far it has come."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[tuple[int, str, int]] = []

    def at(self, done: int, unit: str, *, total: int = 0) -> None:
        """Keep it."""
        self.said.append((done, unit, total))


def test_attack_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each attack counts, and the last is the last of all."""
    heard = _Heard()
    monkeypatch.setattr("asikit.cli.attack.progress", lambda: heard)
    wanted = cells(["none"], cpu=None, vulnerability="l1tf", vector=None)
    assert len(attack._attack(wanted)) == len(wanted)
    assert heard.said == [(number + 1, "attacks", len(wanted)) for number in range(len(wanted))]


@pytest.mark.parametrize(
    "words", [["replay"], ["cost", "--cpu", "zen2-7452"], ["trace"], ["export", "--format", "csv"]]
)
def test_reading_says_how_far_it_is(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The events that were read count, and all of them are read."""
    heard = _Heard()
    monkeypatch.setattr("asikit.cli._opening.progress", lambda: heard)
    with pytest.raises(SystemExit, match="0"):
        main([words[0], SAMPLE, *words[1:]])
    assert capsys.readouterr().out
    events = Trace.open(SAMPLE).rows("events")
    assert heard.said[-1] == (events, "events", events)


def test_what_begins_anew_has_a_new_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left is told from the present pass, not from those before it."""
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    line = Progress()
    line.at(90, "events", total=100)
    now = 10.0
    line.at(10, "events", total=100)
    assert line.text(12.0) == "asi: working, 10 of 100 events, 12 s, about 18 s left"


def test_verify_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The states that were visited count; how many there are nobody knows before."""
    heard = _Heard()
    monkeypatch.setattr("asikit.cli.verify.progress", lambda: heard)
    world = world_for("blanket", threads=1, nesting=0, classes=None, capabilities=Capability.SAMPLE)
    verification = verify._verify_one(world, None, "explore", None)
    assert heard.said[-1] == (verification.states, "states", 0)
    assert [done for done, _, _ in heard.said] == sorted(done for done, _, _ in heard.said)
