"""`asi info`: the text, the JSON, the refusals."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.builders import TraceBuilder, small_trace

if TYPE_CHECKING:
    from pathlib import Path

_ASI = [sys.executable, "-c", "from asikit.cli import main; main()", "info"]


def _info(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        [*_ASI, *words], capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    assert done.stderr == ""
    return done.stdout


def test_text(tmp_path: Path) -> None:
    """The text says what was recorded, how much, and what the words mean."""
    trace = small_trace().write(tmp_path / "small.asitrace", rows_per_part=10)
    size = f"{trace.size / 1024:.1f} KiB"
    assert (
        _info(trace.path, COLUMNS="100")
        == f"""\
small.asitrace
  source        machine
  workload      cat 'a file', exit status 0
  kernel        6.1.0-test
  command line  console=ttyS0 nokaslr
  machine       2 CPUs, 512.0 MiB, max, none
  clock         CPU 0: 140 instructions, 14 events
  clock         CPU 1: 130 instructions, 13 events
  lost          nothing
  size          {size} on disk, 27 events in 3 parts
  content hash  {trace.content_hash}
  checked       every hash (--verify also checks ids and clocks)

Round trips: 5
  A round trip is one stay in the kernel: from an entry to the return to user mode or to a guest.

Phases: 2
  What the workload marked: how often, and the events and instructions of all CPUs in it.
  phase                             times        events      instructions
  steady                                1             9                90
  inner                                 1            16               160
  inner: 1 not ended, so to the end of the recording

Events: 27
  system calls from user mode                      1
  exceptions from user mode                        1
  interrupts from user mode                        1
  NMIs from user mode                              1
  VM exits (guest to kernel)                       1
  returns to user mode                             3
  VM entries (kernel to guest)                     2
  nested exceptions (in the kernel)                1
  nested interrupts                                1
  nested NMIs                                      1
  returns from nested entries                      3
  first reads of a page                            3
  first writes of a page                           2
  first instruction fetches of a page              1
  task switches                                    1
  address space (mm) switches                      1
  page allocations                                 1
  page frees                                       1
  TLB flushes                                      1
    of all kernel addresses                        1

Touches: 6
  A touch is the first read, write or instruction fetch of a page in a round trip.
  region          kind of page           reads        writes       fetches
  direct_map      page_table                 1             0             0
  direct_map      shmem                      1             0             0
  direct_map      slab                       0             1             0
  fixmap          mmio                       1             0             0
  modules         vmalloc                    0             0             1
  user            anon                       0             1             0
"""
    )


def test_bare_trace(tmp_path: Path) -> None:
    """A trace that says nothing about its origin is shown as such; losses are shown when there are any."""
    builder = TraceBuilder(meta={"source": "test", "lost": {"events": 1200, "stacks": 0}})
    text = _info(builder.write(tmp_path / "t").path)
    lines = dict(line.split(maxsplit=1) for line in text.splitlines() if line.startswith(("  workload", "  lost")))
    assert lines == {"workload": "unknown", "lost": "1,200 events"}


def test_json(tmp_path: Path) -> None:
    """The JSON has the envelope, and what the text has."""
    trace = small_trace().write(tmp_path / "small.asitrace")
    text = _info(trace.path, "--json", "--verify")
    document = json.loads(text)
    keys = list(document)
    assert keys == ["schema", *sorted(keys[1:])]
    assert document["schema"] == "asikit.info/1"
    assert document["content_hash"] == trace.content_hash
    assert document["verified"] is True
    assert document["round_trips"] == 5
    assert document["events"]["return_user"] == 3
    assert document["tlb_flushes"] == {"user": 0, "kernel": 1, "user_range": 0, "kernel_range": 0}
    assert document["rows"]["events"] == 27
    assert document["cpus"] == [{"clock": 140, "cpu": 0, "events": 14}, {"clock": 130, "cpu": 1, "events": 13}]
    assert document["touches"][2] == {"fetch": 0, "kind": "slab", "read": 0, "region": "direct_map", "write": 1}
    assert document["kernel"] == trace.meta["kernel"]


def test_same_text_every_time(tmp_path: Path) -> None:
    """One trace gives the same text and JSON, byte for byte, every time."""
    path = small_trace().write(tmp_path / "t").path
    assert _info(path, "--json") == _info(path, "--json", PYTHONHASHSEED="7")
    assert _info(path) == _info(path, PYTHONHASHSEED="7")


def test_no_colour_in_a_pipe(tmp_path: Path) -> None:
    """A pipe gets no escape codes, whatever the terminal's name."""
    assert "\x1b" not in _info(small_trace().write(tmp_path / "t").path, TERM="xterm-256color")


def test_foreign_text_is_escaped(tmp_path: Path) -> None:
    """A trace from somebody else cannot move the reader's cursor."""
    builder = TraceBuilder(meta={"source": "a\x1b[2Jb\nc"})
    assert "  source        a\\x1b[2Jb\\nc\n" in _info(builder.write(tmp_path / "t").path)


@pytest.mark.parametrize("words", [(), ("--json",), ("--verify",)])
def test_refusal(tmp_path: Path, words: tuple[str, ...]) -> None:
    """A folder that is no trace is one line on stderr, nothing on stdout, exit code 1."""
    done = subprocess.run([*_ASI, tmp_path, *words], capture_output=True, text=True, check=False)
    line = f"asi: error: {tmp_path}/meta.json: missing: the folder is not a trace\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_verify_finds_what_opening_does_not(tmp_path: Path) -> None:
    """--verify refuses a trace whose clock runs backwards, which is otherwise shown."""
    builder = TraceBuilder(step=-1)
    builder._clock[0] = 9
    path = builder.return_user().return_user().write(tmp_path / "t").path
    assert "events: 2" in _info(path).lower()
    done = subprocess.run([*_ASI, path, "--verify"], capture_output=True, text=True, check=False)
    line = f"asi: error: {path}/events/00000.parquet: row 1: the clock of CPU 0 runs backwards, from 8 to 7\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", line)


def test_what_the_kernel_lacks(tmp_path: Path) -> None:
    """What a recorded kernel did not have is said, with what is lost by it; the forms found are in the JSON."""
    builder = small_trace()
    forms, missing = {"slab page": "page type PGTY_slab"}, {"vmap_nodes": "stacks are not told apart"}
    builder.meta["kernel"] = {"release": "7.2", "forms": forms, "missing": missing}
    trace = builder.write(tmp_path / "small.asitrace")
    assert "  kernel lacks  vmap_nodes: stacks are not told apart\n" in _info(trace.path)
    assert json.loads(_info("--json", trace.path))["kernel"] == builder.meta["kernel"]
