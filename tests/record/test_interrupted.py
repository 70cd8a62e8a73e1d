"""Recordings that are interrupted, killed, or out of space, at any moment: one line, and nothing left.

The moments are chosen at random, but each time the same ones, as parts of the time that a recording takes here.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from asikit.trace import Trace
from tests.record.running import Command

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc, pytest.mark.slow]

_MOMENTS = 10
_WORKLOAD = ("--", "sh", "-c", "echo begun; sleep 1")
_CATCHES = 1 << (signal.SIGTERM - 1)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Give the command."""
    return Command(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> float:
    """Give the seconds from when a recording hears signals to its end."""
    process = _start(Command(tmp_path_factory.mktemp("whole")), "whole.asitrace")
    begun = time.monotonic()
    process.communicate()
    assert process.returncode == 0
    return time.monotonic() - begun


def _start(command: Command, trace: str) -> subprocess.Popen[bytes]:
    """Start a recording, and wait until it hears signals: before that it is the interpreter who is interrupted."""
    process = command.start("-o", trace, *_WORKLOAD)
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii", errors="replace")
        caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
        if int(caught.split()[1], 16) & _CATCHES:
            break
        time.sleep(0.001)
    return process


def _interrupted(command: Command, whole: float, number: signal.Signals) -> Iterator[tuple[Path, int, str]]:
    """Send a signal to one recording after another, each at its moment; give trace, exit code and diagnostics."""
    moments = random.Random(number)
    for place in range(_MOMENTS):
        # Spread over the whole, more of them early: a late one takes long.
        moment = ((place + moments.random()) / _MOMENTS) ** 2 * whole
        trace = command.folder / f"{place}.asitrace"
        process = _start(command, trace.name)
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.send_signal(number)
        ended = command.end(process)
        yield trace, ended.code, ended.err


def _qemu_has_ended(command: Command) -> bool:
    """Tell whether no process is left; one that has been killed may take a moment."""
    for _ in range(1000):
        if not [left for left in command.left() if "qemu-system" in left]:
            return True
        time.sleep(0.01)
    return False


def test_interrupted(command: Command, whole: float) -> None:
    """Ctrl-C at any moment ends in one line and leaves nothing; if it comes too late, the trace is there, whole."""
    interrupted = 0
    late: list[str] = []
    for trace, code, err in _interrupted(command, whole, signal.SIGINT):
        if trace.exists():
            assert code in {0, 130}
            assert [line for line in err.splitlines() if not line.startswith("asi: ")] == []
            Trace.open(trace).verify()
            late.append(str(trace))
        else:
            assert (code, err) == (130, "asi: interrupted\n")
            interrupted += 1
        assert sorted(command.left()) == late
    assert interrupted >= _MOMENTS // 2


def test_killed(command: Command, whole: float) -> None:
    """What recordings leave that are killed at any moment, the next one clears away, whatever its trace is called."""
    late: list[str] = []
    most = 0
    for trace, code, err in _interrupted(command, whole, signal.SIGKILL):
        assert code in {0, -signal.SIGKILL}
        assert "Traceback" not in err
        assert _qemu_has_ended(command)
        if trace.exists():
            Trace.open(trace).verify()
            late.append(str(trace))
        most = max(most, len(command.left()) - len(late))
    assert most > 0  # there was something to clear away
    ended = command.run("-o", "next.asitrace", "--", "true")
    assert (ended.code, len(ended.err.splitlines())) == (0, 1)
    assert sorted(command.left()) == [*late, str(command.folder / "next.asitrace")]


_FULL = """
import subprocess, sys, pathlib
from asikit.cli import main
size, folder, *words = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
code = 0
try:
    main(["record", *words])
except SystemExit as end:
    code = end.code
left = [str(path) for path in pathlib.Path(folder).iterdir()]
print("left:", *left)
sys.exit(code)
"""


@pytest.mark.needs_root
@pytest.mark.parametrize(
    ("full", "size", "line"),
    [
        (
            "temporary",
            "256k",
            (
                "cannot write the guest's files into {folder}: No space left on device; "
                "set TMPDIR to a folder with more room"
            ),
        ),
        (
            "temporary",
            "8m",
            (
                "the guest ended before the workload did; QEMU: there is no space left in {folder}; "
                "set TMPDIR to a folder with more room"
            ),
        ),
        ("here", "16k", "{folder}/t.asitrace: cannot be written: No space left on device"),
    ],
)
def test_disk_full(command: Command, full: str, size: str, line: str) -> None:
    """A disk without room for the guest, for what it tells, or for the trace: one line, and nothing left there."""
    folder = command.folder.parent / full
    words = [sys.executable, "-c", _FULL, size, str(folder), "-o", f"{command.folder}/t.asitrace", "--", "true"]
    done = subprocess.run(
        ["unshare", "--mount", *words],  # noqa: S607
        env=command.environment,
        cwd=os.sep,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (1, f"asi: error: {line.format(folder=folder)}\n")
    assert done.stdout == "left:\n"
    assert command.left() == []
