"""The loop that counts in which part of a recording instructions, switches of address spaces and round trips fall.

What a trace says of the recording as a whole, :mod:`asikit.cost._walk` counts; the sums over the parts are its counts.
Imported only where a part is priced.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any

import numpy as np

from asikit.compiled import jit
from asikit.trace import EventKind

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]
    Numbers = npt.NDArray[np.int64]

__all__ = ["Share", "Split"]


class Share(IntEnum):
    """What is counted of a part; as :class:`asikit.cost._walk.Count`, but for the first."""

    INSTRUCTIONS = 0  # of a task, also those in user mode
    KERNEL_INSTRUCTIONS = 1
    UNRESTRICTED_INSTRUCTIONS = 2
    SWITCHES_OUT = 3
    SWITCHES_TO_USERSPACE = 4
    SWITCHES_TO_KVM = 5
    ROUND_TRIPS = 6


_SPACE, _CLOCK, _ENTERED, _LEFT, _TRIP, _EXIT, _GROUP = range(7)  # what is remembered of a CPU
_PER_CPU = 7
_UNKNOWN_GROUP = -1
_KERNEL, _UNRESTRICTED_TIME = int(Share.KERNEL_INSTRUCTIONS), int(Share.UNRESTRICTED_INSTRUCTIONS)
_INSTRUCTIONS, _OUT, _TO = int(Share.INSTRUCTIONS), int(Share.SWITCHES_OUT), int(Share.SWITCHES_TO_USERSPACE)
_TRIPS = int(Share.ROUND_TRIPS)
_UNRESTRICTED, _USERSPACE, _KVM = 0, 1, 2
_VM_EXIT, _RETURN_USER, _VM_ENTRY = int(EventKind.VM_EXIT), int(EventKind.RETURN_USER), int(EventKind.VM_ENTRY)


class Split:
    """Feed it a trace's events in order, with the group of each and those that exit.

    Time in the kernel counts once its round trip is complete. Until then it is counted, and kept apart as well, so that
    it can be taken back.
    """

    def __init__(self, cpus: int, groups: int) -> None:
        self._state = np.zeros((cpus, _PER_CPU), np.int64)
        self._state[:, _ENTERED] = 1  # a recording begins in the kernel
        self._state[:, [_TRIP, _EXIT]] = 1
        self._state[:, _GROUP] = _UNKNOWN_GROUP
        self._counts = np.zeros((groups, len(Share)), np.int64)
        # For each CPU and group: in which trip, or after which exit, and how long.
        self._in_kernel = np.zeros((cpus, groups, 2), np.int64)
        self._unrestricted = np.zeros((cpus, groups, 2), np.int64)

    def feed(self, cpu: Array, kind: Array, clock: Array, group: Array, exits: Numbers) -> None:
        """Run events.

        :param exits: Rows that left the restricted address space, ascending.
        """
        _split(cpu, kind, clock, group, exits, self._state, self._counts, self._in_kernel, self._unrestricted)

    def counts(self) -> Numbers:
        """Return (groups, :class:`Share`) counts; what the recording cuts off is left out."""
        counts = self._counts.copy()
        for state, in_kernel, unrestricted in zip(self._state, self._in_kernel, self._unrestricted, strict=True):
            if state[_ENTERED]:
                counts[:, _KERNEL] -= np.where(in_kernel[:, 0] == state[_TRIP], in_kernel[:, 1], 0)
            if state[_LEFT]:
                counts[:, _UNRESTRICTED_TIME] -= np.where(unrestricted[:, 0] == state[_EXIT], unrestricted[:, 1], 0)
        return counts


@jit
def _add(kept: Array, number: int, time: int) -> None:
    """Keep time apart: of this round trip, or since this exit."""
    if kept[0] != number:
        kept[0] = number
        kept[1] = 0
    kept[1] += time


@jit
def _take_back(kept: Array, number: int, counts: Array, what: int) -> None:
    for group in range(kept.shape[0]):
        if kept[group, 0] == number:
            counts[group, what] -= kept[group, 1]


@jit
def _split(  # noqa: C901, PLR0917  (one loop, compiled)
    cpu: Array,
    kind: Array,
    clock: Array,
    groups: Array,
    exits: Array,
    state: Array,
    counts: Array,
    in_kernel: Array,
    unrestricted: Array,
) -> None:
    next_exit = 0
    for i in range(kind.size):
        k = kind[i]
        c = cpu[i]
        g = groups[i]
        s = state[c]
        now = np.int64(clock[i])
        passed = now - s[_CLOCK]
        s[_CLOCK] = now
        counts[g, _INSTRUCTIONS] += passed
        if s[_ENTERED]:
            counts[g, _KERNEL] += passed
            _add(in_kernel[c, g], s[_TRIP], passed)
        if s[_LEFT]:
            counts[g, _UNRESTRICTED_TIME] += passed
            _add(unrestricted[c, g], s[_EXIT], passed)
        if next_exit < exits.size and exits[next_exit] == i:
            next_exit += 1
            counts[g, _OUT] += 1
            s[_SPACE] = _UNRESTRICTED
            if s[_LEFT]:
                _take_back(unrestricted[c], s[_EXIT], counts, _UNRESTRICTED_TIME)
            s[_LEFT] = 1
            s[_EXIT] += 1
        if k <= _VM_EXIT:
            if s[_ENTERED]:
                _take_back(in_kernel[c], s[_TRIP], counts, _KERNEL)
            s[_ENTERED] = 1
            s[_TRIP] += 1
            s[_GROUP] = g
        elif k == _RETURN_USER or k == _VM_ENTRY:  # noqa: PLR1714, SIM109 - compiles to comparisons
            if s[_ENTERED]:
                counts[g if s[_GROUP] == _UNKNOWN_GROUP else s[_GROUP], _TRIPS] += 1
            s[_ENTERED] = 0
            s[_LEFT] = 0
            target = _USERSPACE if k == _RETURN_USER else _KVM
            if s[_SPACE] != target:
                counts[g, _TO + target - 1] += 1
                s[_SPACE] = target
