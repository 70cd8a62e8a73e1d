"""What the workload ``truth.c`` was told by its kernel, and the same piece of the recording."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.trace import EventKind, Trace

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

    Mask = npt.NDArray[np.bool_]

GETSID, GETPGID = 124, 121
"""The marks around each question."""


@dataclass(frozen=True)
class Question:
    """One question: its name, the answer's lines, and the positions of its marks in the events."""

    name: str
    lines: tuple[str, ...]
    begin: int
    end: int


class Events:
    """All events of a small trace, with the task that each one happened to."""

    def __init__(self, trace: Trace) -> None:
        """Read them."""
        self.trace = trace
        self.table = {
            name: trace.table(name) for name in ("places", "pages", "allocations", "stacks", "symbols", "tasks")
        }
        frame = pl.concat(list(trace.events()))
        switched = pl.when(pl.col("kind") == EventKind.TASK_SWITCH).then("arg")
        frame = frame.with_columns(
            task=switched.forward_fill().over("cpu"), before=switched.forward_fill().shift().over("cpu")
        )
        self.cpu, self.kind, self.arg, self.stack = (frame[name].to_numpy() for name in ("cpu", "kind", "arg", "stack"))
        self.task = frame["task"].fill_null(2**32 - 1).to_numpy()
        self.before = frame["before"].fill_null(2**32 - 1).to_numpy()
        self.vectors = {name: int(number) for number, name in trace.meta["vectors"].items()}
        self.syscalls = {name: int(number) for number, name in trace.meta["syscalls"].items()}

    def rows_of(self, pid: int) -> Mask:
        """Tell which events happened to a task."""
        rows = np.flatnonzero((self.table["tasks"]["pid"] == pid).to_numpy())
        return np.isin(self.task, rows)

    def is_kind(self, *kinds: EventKind, arg: int | None = None) -> Mask:
        """Tell which events are of the kinds, and have the argument."""
        mask = np.isin(self.kind, kinds)
        return mask if arg is None else mask & (self.arg == arg)

    def stack_names(self, stack: int) -> list[str]:
        """Name the functions of a stack, the leaf first."""
        parents, symbols = self.table["stacks"]["parent"], self.table["stacks"]["symbol"]
        names = []
        while stack:
            names.append(str(self.table["symbols"]["name"][symbols[stack]]))
            stack = parents[stack]
        return names


class Asked:
    """The answers, in order."""

    def __init__(self, text: str, events: Events) -> None:
        """Find the answers in the workload's output, and the marks in the recording."""
        self.events = events
        pid = re.match(r"pid (\d+)", text)
        assert pid is not None
        self.mine = events.rows_of(int(pid[1]))
        pieces = [piece.splitlines() for piece in text.split("@ ")[1:]]
        self.own_frames = next([int(line, 16) for line in lines[1:]] for lines in pieces if lines[0] == "own")
        marked = [lines for lines in pieces if lines[0] not in {"own", "end"}]
        marks = [
            np.flatnonzero(self.mine & events.is_kind(EventKind.ENTRY_SYSCALL, arg=number))
            for number in (GETSID, GETPGID)
        ]
        assert [len(mark) for mark in marks] == [len(marked)] * 2
        self.questions = [
            Question(lines[0], tuple(lines[1:]), int(begin), int(end))
            for lines, begin, end in zip(marked, *marks, strict=True)
        ]

    def named(self, name: str) -> list[Question]:
        """Give the questions of a name."""
        return [question for question in self.questions if question.name == name]

    def between(self, name: str, counted: Mask) -> tuple[int, int]:
        """Count what happened between a question's first and second asking: at least, and at most.

        The answer was given at some moment between the question's marks.
        """
        first, second = self.named(name)
        return int(np.count_nonzero(counted[first.end : second.begin])), int(
            np.count_nonzero(counted[first.begin : second.end])
        )

    def of_older_tasks(self) -> Mask:
        """Tell which events happened to tasks that began before the workload: the boot's kernel threads, and init."""
        pids = self.events.table["tasks"]["pid"].to_numpy()
        own = pids[self.events.task[self.mine]].min()
        return np.isin(self.events.task, np.flatnonzero(pids < own))

    def growth(self, name: str, pattern: str) -> int:
        """Give by how much the sum of what a pattern finds has grown from the first answer to the second."""
        first, second = (
            sum(int(found[1]) for line in question.lines if (found := re.match(pattern, line)))
            for question in self.named(name)
        )
        return second - first


def ask(trace: Path, text: str) -> Asked:
    """Read a recording of the workload and its output."""
    return Asked(text, Events(Trace.open(trace)))
