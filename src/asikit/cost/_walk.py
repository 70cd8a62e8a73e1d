"""The loop over a trace's events that counts what is lost at each switch of address spaces, compiled.

Imported only when a trace is priced: importing numba takes a while.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from asikit.compiled import jit
from asikit.trace import EventKind

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["HISTOGRAM", "PER_CPU", "Count", "Pages", "Walk", "WalkState", "WalkedEvents", "walk_events"]

HISTOGRAM = 4096
"""Bins of pages touched between two flushes: the last is for all from there on. An L1D has fewer lines."""


class Count(IntEnum):
    """What is counted."""

    KERNEL_INSTRUCTIONS = 0
    UNRESTRICTED_INSTRUCTIONS = 1
    SWITCHES_OUT = 2  # to the unrestricted address space
    SWITCHES_TO_USERSPACE = 3
    SWITCHES_TO_KVM = 4
    MISSES_LARGE = 5  # translations missed, where the kernel maps with large pages those are one
    MISSES_SMALL = 6
    BEFORE_EXIT_LARGE = 7  # touched before an exit in its round trip: touched again after it, or not
    BEFORE_EXIT_SMALL = 8
    TOUCHED_LARGE = 9  # distinct in each round trip
    TOUCHED_SMALL = 10
    ROUND_TRIPS = 11


class WalkState(IntEnum):
    """What is remembered of a CPU."""

    SPACE = 0  # the kind of the loaded address space: unrestricted, userspace's, KVM's
    ENTERED = 1  # clock of the last entry, -1 outside the kernel
    LEFT = 2  # clock of the last exit, -1 if none since
    TRIP = 3  # number of the round trip
    TRIP_LARGE = 4  # translations touched in it
    TRIP_SMALL = 5
    FLUSH = 6  # number of the last flush
    FLUSH_PAGES = 7  # pages read or written since: instructions do not come from the L1D
    EPOCH = 8  # and two more: number of the last load of each space
    CLOCK = 11


PER_CPU = len(WalkState) + 2
_UNRESTRICTED, _USERSPACE, _KVM = 0, 1, 2
_SPACE, _ENTERED, _LEFT, _CLOCK = (
    int(WalkState.SPACE),
    int(WalkState.ENTERED),
    int(WalkState.LEFT),
    int(WalkState.CLOCK),
)
_TRIP, _TRIP_LARGE, _TRIP_SMALL = int(WalkState.TRIP), int(WalkState.TRIP_LARGE), int(WalkState.TRIP_SMALL)
_FLUSH, _FLUSH_PAGES, _EPOCH = int(WalkState.FLUSH), int(WalkState.FLUSH_PAGES), int(WalkState.EPOCH)
_KERNEL, _UNRESTRICTED_TIME = int(Count.KERNEL_INSTRUCTIONS), int(Count.UNRESTRICTED_INSTRUCTIONS)
_OUT, _TO = int(Count.SWITCHES_OUT), int(Count.SWITCHES_TO_USERSPACE)
_MISSES_LARGE, _MISSES_SMALL = int(Count.MISSES_LARGE), int(Count.MISSES_SMALL)
_BEFORE_LARGE, _BEFORE_SMALL = int(Count.BEFORE_EXIT_LARGE), int(Count.BEFORE_EXIT_SMALL)
_TOUCHED_LARGE, _TOUCHED_SMALL = int(Count.TOUCHED_LARGE), int(Count.TOUCHED_SMALL)
_TRIPS = int(Count.ROUND_TRIPS)
_VM_EXIT = int(EventKind.VM_EXIT)
_RETURN_USER, _VM_ENTRY = int(EventKind.RETURN_USER), int(EventKind.VM_ENTRY)
_TOUCH_READ, _TOUCH_FETCH = int(EventKind.TOUCH_READ), int(EventKind.TOUCH_FETCH)
_BINS = HISTOGRAM


class WalkedEvents(NamedTuple):
    """The events, as arrays of equal length, and the rows that left the restricted address space, ascending."""

    cpu: Array
    kind: Array
    arg: Array
    clock: Array
    exits: Array


class Pages(NamedTuple):
    """The number of the translation of each place: where the kernel maps large pages, and with pages of 4 KiB."""

    large: Array
    small: Array


class Walk(NamedTuple):
    """What the loop remembers, and what it counts.

    :ivar state: (CPUs, PER_CPU) int64: :class:`WalkState`.
    :ivar seen_large: (CPUs, 3, translations) int64: the load of the space in which it was last used.
    :ivar seen_small: With pages of 4 KiB.
    :ivar trip_large: (CPUs, translations) int64: the round trip in which it was last used.
    :ivar trip_small: With pages of 4 KiB.
    :ivar flush_small: (CPUs, translations) int64: the flush before which it was last used, with pages of 4 KiB.
    :ivar counts: :class:`Count`.
    :ivar histogram: Flushes by the pages read or written until the next.
    """

    state: Array
    seen_large: Array
    seen_small: Array
    trip_large: Array
    trip_small: Array
    flush_small: Array
    counts: Array
    histogram: Array


@jit
def walk_events(  # noqa: C901, PLR0912, PLR0915  (one loop, compiled; calls in it would cost)
    events: WalkedEvents, pages: Pages, walk: Walk, flush_always: int
) -> None:
    """Run events.

    :param flush_always: 1 if every return flushes, 0 if those that change the address space do.
    """
    cpu, kind, arg, clock, exits = events
    large, small = pages
    state, seen_large, seen_small, trip_large, trip_small, flush_small, counts, histogram = walk
    next_exit = 0
    for i in range(kind.size):
        k = kind[i]
        c = cpu[i]
        now = clock[i]
        s = state[c]
        s[_CLOCK] = now
        if next_exit < exits.size and exits[next_exit] == i:
            next_exit += 1
            counts[_OUT] += 1
            counts[_BEFORE_LARGE] += s[_TRIP_LARGE]
            counts[_BEFORE_SMALL] += s[_TRIP_SMALL]
            s[_SPACE] = _UNRESTRICTED
            s[_EPOCH] += 1
            s[_LEFT] = now
        if _TOUCH_READ <= k <= _TOUCH_FETCH:
            space = s[_SPACE]
            one, other = small[arg[i]], large[arg[i]]
            if seen_small[c, space, one] != s[_EPOCH + space]:
                seen_small[c, space, one] = s[_EPOCH + space]
                counts[_MISSES_SMALL] += 1
            if seen_large[c, space, other] != s[_EPOCH + space]:
                seen_large[c, space, other] = s[_EPOCH + space]
                counts[_MISSES_LARGE] += 1
            if trip_small[c, one] != s[_TRIP]:
                trip_small[c, one] = s[_TRIP]
                s[_TRIP_SMALL] += 1
            if trip_large[c, other] != s[_TRIP]:
                trip_large[c, other] = s[_TRIP]
                s[_TRIP_LARGE] += 1
            if k != _TOUCH_FETCH and flush_small[c, one] != s[_FLUSH]:
                flush_small[c, one] = s[_FLUSH]
                s[_FLUSH_PAGES] += 1
        elif k <= _VM_EXIT:
            s[_ENTERED] = now
            s[_TRIP] += 1
            s[_TRIP_LARGE] = 0
            s[_TRIP_SMALL] = 0
        elif k == _RETURN_USER or k == _VM_ENTRY:  # noqa: PLR1714, SIM109 - compiles to comparisons
            if s[_ENTERED] >= 0:
                counts[_KERNEL] += now - s[_ENTERED]
                counts[_TOUCHED_LARGE] += s[_TRIP_LARGE]
                counts[_TOUCHED_SMALL] += s[_TRIP_SMALL]
                counts[_TRIPS] += 1
            if s[_LEFT] >= 0:
                counts[_UNRESTRICTED_TIME] += now - s[_LEFT]
            s[_ENTERED] = -1
            s[_LEFT] = -1
            target = _USERSPACE if k == _RETURN_USER else _KVM
            if flush_always or s[_SPACE] != target:
                if s[_FLUSH] > 0:
                    histogram[min(s[_FLUSH_PAGES], _BINS - 1)] += 1
                s[_FLUSH] += 1
                s[_FLUSH_PAGES] = 0
            if s[_SPACE] != target:
                counts[_TO + target - 1] += 1
                s[_SPACE] = target
                s[_EPOCH + target] += 1
