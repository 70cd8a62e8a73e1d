"""Which part of a recording each event counts in.

The task that runs, the CPU and the open phases decide, and an expression about these and the entry with which the CPU's
round trip began. An event of a context switch is the leaving task's, as the stack on which it happens is: TASK_SWITCH,
and the MM_SWITCH right after it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from asikit.replay._chosen import AT_ENTRY, Chosen
from asikit.replay._events import NO_ENTRY
from asikit.replay._resolving import NO_PHASE, between_rows, chosen_cpus, chosen_phases, chosen_tasks
from asikit.replay.selection import By, Selection
from asikit.replay.where import Where
from asikit.trace import CPUS

if TYPE_CHECKING:
    import numpy.typing as npt
    import polars as pl

    from asikit.trace import Trace

    Numbers = npt.NDArray[np.int64]
    Groups = npt.NDArray[np.uint32]

__all__ = ["Group", "Grouping", "Labeller"]

_UNKNOWN = "?"


@dataclass(frozen=True, slots=True)
class Group:
    """A part of a recording.

    :ivar name: A task's name, a process' name and number, a CPU's number, or the names of open phases.
    :ivar pids: The processes in it, if it is one of tasks.
    """

    name: str
    pids: tuple[int, ...] = ()


@dataclass(frozen=True)
class Grouping:
    """The groups of a trace's events: 0 is what is not selected, the others are ``groups`` in their order, from 1 on.

    An event's group is the product of three keys. What its task, CPU or stretch is does not allow is 0; the key of what
    the counts are divided by is the group's number, and the others are 1. What an expression does not allow is 0, too.

    :ivar task_key: By row of tasks; the last is for what runs before a CPU's first TASK_SWITCH.
    :ivar cpu_key: By CPU.
    :ivar bounds: The first rows of events of each stretch in which the same phases are open, ascending from 0.
    :ivar segment_key: By stretch.
    :ivar chosen: The expression.
    """

    selection: Selection
    by: By | None
    groups: tuple[Group, ...]
    task_key: Numbers
    cpu_key: Numbers
    bounds: Numbers
    segment_key: Numbers
    chosen: Chosen | None = None

    @property
    def size(self) -> int:
        """The number of groups, with that of what is not selected."""
        return 1 + len(self.groups)

    @property
    def selected(self) -> range:
        """The numbers of the groups that are selected."""
        return range(1, self.size)

    @classmethod
    def of(cls, trace: Trace, selection: Selection, by: By | None) -> Grouping:
        """Find what a selection means in a trace.

        :raises SelectionError: The trace does not have what is selected.
        :raises TraceError: A part of the trace is damaged.
        """
        tasks = trace.table("tasks")
        known = bool(selection.tasks or selection.pids)
        task_key = np.append(chosen_tasks(tasks, selection), not known).astype(np.int64)
        cpus = trace.recorder.machine.cpus or CPUS
        chosen_cpus(selection.cpus, cpus)
        cpu_key = np.isin(np.arange(CPUS), selection.cpus or np.arange(CPUS)).astype(np.int64)
        bounds, phases, names, segment_key = _segments(trace, selection)
        where = None if selection.where is None else Where.parse(selection.where, AT_ENTRY)
        chosen = None if where is None else Chosen.of(where, trace, phases, CPUS)
        groups: tuple[Group, ...] = (Group(""),)
        match by:
            case By.TASK | By.PID:
                groups = _number(task_key, _task_groups(tasks, by))
            case By.CPU:
                groups = _number(cpu_key, [Group(str(cpu)) for cpu in range(CPUS)])
            case By.PHASE:
                groups = _number(segment_key, [Group(name) for name in names])
            case None:
                pass
        return cls(selection, by, groups, task_key, cpu_key, bounds, segment_key, chosen)

    @cached_property
    def _bounds(self) -> list[int]:
        bounds: list[int] = self.bounds.tolist()
        return bounds

    def group(self, task: int | None, cpu: int, row: int, entry: int) -> int:
        """Return the group of one event: what :class:`Labeller` gives, for the reference.

        :param task: The task that it counts for; None before the CPU's first TASK_SWITCH.
        :param entry: The slot of the CPU's last entry.
        """
        segment = bisect_right(self._bounds, row) - 1
        known = -1 if task is None else task
        key = int(self.task_key[known] * self.cpu_key[cpu] * self.segment_key[segment])
        if self.chosen is None:
            return key
        ours = self.chosen
        return key * ours.true(int(ours.task[known] | ours.cpu[cpu] | ours.segment[segment] | ours.entry[entry]))


class Labeller:
    """Feed it a trace's events in order: it says which group each is in."""

    def __init__(self, grouping: Grouping) -> None:
        self._grouping = grouping
        self._tasks = grouping.task_key.size - 1
        self._open = (np.full(CPUS, self._tasks, np.int64), np.full(CPUS, -1, np.int64), np.full(CPUS, NO_ENTRY))
        self._rows = 0

    def label(self, cpu: npt.NDArray[np.uint8], kind: npt.NDArray[np.uint8], arg: npt.NDArray[np.uint32]) -> Groups:
        """Return the number of each event's group."""
        # numba takes a while to import.
        from asikit.replay._labels import Open, Whose, find_whose  # noqa: PLC0415

        ours = self._grouping
        whose = Whose(*(np.empty(kind.size, np.int32) for _ in Whose._fields))
        cpus, kinds, args = map(np.ascontiguousarray, (cpu, kind, arg))
        find_whose(self._rows, cpus, kinds, args, self._tasks, ours.bounds, Open(*self._open), whose)
        self._rows += kind.size
        groups = ours.task_key[whose.task] * ours.cpu_key[cpu] * ours.segment_key[whose.segment]
        if ours.chosen is not None:
            bits = ours.chosen
            groups *= bits.allows(
                bits.task[whose.task] | bits.cpu[cpu] | bits.segment[whose.segment] | bits.entry[whose.entry]
            )
        return groups.astype(np.uint32)


def _number(keys: Numbers, groups: list[Group]) -> tuple[Group, ...]:
    """Replace each key that is not 0 by its group's number, equal groups having one; return the groups in order."""
    numbers: dict[Group, int] = {}
    for row in np.flatnonzero(keys).tolist():
        keys[row] = numbers.setdefault(groups[row], len(numbers) + 1)
    return tuple(numbers)


def _task_groups(tasks: pl.DataFrame, by: By) -> list[Group]:
    """Return the group of each row of tasks, and of the unknown one."""
    rows = list(tasks.select("comm", "pid", "tgid").iter_rows())
    if by is By.PID:
        name = {tgid: comm for comm, pid, tgid in reversed(rows) if pid == tgid}
        return [Group(f"{name.get(tgid, comm)} {tgid}", (tgid,)) for comm, _, tgid in rows] + [Group(_UNKNOWN)]
    pids: dict[str, set[int]] = {}
    for comm, _, tgid in rows:
        pids.setdefault(comm, set()).add(tgid)
    return [Group(comm, tuple(sorted(pids[comm]))) for comm, _, _ in rows] + [Group(_UNKNOWN)]


def _segments(trace: Trace, selection: Selection) -> tuple[Numbers, list[tuple[str, ...]], list[str], Numbers]:
    """Return the first row of each stretch, its open phases, what these are called, and whether it is selected."""
    phases = trace.table("phases")
    stretches = list(phases.select("begin", "end").iter_rows())
    window = (0, trace.rows("events")) if selection.between is None else between_rows(trace, selection.between)
    wanted = chosen_phases(phases, selection.phases) if selection.phases else None
    taken = set(phases["name"].to_list())
    bounds = sorted({0, *(row for stretch in (*stretches, window) for row in stretch)})
    opening, closing = _at(bounds, phases, "begin"), _at(bounds, phases, "end")
    open_phases, names, keys = [], [], []
    open_now: dict[str, int] = {}
    for bound, begins, ends in zip(bounds, opening, closing, strict=True):
        for name, step in (*((name, 1) for name in begins), *((name, -1) for name in ends)):
            open_now[name] = open_now.get(name, 0) + step
        here = sorted(name for name, times in open_now.items() if times)
        open_phases.append(tuple(here))
        names.append(" + ".join(here) or (NO_PHASE if NO_PHASE not in taken else "no phase"))
        allowed = wanted is None or not wanted.isdisjoint(here or ({NO_PHASE} - taken))
        keys.append(allowed and window[0] <= bound < window[1])
    return np.array(bounds, np.int64), open_phases, names, np.array(keys, np.int64)


def _at(bounds: list[int], phases: pl.DataFrame, column: str) -> list[list[str]]:
    found: dict[int, list[str]] = {bound: [] for bound in bounds}
    for row, name in phases.select(column, "name").iter_rows():
        found[row].append(name)
    return [found[bound] for bound in bounds]
