"""Names in a policy that match nothing in a recording: each is said, with the nearest that it has."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from asikit.cli import main
from asikit.replay import ReplayResult, load_policy, replay, shipped_policies
from tests.builders import META, TraceBuilder
from tests.replay.running import GFP_KERNEL, GFP_USER, HARDWALL, written

if TYPE_CHECKING:
    from pathlib import Path

    from asikit.trace import Trace

SCENARIO = """
def scenario(machine):
    @machine.process
    def writer(user):
        user.store(user.mmap(4096), b"x")
"""
FILES = ("kmem_cache_alloc", "alloc_empty_file.part.0")


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    """An open file, a read of it, and a touch of a device."""
    b = TraceBuilder(meta={**META, "gfp_flags": {"__GFP_HARDWALL": HARDWALL, "__GFP_ZERO": 0x100, "__GFP_NONE": 0}})
    b.entry_syscall(257).touch_write(kind="slab", cache="filp", gfp=GFP_KERNEL, allocated_by=FILES, stack=("do_open",))
    copy = ("copy_user_generic", "_copy_to_iter.constprop.0", "filemap_read")
    b.touch_read(kind="page_cache", cache="ext4", gfp=GFP_USER, stack=copy, label="data")
    b.touch_read(kind="anon", label="from before")
    b.touch_read(region="vmalloc", kind=None, label="registers").return_user()
    return b.write(tmp_path / "t.asitrace")


def warnings(trace: Trace, folder: Path, text: str) -> list[str]:
    """Replay under a policy file, and give what is said of it, without the file's name."""
    result = replay(trace, [load_policy(written(text, folder))])[0]
    assert isinstance(result, ReplayResult)
    return [line.removeprefix(f"{folder}/mine.toml: ") for line in result.warnings]


@pytest.mark.parametrize(
    ("key", "name", "nearest"),
    [
        ("memory.sensitive.caches", "flip", '; the nearest is "filp"'),
        ("memory.nonsensitive.caches", "flip*", '; the nearest is "filp"'),
        ("memory.sensitive.caches", "zzz", ""),
        ("memory.sensitive.caches", "ext4", ""),  # a file system is no slab cache
        ("memory.sensitive.caches", "fil", '; the nearest is "filp"'),
        ("memory.sensitive.caches", "?", ""),
        ("memory.sensitive.allocated_by", "alloc_emtpy_file", '; the nearest is "alloc_empty_file"'),
        ("memory.sensitive.allocated_by", "do_open", ""),
        ("ephmap.functions", "_copy_to_itr", '; the nearest is "_copy_to_iter"'),
        ("memory.sensitive.kinds", "hugetlb", ""),
        ("memory.nonsensitive.unrecorded_kinds", "slab", ""),
        ("memory.sensitive.gfp", "__GFP_ZERO", ""),
        ("memory.sensitive.gfp", "__GFP_NONE", ""),
        ("ephmap.kinds", "shmem", ""),
    ],
)
def test_said(trace: Trace, tmp_path: Path, key: str, name: str, nearest: str) -> None:
    """A name that its list finds nowhere is said with the nearest that is there, of closed lists without."""
    line = f'{key}: "{name}" matches nothing in this recording{nearest}'
    assert warnings(trace, tmp_path, f'{key} = ["{name}"]\n') == [line]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("memory.sensitive.caches", "filp"),
        ("memory.nonsensitive.caches", "f?l*"),
        ("memory.sensitive.allocated_by", "alloc_empty_file"),
        ("ephmap.functions", "_copy_to_iter"),
        ("memory.sensitive.kinds", "page_cache"),
        ("memory.sensitive.kinds", "mmio"),
        ("memory.sensitive.unrecorded_kinds", "anon"),
        ("memory.sensitive.gfp", "__GFP_HARDWALL"),
        ("ephmap.kinds", "anon"),
    ],
)
def test_not_said(trace: Trace, tmp_path: Path, key: str, name: str) -> None:
    """A name that matches something is no matter."""
    assert warnings(trace, tmp_path, f'{key} = ["{name}"]\n') == []


def test_shipped(trace: Trace) -> None:
    """A policy that comes with asikit is about all workloads: nothing is said of it."""
    results = replay(trace, [load_policy(name) for name in shipped_policies()])
    assert [result.warnings for result in results] == [()] * len(results)


def test_inherited(trace: Trace, tmp_path: Path) -> None:
    """Of a file that inherits, what it gives itself is looked for, and what another file of the user's gives."""
    written('inherits = "allowlist-2022"\n[memory.sensitive]\ncaches = ["flip"]\n', tmp_path, "base.toml")
    text = 'inherits = "base.toml"\n[memory.nonsensitive]\ncaches = ["...", "task_strct", "mm_struct"]\n'
    assert warnings(trace, tmp_path, text) == [
        'memory.sensitive.caches: "flip" matches nothing in this recording; the nearest is "filp"',
        'memory.nonsensitive.caches: "mm_struct" matches nothing in this recording',
        'memory.nonsensitive.caches: "task_strct" matches nothing in this recording',
    ]


def test_without_exits(trace: Trace, tmp_path: Path) -> None:
    """Where no memory is kept from anybody, no name matters."""
    text = 'inherits = "{}"\n[memory.sensitive]\ncaches = ["flip"]\n'
    assert [warnings(trace, tmp_path, text.format(name)) for name in ("blanket", "off")] == [[], []]


def _asi(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[str, str]:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    assert end.value.code == 0
    return capsys.readouterr()


@pytest.mark.parametrize("words", [["replay"], ["cost", "--cpu", "skylake-6600u,zen-1200"]])
def test_commands(words: list[str], trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line is on stderr once, whatever is printed on stdout, and among the JSON's warnings."""
    path = written('inherits = "denylist-2025"\n[memory.sensitive]\ncaches = ["flip"]\n', tmp_path)
    line = f'{path}: memory.sensitive.caches: "flip" matches nothing in this recording; the nearest is "filp"'
    for form in ([], ["--json"]):
        out, err = _asi(capsys, words[0], trace.path, *words[1:], "--policy", path, *form)
        assert err == f"asi: warning: {line}\n"
    assert json.loads(out)["warnings"] == [line]
    out, err = _asi(capsys, words[0], trace.path, *words[1:], "--json")
    assert (json.loads(out)["warnings"], err) == ([], "")


def test_of_a_machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What no allocation of the model machine has is said by ``asi run``; functions it does not look at."""
    scenario = tmp_path / "scenario.py"
    scenario.write_text(SCENARIO)
    path = written(
        'memory.sensitive.caches = ["flip", "filp"]\nmemory.sensitive.kinds = ["hugetlb", "anon"]\n'
        'ephmap.functions = ["none"]\n',
        tmp_path,
    )
    with pytest.raises(SystemExit) as end:
        main(["run", str(scenario), "--policy", str(path)])
    assert end.value.code == 0
    assert capsys.readouterr().err.splitlines() == [
        f'asi: warning: {path}: memory.sensitive.kinds: "hugetlb" matches nothing in this run',
        f'asi: warning: {path}: memory.sensitive.caches: "flip" matches nothing in this run; the nearest is "filp"',
    ]
