"""Names of tasks, processes, CPUs and phases, and times: which rows of a trace they mean."""

from __future__ import annotations

import re
from fnmatch import translate
from typing import TYPE_CHECKING, Final

import numpy as np

from asikit.errors import nearest
from asikit.replay.errors import SelectionError
from asikit.trace import rows_at, total_instructions

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt
    import polars as pl

    from asikit.replay.selection import Selection
    from asikit.trace import Trace

    Flags = npt.NDArray[np.bool_]

__all__ = ["NO_PHASE", "between_rows", "chosen_cpus", "chosen_phases", "chosen_tasks"]

NO_PHASE: Final = "none"
"""What lies in no phase, unless a phase is called so."""
_COMM_BYTES: Final = 15
"""Bytes of a task's name that Linux keeps: TASK_COMM_LEN with its end is 16."""
_SHOWN: Final = 6
"""Names listed where none is near to a misspelt one."""
_UNITS: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}


def chosen_tasks(tasks: pl.DataFrame, selection: Selection) -> Flags:
    """Tell which rows of tasks are selected.

    :raises SelectionError: A name or number is no task's.
    """
    chosen = np.ones(tasks.height, np.bool_)
    if selection.tasks:
        names = tasks["comm"].to_list()
        chosen &= np.isin(tasks["comm"], list(_matching("--task", "task", _short(selection.tasks), names)))
    if selection.pids:
        chosen &= _of_processes(tasks, selection.pids)
    return chosen


def _short(names: Iterable[str]) -> list[str]:
    return [
        name if any(char in name for char in "*?[") else name.encode()[:_COMM_BYTES].decode(errors="replace")
        for name in names
    ]


def _of_processes(tasks: pl.DataFrame, pids: Iterable[int]) -> Flags:
    # A thread's number is no process' but its first one's, so there is one meaning only.
    chosen = np.zeros(tasks.height, np.bool_)
    for pid in pids:
        own = ((tasks["pid"] == pid) | (tasks["tgid"] == pid)).to_numpy()
        if not own.any():
            near = sorted(set(tasks["tgid"].to_list()), key=lambda known: (abs(known - pid), known))[:_SHOWN]
            raise SelectionError(f"--pid {pid}: no such process in the recording; there are {_listed(sorted(near))}")
        chosen |= own
    return chosen


def chosen_phases(phases: pl.DataFrame, names: Sequence[str]) -> set[str]:
    """Give the names of the phases that are meant.

    :raises SelectionError: A name is no phase's.
    """
    known = set(phases["name"].to_list())
    none = {NO_PHASE} - known
    patterns = [name for name in names if name not in none]
    if patterns and not known:
        raise SelectionError(
            f"--phase {patterns[0]}: the recording has no phases; docs/mark.md says how a workload marks them"
        )
    return _matching("--phase", "phase", patterns, known) | (none & set(names))


def chosen_cpus(cpus: Sequence[int], known: int) -> None:
    """Check the numbers of CPUs.

    :param known: How many the machine has.
    :raises SelectionError: The recording does not have one.
    """
    for cpu in cpus:
        if not 0 <= cpu < known:
            there = "only CPU 0" if known == 1 else f"CPUs 0 to {known - 1}"
            raise SelectionError(f"no CPU {cpu} in the recording: it has {there}")


def between_rows(trace: Trace, between: str) -> tuple[int, int]:
    """Give the first row of the events that is meant, and the one after the last.

    :raises SelectionError: It is not ``A:B``, or ends before it begins.
    """
    ends = between.split(":")
    if len(ends) != 2:  # noqa: PLR2004
        raise _not_a_time(between)
    total = total_instructions(trace) if "%" in between else 0
    begin, end = (_instructions(text.strip(), total, between) if text.strip() else None for text in ends)
    if begin is not None and end is not None and end < begin:
        raise SelectionError(f"--between {between}: it ends before it begins")
    first, last = rows_at(trace, [begin or 0, end or 0])
    # All of them is to the end, the last event included.
    whole = end is None or ("%" in ends[1] and end >= total)
    return first, trace.rows("events") if whole else last


def _instructions(text: str, total: int, between: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([kMG%]?)", text)
    if found is None:
        raise _not_a_time(between)
    if found[2] == "%":
        if float(found[1]) > 100:  # noqa: PLR2004
            raise SelectionError(f"--between {between}: more than 100%")
        return round(total * float(found[1]) / 100)
    return round(float(found[1]) * _UNITS[found[2]])


def _not_a_time(between: str) -> SelectionError:
    return SelectionError(
        f"--between {between}: write A:B, each as instructions (5000000, 5M) or as a share of the recording (10%)"
    )


def _matching(option: str, what: str, patterns: Iterable[str], known: Iterable[str]) -> set[str]:
    names = sorted(set(known))
    chosen: set[str] = set()
    for pattern in patterns:
        # A name that is there as it stands is meant, also if it would be a glob.
        found = {pattern} if pattern in names else {name for name in names if re.match(translate(pattern), name)}
        if not found:
            hint = nearest(pattern, names) or f"; there are {_listed(names)}"
            raise SelectionError(f"{option} {pattern}: no such {what} in the recording{hint}")
        chosen |= found
    return chosen


def _listed(names: Sequence[object]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(map(str, names[:_SHOWN])) + more
