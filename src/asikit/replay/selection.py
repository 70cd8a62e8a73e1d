"""What of a recording is counted, and into which parts the counts are divided."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["By", "Selection"]


class By(StrEnum):
    """What parts the counts are divided into; each event is in exactly one."""

    TASK = "task"
    """The name of the task that runs; at a context switch that of the one that leaves."""
    PID = "pid"
    """Its process."""
    CPU = "cpu"
    PHASE = "phase"
    """The phases that are open, all together."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What is counted: what every field that is given allows. The whole recording is replayed all the same.

    :ivar tasks: Names of tasks, or globs. Linux keeps 15 bytes of a name: a longer one is meant by its beginning.
    :ivar pids: Processes, with all their threads, or single threads.
    :ivar cpus: The recorded machine's CPUs.
    :ivar phases: Names of phases, or globs; ``none`` is what lies in none, unless a phase is called so.
    :ivar between: ``A:B``: from A on and before B, each as instructions that all CPUs have retired (``5M``), or as a
        share of all of them (``10%``); empty is the recording's beginning or end.
    :ivar where: What an expression allows (:mod:`asikit.replay.where`): of an event's task, process, CPU and phases,
        and of the entry with which its CPU's round trip began.
    """

    tasks: tuple[str, ...] = ()
    pids: tuple[int, ...] = ()
    cpus: tuple[int, ...] = ()
    phases: tuple[str, ...] = ()
    between: str | None = None
    where: str | None = None

    @property
    def text(self) -> str:
        """What was selected, in a line; empty for everything."""
        named = (("task", self.tasks), ("pid", self.pids), ("CPU", self.cpus), ("phase", self.phases))
        parts = [f"{what} {' or '.join(map(str, values))}" for what, values in named if values]
        if self.between is not None:
            parts.append(f"between {self.between}")
        if self.where is not None:
            parts.append(f"where {self.where}")
        return ", ".join(parts)
