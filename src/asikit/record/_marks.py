"""The workload's own marks: which phases of a recording they make."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import polars as pl

from asikit.trace import SIDE_TABLES

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np
    import numpy.typing as npt

    Records = npt.NDArray[np.void]
    Numbers = npt.NDArray[np.int64]

__all__ = ["Mark", "MarkReader", "phases_of"]

_NO_TASK: Final = 0xFFFF_FFFF
"""``NONE`` of plugin/recorder.h: the recorder does not know which task runs."""


@dataclass(frozen=True, slots=True)
class Mark:
    """The beginning or the end of a phase.

    :ivar event: How many events came before it.
    :ivar task: Row of tasks: who marked it; None if unknown.
    """

    name: str
    event: int
    ends: bool
    task: int | None


class MarkReader:
    """Puts marks together: the recorder sends each in two records, half a name in each."""

    def __init__(self) -> None:
        """Begin with none."""
        self.marks: list[Mark] = []
        self._half = b""

    def take(self, records: Records, events: Numbers) -> None:
        """Take records of marks.

        :param events: How many events came before each.
        """
        for record, event in zip(records, events.tolist(), strict=True):
            half = record["clock"].tobytes() + record["addr"].tobytes()
            if record["aux"] == 0:
                self._half = half
                continue
            text = (self._half + half).split(b"\0")[0].decode("utf-8", "replace")
            task = int(record["x"])
            self.marks.append(Mark(text, event, bool(record["arg"]), None if task == _NO_TASK else task))


def phases_of(marks: Iterable[Mark], events: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """Give the table of phases, and by name how many ends had no beginning.

    An end is that of the phase of its name that began last. What nobody ends lasts to the end of the recording.

    :param marks: In the order of the recording.
    :param events: The recording's.
    """
    rows: list[tuple[str, int, int, int | None, bool]] = []
    open_rows: dict[str, list[int]] = {}
    strays: Counter[str] = Counter()
    for mark in marks:
        open_now = open_rows.setdefault(mark.name, [])
        if not mark.ends:
            open_now.append(len(rows))
            rows.append((mark.name, mark.event, events, mark.task, False))
        elif open_now:
            row = open_now.pop()
            name, begin, _, task, _ = rows[row]
            rows[row] = (name, begin, mark.event, task, True)
        else:
            strays[mark.name] += 1
    return pl.DataFrame(rows, SIDE_TABLES["phases"], orient="row"), dict(strays)
