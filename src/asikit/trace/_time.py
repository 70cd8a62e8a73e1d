"""A recording's time: the instructions that all its CPUs have retired, in the order of its events.

With one CPU it is that CPU's clock. With several it is the sum of their clocks, which never runs backwards along the
events, whichever CPU each is of; so a stretch of time is a stretch of events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from asikit.trace._schema import CPUS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from asikit.trace._reader import Trace

    Numbers = npt.NDArray[np.int64]

__all__ = ["Clocks", "instructions_before", "rows_at", "total_instructions"]


class Clocks:
    """The clocks of a recording's CPUs, along its events."""

    def __init__(self) -> None:
        self._last = np.zeros(CPUS, np.int64)
        self._total = 0

    def times(self, cpu: npt.NDArray[np.uint8], clock: npt.NDArray[np.uint64]) -> Numbers:
        """Give the time at each of the next events."""
        passed = np.zeros(clock.size, np.int64)
        for number in np.unique(cpu):
            own = np.flatnonzero(cpu == number)
            read = clock[own].astype(np.int64)
            passed[own] = np.diff(read, prepend=self._last[number])
            self._last[number] = read[-1]
        times = self._total + np.cumsum(passed)
        self._total = int(times[-1]) if times.size else self._total
        return times


def instructions_before(trace: Trace, rows: Sequence[int]) -> list[int]:
    """Give the time at the last event before each of these rows of the events, 0 if there is none.

    :raises TraceError: A part of the trace is damaged.
    """
    wanted = np.asarray(rows, np.int64)
    found = np.zeros(wanted.size, np.int64)
    first = total = 0
    for times in _times(trace):
        here = (wanted > first) & (wanted <= first + times.size)
        found[here] = times[wanted[here] - first - 1]
        first += times.size
        total = int(times[-1]) if times.size else total
        found[wanted > first] = total
    return [int(time) for time in found]


def rows_at(trace: Trace, times: Sequence[int]) -> list[int]:
    """Give for each time the first row of the events that is not earlier; the number of events if all are.

    :raises TraceError: A part of the trace is damaged.
    """
    wanted = np.asarray(times, np.int64)
    found = np.zeros(wanted.size, np.int64)
    for part in _times(trace):
        found += np.searchsorted(part, wanted)
    return [int(row) for row in found]


def total_instructions(trace: Trace) -> int:
    """Give the time at the last event.

    :raises TraceError: A part of the trace is damaged.
    """
    return instructions_before(trace, [trace.rows("events")])[0]


def _times(trace: Trace) -> Iterator[Numbers]:
    """Give the time at each event, part by part."""
    clocks = Clocks()
    for part in trace.events(columns=["cpu", "clock"]):
        yield clocks.times(part["cpu"].to_numpy(), part["clock"].to_numpy())
