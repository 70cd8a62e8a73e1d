"""Exits by stack, as programs that are not ours read them, against what a replay counts."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
from collections import Counter
from typing import TYPE_CHECKING

import gprof2dot
import polars as pl
import pytest

from asikit.export.stacks import folded, perf_script, pprof, samples, speedscope
from asikit.replay import History
from asikit.trace import Stacks
from tests.builders import TraceBuilder
from tests.replay.running import policy

if TYPE_CHECKING:
    from pathlib import Path


def test_each_exit_is_in_one_sample(history: History) -> None:
    """The samples are the exits, and a function is in as many as the exits' stacks have it."""
    found = samples(history, history.exits)
    assert sum(exits for _, exits in found) == history.exits.height
    stacks = Stacks(history.trace)
    wanted: Counter[str] = Counter()
    for stack, exits in history.exits.group_by("stack").len().iter_rows():
        wanted.update(dict.fromkeys(set(stacks.names(stack)), 0))
        for name in set(stacks.names(stack)):
            wanted[name] += exits
    ours: Counter[str] = Counter()
    for frames, exits in found:
        for name in set(frames[1:-1]):
            ours[name] += exits
    assert ours == wanted


def test_a_switch_is_the_leaving_tasks(tmp_path: Path) -> None:
    """An exit at a context switch belongs to the task that leaves."""
    b = TraceBuilder().task_switch("cat", pid=7).return_user().entry_syscall(0).task_switch("dog", pid=8).return_user()
    history = History.of(b.write(tmp_path / "t.asitrace"), policy())
    assert [frames for frames, _ in samples(history, history.exits)] == [("cat", "[context switch]")]


def _inclusive(history: History) -> dict[str, float]:
    """Give the share of the exits whose stack has a frame."""
    counts: Counter[str] = Counter()
    for frames, exits in samples(history, history.exits):
        for name in set(frames):
            counts[name] += exits
    return {name: exits / history.exits.height for name, exits in counts.items()}


def test_folded(history: History) -> None:
    """gprof2dot finds each function with its share of the exits."""
    content = b"".join(folded(history, history.exits)).decode()
    profile = gprof2dot.CollapseParser(io.StringIO(content)).parse()
    read = {function.name: function[gprof2dot.TOTAL_TIME_RATIO] for function in profile.functions.values()}
    assert read == pytest.approx(_inclusive(history))


def test_folded_is_a_line_a_stack(history: History) -> None:
    """Nothing in a name breaks a line or a frame."""
    for line in b"".join(folded(history, history.exits)).decode().splitlines():
        assert re.fullmatch(r"[^;]+(;[^;]+)+ \d+", line)


def test_perf_script(history: History) -> None:
    """gprof2dot reads an event for each exit, and each function with its share."""
    content = b"".join(perf_script(history, history.exits)).decode()
    assert content.count(" asi:exit: ") == history.exits.height
    profile = gprof2dot.PerfParser(io.StringIO(content)).parse()
    read = {function.name: function[gprof2dot.TOTAL_TIME_RATIO] for function in profile.functions.values()}
    wanted = _inclusive(history)
    assert read
    assert {name: read[name] for name in read} == pytest.approx({name: wanted[name] for name in read})


@pytest.mark.needs_go
@pytest.mark.slow
def test_pprof(history: History, tmp_path: Path) -> None:
    """Go's pprof shows each function with the exits whose stack has it."""
    file = tmp_path / "p.pb.gz"
    file.write_bytes(b"".join(pprof(history, history.exits)))
    words = [
        "go",
        "tool",
        "pprof",
        "-top",
        "-cum",
        "-nodecount=100000",
        "-nodefraction=0",
        "-edgefraction=0",
        str(file),
    ]
    shown = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert f"of {history.exits.height} total" in shown
    lines = re.findall(r"^ *\d+ +[\d.]+% +[\d.]+% +(\d+) +[\d.]+% +(.+)$", shown, re.MULTILINE)
    read = {name: int(cumulative) for cumulative, name in lines}
    assert read == {name: round(share * history.exits.height) for name, share in _inclusive(history).items()}


def test_pprof_is_reproducible(history: History) -> None:
    """The same exits are the same bytes, compressed."""
    one, other = (b"".join(pprof(history, history.exits)) for _ in range(2))
    assert one == other
    assert b"asm_exc_page_fault" in gzip.decompress(one)


def test_speedscope(history: History) -> None:
    """The document is what speedscope's schema asks for: frames by number, a weight a sample, weights up to the end."""
    document = json.loads(b"".join(speedscope(history, history.exits)))
    assert document["$schema"] == "https://www.speedscope.app/file-format-schema.json"
    (profile,) = document["profiles"]
    names = [frame["name"] for frame in document["shared"]["frames"]]
    assert len(set(names)) == len(names)
    assert (profile["type"], profile["startValue"]) == ("sampled", 0)
    assert sum(profile["weights"]) == profile["endValue"] == history.exits.height
    read = [tuple(names[number] for number in sample) for sample in profile["samples"]]
    assert list(zip(read, profile["weights"], strict=True)) == samples(history, history.exits)


def test_nothing_to_show(history: History) -> None:
    """No exits are no samples, in each form."""
    none = history.exits.filter(pl.lit(value=False))
    assert b"".join(folded(history, none)) == b""
    assert b"".join(perf_script(history, none)) == b""
    assert json.loads(b"".join(speedscope(history, none)))["profiles"][0]["samples"] == []
    assert gzip.decompress(b"".join(pprof(history, none)))
