"""Phases that a workload marks are in its recording, event by event, and nowhere else is anything of them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pytest

from asikit.record import Recording
from asikit.record._build import mark_header, programs
from asikit.record._marks import Mark, phases_of
from asikit.trace import EventKind, Trace
from tests.record.conftest import Run, run

if TYPE_CHECKING:
    from tests.once import Once

HERE = Path(__file__).parent
WRITE, PREAD, CLONE, WAIT, OPENAT, MMAP = 1, 17, 56, 61, 257, 9
WRITES, READS, CHILD_READS, PAGES = 50, 200, 20, 64
"""As in ``phases.c``."""


def compiler() -> str:
    """Give a C compiler."""
    return str(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile ``phases.c`` with the header that users get."""
    folder = tmp_path_factory.mktemp("phases")
    (folder / "asi_mark.h").write_text(mark_header())
    target = folder / "phases"
    options = ["-O2", "-static", "-Wall", "-Wextra", "-Werror", "-pedantic", "-std=gnu99", f"-I{folder}"]
    subprocess.run([compiler(), *options, "-o", str(target), str(HERE / "phases.c")], check=True)
    return target


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, True), id="1cpu-bare", marks=pytest.mark.slow),
        pytest.param((2, True), id="2cpus-bare", marks=pytest.mark.slow),
        pytest.param((1, False), id="1cpu"),
    ],
)
def recorded(request: pytest.FixtureRequest, program: Path, once: Once) -> Run:
    """Record it, in a phase that a shell marks, with the command that each guest has."""
    script = f"asi-mark begin script; {program}; asi-mark end script; asi-mark begin ''; asi-mark until x; true"
    cpus, bare = request.param
    include = (program,) if bare else ()
    recording = Recording(("sh", "-c", script), cpus=cpus, bare=bare, include=include)
    return once(f"marks-{cpus}-{bare}", lambda folder: run(recording, folder / "t.asitrace"))


def phases(trace: Trace) -> dict[str, pl.DataFrame]:
    """Give the events of each phase, and whose they are: all tasks are in a phase, a shell that begins to wait too."""
    switch = pl.when(pl.col("kind") == int(EventKind.TASK_SWITCH)).then(pl.col("arg"))
    comms = trace.table("tasks")["comm"]
    events = pl.concat(trace.events()).with_columns(task=switch.forward_fill().over("cpu"))
    events = events.with_columns(comm=pl.col("task").replace_strict(range(len(comms)), comms, default=None))
    rows = trace.table("phases").iter_rows(named=True)
    return {row["name"]: events[row["begin"] : row["end"]] for row in rows}


def syscalls(events: pl.DataFrame, number: int) -> int:
    """Count the program's system calls."""
    events = events.filter(pl.col("comm") == "phases")
    return events.filter(pl.col("kind") == int(EventKind.ENTRY_SYSCALL), pl.col("arg") == number).height


@pytest.mark.needs_qemu
@pytest.mark.needs_busybox
@pytest.mark.needs_cc
class TestRecorded:
    """A recording with marks by a program and by a shell."""

    def test_phases(self, recorded: Run) -> None:
        """Each phase has exactly the system calls that the program makes in it."""
        trace = Trace.open(recorded.trace)
        trace.verify()
        found = phases(trace)
        assert list(found) == ["script", "load", "steady", "child", "a name of more than thirty-one "]
        assert [syscalls(found["load"], number) for number in (WRITE, OPENAT, PREAD)] == [WRITES, 1, 0]
        assert [syscalls(found["steady"], number) for number in (WRITE, CLONE, WAIT)] == [0, 1, 1]
        assert syscalls(found["steady"], PREAD) == READS + CHILD_READS
        assert [syscalls(found["child"], number) for number in (PREAD, CLONE, WAIT)] == [CHILD_READS, 1, 1]
        assert syscalls(found["script"], PREAD) == READS + CHILD_READS
        last = found["a name of more than thirty-one "]
        assert syscalls(last, MMAP) == 1
        faults = last.filter(pl.col("kind") == int(EventKind.ENTRY_EXCEPTION), pl.col("arg") == 14)
        assert faults.height >= PAGES

    def test_who_and_how_it_ended(self, recorded: Run) -> None:
        """The table says which task began a phase, and which phases nobody ended; strays are counted."""
        trace = Trace.open(recorded.trace)
        tasks = trace.table("tasks")["comm"]
        rows = {row["name"]: row for row in trace.table("phases").iter_rows(named=True)}
        assert {name: tasks[row["task"]] for name, row in rows.items()} == {
            "script": "asi-mark",
            **dict.fromkeys(list(rows)[1:], "phases"),
        }
        assert [name for name, row in rows.items() if not row["ended"]] == ["a name of more than thirty-one "]
        assert rows["a name of more than thirty-one "]["end"] == trace.rows("events")
        assert trace.recorder.marks.ends_without_begin == {"never begun": 1}

    def test_command_refuses(self, recorded: Run) -> None:
        """What is no mark is said in the guest, and is none."""
        assert recorded.err.splitlines() == [
            "asi-mark: a phase's name has 1 to 31 bytes",
            "asi-mark: usage: asi-mark begin|end NAME",
        ]


@pytest.mark.needs_cc
def test_unrecorded(program: Path) -> None:
    """Without a recorder a mark does nothing."""
    assert subprocess.run([program], check=False).returncode == 0
    for words, code in ((("begin", "x"), 0), (("end", "x"), 0), (("begin", "x" * 31), 0), (("begin", "x" * 32), 2)):
        assert subprocess.run([programs().mark, *words], check=False, stderr=subprocess.DEVNULL).returncode == code


@pytest.mark.needs_cc
def test_one_instruction(tmp_path: Path) -> None:
    """A mark is one load with the displacement that the recorder looks for, whatever the compiler makes around it."""
    source = tmp_path / "a.c"
    source.write_text('#include "asi_mark.h"\nvoid f(const char *name) { asi_begin(name); asi_end("x"); }\n')
    (tmp_path / "asi_mark.h").write_text(mark_header())
    for option in ("-O0", "-O2", "-Os", "-m32", "-fPIC"):
        command = [compiler(), option, "-ffreestanding", "-c", "-o", str(tmp_path / "a.o"), str(source)]
        subprocess.run(command, check=True)
        code = (tmp_path / "a.o").read_bytes()
        assert code.count(b"\x8a\x80\x04\x49\x53\x41") == 1
        assert code.count(b"\x8a\x80\x05\x49\x53\x41") == 1


def test_matching() -> None:
    """An end ends the phase of its name that began last; an open one lasts to the end."""
    marks = [
        Mark("a", 1, ends=False, task=7),
        Mark("a", 2, ends=False, task=8),
        Mark("b", 3, ends=True, task=7),
        Mark("a", 4, ends=True, task=7),
        Mark("b", 5, ends=False, task=None),
        Mark("b", 5, ends=True, task=None),
        Mark("b", 6, ends=True, task=None),
    ]
    table, strays = phases_of(marks, 9)
    assert table.rows() == [("a", 1, 9, 7, False), ("a", 2, 4, 8, True), ("b", 5, 5, None, True)]
    assert strays == {"b": 2}
