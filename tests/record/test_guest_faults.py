"""What can go wrong in a real guest: one clear line, the right exit code, nothing left."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from asikit.trace import Trace
from tests.record.running import Command

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.needs_qemu, pytest.mark.needs_busybox, pytest.mark.needs_cc]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Give the command."""
    return Command(tmp_path)


def test_panic(command: Command) -> None:
    """A kernel that panics ends the recording with its own words."""
    ended = command.run("--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert (ended.code, ended.err) == (1, "asi: error: the guest's kernel panicked: sysrq triggered crash\n")
    assert command.left() == []


def test_powered_off(command: Command) -> None:
    """A workload that powers the guest off has not ended."""
    ended = command.run("--", "poweroff", "-f")
    assert ended.code == 1
    line = "asi: error: the guest ended before the workload did; it was powered off or reset from inside"
    assert ended.last_line == line
    assert command.left() == []


def test_out_of_memory(command: Command) -> None:
    """A workload killed for want of memory is a failed workload: its trace is kept, and the cause said."""
    ended = command.run("--memory", "128M", "--", "tail", "/dev/zero")
    assert ended.code == 128 + signal.SIGKILL
    assert ended.err.splitlines()[-2:] == [
        "asi: the guest ran out of memory and killed 'tail'; give it more (--memory)",
        "asi: the workload was killed by signal 9; the trace holds what it did until then",
    ]
    assert command.left() == [str(command.folder / "tail.asitrace")]


def test_argument_of_any_bytes(command: Command) -> None:
    """An argument that is no UTF-8 comes as it is, and is visible in the trace."""
    process = command.start("-o", "t.asitrace", "--", "echo", os.fsdecode(b"\xff caf\xc3\xa9"))
    out, _ = process.communicate()
    assert (process.returncode, out) == (0, b"\xff caf\xc3\xa9\n")
    assert Trace.open(command.folder / "t.asitrace").recorder.workload.command == ["echo", "\\xff caf\u00e9"]


@pytest.mark.slow
def test_closed_output(command: Command) -> None:
    """Where the shell has closed stdout the recording is made all the same."""
    process = command.start(
        "-o", "t.asitrace", "--", "echo", "nobody reads this", before=["sh", "-c", 'exec "$@" >&-', "sh"]
    )
    ended = command.end(process)
    assert (ended.code, ended.out) == (0, "")
    assert ended.err.startswith("asi: recorded ")
    Trace.open(command.folder / "t.asitrace").verify()


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_signals_during_the_workload(command: Command, number: int) -> None:
    """Ctrl-C and SIGTERM are heard while the workload does nothing, too."""
    process = command.start("--", "sh", "-c", "echo begun; sleep 1000000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    process.send_signal(number)
    ended = command.end(process)
    assert (ended.code, ended.err) == (128 + number, {2: "asi: interrupted\n", 15: "asi: terminated\n"}[number])
    assert command.left() == []


def test_qemu_killed_during_the_workload(command: Command) -> None:
    """A QEMU that is killed, by the system for example, is said to have been."""
    process = command.start("--", "sh", "-c", "echo begun; sleep 1000000")
    assert process.stdout is not None
    assert process.stdout.readline() == b"begun\n"
    os.kill(command.qemu(), signal.SIGKILL)
    ended = command.end(process)
    assert ended.code == 1
    assert ended.err == "asi: error: the guest ended before the workload did; QEMU: it was killed by signal 9\n"
    assert command.left() == []
