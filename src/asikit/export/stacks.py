"""Exits by the kernel stack on which they happened, in the forms that profilers read: a sample is an exit.

A stack's outermost frame is the task, as in collapsed stacks; its innermost is what was touched, in brackets.
"""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from asikit.export._protobuf import message, number, packed, text
from asikit.trace import Stacks

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.replay import History
    from asikit.trace import StackFrame

__all__ = ["Sample", "folded", "perf_script", "pprof", "samples", "speedscope"]

_TOUCH = ("access", "kind", "cache")
# profile.proto of github.com/google/pprof: Profile, ValueType, Sample, Location, Line, Function
_SAMPLE_TYPE, _SAMPLE, _LOCATION, _FUNCTION, _STRINGS, _DEFAULT_TYPE = 1, 2, 4, 5, 6, 14
_TYPE, _UNIT = 1, 2
_LOCATIONS, _VALUES = 1, 2
_ID, _ADDRESS, _LINE = 1, 3, 4
_LINE_FUNCTION = 1
_FUNCTION_NAME, _SYSTEM_NAME = 2, 3


class Sample(NamedTuple):
    """Exits with one stack.

    :ivar frames: Outermost first: the task, the kernel's functions, what was touched or the reason.
    """

    frames: tuple[str, ...]
    exits: int


def samples(history: History, exits: pl.DataFrame) -> list[Sample]:
    """Return exits by their stacks, in the order of the alphabet."""
    stacks = Stacks(history.trace)
    names: dict[int, tuple[str, ...]] = {}
    counted: dict[tuple[str, ...], int] = {}
    grouped = _with_tasks(history, exits).group_by("comm", "stack", "reason", *_TOUCH).len()
    for comm, stack, reason, access, kind, cache, times in grouped.iter_rows():
        if stack not in names:
            names[stack] = tuple(reversed(stacks.names(stack)))
        frames = (comm or "?", *names[stack], f"[{_touched(reason, access, kind, cache)}]")
        counted[frames] = counted.get(frames, 0) + times
    return [Sample(frames, times) for frames, times in sorted(counted.items())]


def _touched(reason: str, access: str, kind: str, cache: str) -> str:
    if not access:
        return reason.replace("_", " ")
    memory = f"{kind} {cache}" if cache and cache != kind else kind
    return f"{access} {memory.replace('_', ' ')}"


def _with_tasks(history: History, exits: pl.DataFrame) -> pl.DataFrame:
    """Add whose each exit is: the task that runs; at a context switch the one that leaves."""
    marks = history.marks.select("row", task=pl.col("task").shift(1).over("cpu"))
    tasks = history.tables.tasks.select("comm", "pid", "tgid").with_row_index("task")
    found = exits.join(marks, on="row", how="left", maintain_order="left")
    return found.join(tasks, on="task", how="left", maintain_order="left")


def folded(history: History, exits: pl.DataFrame) -> Iterator[bytes]:
    """Give collapsed stacks, as flamegraph.pl and inferno read them: frames joined by semicolons, a blank, a count."""
    for frames, times in samples(history, exits):
        yield f"{';'.join(frame.replace(';', ':').replace(chr(10), ' ') for frame in frames)} {times}\n".encode()


def speedscope(history: History, exits: pl.DataFrame) -> Iterator[bytes]:
    """Give a file for speedscope (https://www.speedscope.app/file-format-schema.json): a sampled profile."""
    found = samples(history, exits)
    numbers = {
        name: number for number, name in enumerate(dict.fromkeys(name for frames, _ in found for name in frames))
    }
    total = sum(times for _, times in found)
    profile: dict[str, Any] = {
        "type": "sampled",
        "name": f"exits under {history.policy.name}",
        "unit": "none",
        "startValue": 0,
        "endValue": total,
        "samples": [[numbers[name] for name in frames] for frames, _ in found],
        "weights": [times for _, times in found],
    }
    document = {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "asikit",
        "name": profile["name"],
        "activeProfileIndex": 0,
        "shared": {"frames": [{"name": name} for name in numbers]},
        "profiles": [profile],
    }
    yield json.dumps(document, ensure_ascii=True).encode()


def pprof(history: History, exits: pl.DataFrame) -> Iterator[bytes]:
    """Give a profile for pprof: compressed, with one value a sample."""
    found = samples(history, exits)
    strings = {"": 0}

    def string(word: str) -> int:
        return strings.setdefault(word, len(strings))

    kind = number(_TYPE, string("exits")) + number(_UNIT, string("count"))
    content = [message(_SAMPLE_TYPE, kind)]
    functions: dict[str, int] = {}
    for frames, times in found:
        locations = [functions.setdefault(name, len(functions) + 1) for name in reversed(frames)]  # the leaf first
        content.append(message(_SAMPLE, packed(_LOCATIONS, locations) + packed(_VALUES, [times])))
    for name, at in functions.items():
        line = message(_LINE, number(_LINE_FUNCTION, at))
        content.append(message(_LOCATION, number(_ID, at) + line))
        named = number(_FUNCTION_NAME, string(name)) + number(_SYSTEM_NAME, string(name))
        content.append(message(_FUNCTION, number(_ID, at) + named))
    content += [text(_STRINGS, word) for word in strings]
    content.append(number(_DEFAULT_TYPE, strings["exits"]))
    yield gzip.compress(b"".join(content), mtime=0)


def perf_script(history: History, exits: pl.DataFrame) -> Iterator[bytes]:
    """Give what `perf script` prints: an event for each exit, with its stack, the innermost frame first.

    A time is in seconds at 10⁹ instructions a second.
    """
    stacks = Stacks(history.trace)
    shown: dict[int, str] = {}
    columns = ("time", "cpu", "stack", "reason", *_TOUCH, "comm", "pid", "tgid")
    for time, cpu, stack, reason, access, kind, cache, comm, pid, tgid in (
        _with_tasks(history, exits).select(columns).iter_rows()
    ):
        if stack not in shown:
            shown[stack] = "".join(map(_frame, stacks.frames(stack)))
        what = f"reason={reason}" + (f" {access}={kind}{f':{cache}' if cache else ''}" if access else "")
        who = f"{(comm or '?')[:16]:>16} {tgid or 0:>6}/{pid or 0:<6} [{cpu:03}]"
        yield f"{who} {time // 10**9:5}.{time % 10**9:09}: 1 asi:exit: {what}\n{shown[stack]}\n".encode(
            errors="backslashreplace"
        )


def _frame(frame: StackFrame) -> str:
    where = f"[{frame.module}]" if frame.module else "[kernel.kallsyms]"
    return f"\t{frame.address:16x} {frame.name} ({where})\n"
