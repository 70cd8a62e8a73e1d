"""The loop over the events, compiled. Imported only when a replay runs: importing numba takes a while.

It looks transitions up in a table that :class:`asikit.replay._transitions.TransitionTable` fills from the protocol. It
stops where the table has no answer yet; the caller fills it in and lets the loop go on at the same event.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from asikit.compiled import jit
from asikit.replay._events import SLOTS_PER_KIND, TLB_FLUSHES, EventClass
from asikit.trace import EventKind

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Answers", "Counts", "Events", "Exits", "Running", "Stop", "TableArrays", "run_events"]


class Stop(IntEnum):
    """Why the loop returned."""

    DONE = 0
    TRANSITION = 1  # next_state[state, event class] is missing
    LOAD = 2  # loaded[state, task state] is missing
    BAD_PLACE = 3
    BAD_TASK = 4
    BAD_KIND = 5
    BAD_STACK = 6
    SLOT = 7  # entry_number[slot] is missing


# Plain integers: the compiler takes them as constants.
_DONE, _TRANSITION, _LOAD = int(Stop.DONE), int(Stop.TRANSITION), int(Stop.LOAD)
_SLOT = int(Stop.SLOT)
_BAD_PLACE, _BAD_TASK, _BAD_KIND, _BAD_STACK = (
    int(Stop.BAD_PLACE),
    int(Stop.BAD_TASK),
    int(Stop.BAD_KIND),
    int(Stop.BAD_STACK),
)
_VM_EXIT = int(EventKind.VM_EXIT)
_NESTED_EXCEPTION = int(EventKind.NESTED_EXCEPTION)
_RETURN_USER = int(EventKind.RETURN_USER)
_VM_ENTRY = int(EventKind.VM_ENTRY)
_TOUCH_READ, _TOUCH_FETCH = int(EventKind.TOUCH_READ), int(EventKind.TOUCH_FETCH)
_ACCESSES = _TOUCH_FETCH - _TOUCH_READ + 1
_FIRST_TOUCH = np.uint8(_TOUCH_READ)
_TASK_SWITCH = int(EventKind.TASK_SWITCH)
_PAGE_ALLOC, _PAGE_FREE = int(EventKind.PAGE_ALLOC), int(EventKind.PAGE_FREE)
_TLB_FLUSH = int(EventKind.TLB_FLUSH)
_DOUBLE_FAULT_VECTOR, _PAGE_FAULT_VECTOR = 8, 14
_EVENT_CLASSES = len(EventClass)
_SLOTS = SLOTS_PER_KIND
_NO_ENTRY = 0  # the number of what is no entry
_MISSING_BITS, _EPHMAP_BITS = 0x3F, 0xC0
_UNMAPPED_TOUCH = int(EventClass.UNMAPPED_TOUCH)
_NESTED_PAGE_FAULT = int(EventClass.NESTED_PAGE_FAULT)
_TLB_FLUSHES = TLB_FLUSHES
_DOUBLE_FAULT = int(EventClass.DOUBLE_FAULT)


class Events(NamedTuple):
    """The events, as arrays of equal length, and the group that each counts in."""

    cpu: Array
    kind: Array
    arg: Array
    stack: Array
    group: Array


class Answers(NamedTuple):
    """What is looked up of an event.

    :ivar places: The policy's bits of each place (:class:`asikit.replay.sensitivity.PlaceBits`).
    :ivar ephmap_stacks: One flag a stack: its function may use the ephemeral mapping.
    :ivar event_class: By kind of event: its class.
    """

    places: Array
    ephmap_stacks: Array
    event_class: Array


class TableArrays(NamedTuple):
    """The arrays of a :class:`asikit.replay._transitions.TransitionTable`, as they are named there."""

    next_state: Array
    is_exit: Array
    touch_mask: Array
    saved: Array
    loaded: Array


class Running(NamedTuple):
    """What each CPU and task is at; the loop changes it.

    :ivar state: By CPU: the number of its state.
    :ivar mask: By CPU and access: the bits of a place that matter to it.
    :ivar task: By CPU: the task that runs, -1 if it is not known.
    :ivar entry: By CPU: the number of the open round trip's entry.
    :ivar group: By CPU: the group of the open round trip.
    :ivar exited: By CPU: the open round trip has had an exit.
    :ivar task_state: By task: the number of what it took with it when it left a CPU.
    """

    state: Array
    mask: Array
    task: Array
    entry: Array
    group: Array
    exited: Array
    task_state: Array


class Counts(NamedTuple):
    """What the loop counts.

    :ivar entry_number: The number of each slot of entries that has been met, else -1.
    :ivar hits: (groups, states, event classes): how often each transition was made.
    :ivar entries: (groups, 3, entries): of each entry the round trips, the exits, and the round trips without one.
    :ivar ephmap: By group: touches through an ephemeral mapping.
    """

    entry_number: Array
    hits: Array
    entries: Array
    ephmap: Array


class Exits(NamedTuple):
    """The exits of these events in their order: at which event, and the number of the transition.

    :ivar of_event: By event: the number of its transition; what has none keeps its value. Empty if nobody asks.
    """

    event: Array
    transition: Array
    of_event: Array


@jit
def run_events(  # noqa: C901, PLR0911, PLR0912, PLR0915, PLR0917 - one loop, compiled as one function
    start: int,
    events: Events,
    answers: Answers,
    table: TableArrays,
    running: Running,
    counts: Counts,
    exits: Exits,
    left: int,
) -> tuple[int, int, int, int, int]:
    """Run events from ``start`` on.

    What is counted is counted in the event's group; a round trip in that of its entry.

    :param left: How many exits are in ``exits`` already.
    :return: Why it stopped (:class:`Stop`), at which event, how many exits are in ``exits`` now, and the two indices of
        the missing entry.
    """
    cpu, kind, arg, stack, group = events
    places, ephmap_stacks, event_class = answers
    next_state, is_exit, touch_mask, saved, loaded = table
    cpu_state, cpu_mask, cpu_task, cpu_entry, cpu_group, cpu_exited, task_state = running
    entry_number, hits, entry_counts, ephmap_counts = counts
    exit_event, exit_transition, of_event = exits
    event_classes = _EVENT_CLASSES
    task_states = loaded.shape[1]
    for event in range(start, kind.size):
        i = np.uintp(event)  # unsigned: no check for a negative index
        k = kind[i]
        c = cpu[i]
        if _TOUCH_READ <= k <= _TOUCH_FETCH:
            mask = cpu_mask[c, k - _FIRST_TOUCH]
            if mask == 0:  # unrestricted: everything is mapped
                continue
            place = arg[i]
            if place >= places.size:
                return _BAD_PLACE, event, left, 0, 0
            found = places[place] & mask
            if found & _MISSING_BITS == 0:
                continue
            if found & _EPHMAP_BITS:
                if stack[i] >= ephmap_stacks.size:
                    return _BAD_STACK, event, left, 0, 0
                if ephmap_stacks[stack[i]]:
                    ephmap_counts[group[i]] += 1
                    continue
            h = _UNMAPPED_TOUCH
        elif k == 0 or k > _TLB_FLUSH:
            return _BAD_KIND, event, left, 0, 0
        elif k == _PAGE_ALLOC or k == _PAGE_FREE:  # noqa: PLR1714, SIM109 - compiles to comparisons
            continue
        else:
            h = int(event_class[k])
            if k == _NESTED_EXCEPTION and arg[i] == _PAGE_FAULT_VECTOR:
                h = _NESTED_PAGE_FAULT
            elif k == _NESTED_EXCEPTION and arg[i] == _DOUBLE_FAULT_VECTOR:
                h = _DOUBLE_FAULT
            elif k == _TLB_FLUSH:
                h += int(arg[i] % _TLB_FLUSHES)

        s = cpu_state[c]
        following = next_state[s, h]
        if following < 0:
            return _TRANSITION, event, left, s, h
        if k == _TASK_SWITCH:
            task = int(arg[i])
            if task >= task_state.size:
                return _BAD_TASK, event, left, 0, 0
            leaving = cpu_task[c]
            kept = saved[following]
            wanted = kept if task == leaving else task_state[task]
            if wanted >= task_states or loaded[following, wanted] < 0:
                return _LOAD, event, left, following, wanted
            if leaving >= 0:
                task_state[leaving] = kept
            cpu_task[c] = task
            following = loaded[following, wanted]
        elif k <= _VM_EXIT:
            slot = _SLOTS * (int(k) - 1) + min(int(arg[i]), _SLOTS - 1)
            number = entry_number[slot]
            if number < 0:
                return _SLOT, event, left, slot, 0
            cpu_entry[c] = number
            cpu_group[c] = group[i]
            cpu_exited[c] = 0
        g = group[i]
        hits[g, s, h] += 1
        if of_event.size:
            of_event[i] = s * event_classes + h
        cpu_state[c] = following
        for access in range(_ACCESSES):
            cpu_mask[c, access] = touch_mask[following, access]
        if is_exit[s, h]:
            cpu_exited[c] = 1
            entry_counts[g, 1, cpu_entry[c]] += 1
            exit_event[left] = event
            exit_transition[left] = s * event_classes + h
            left += 1
        if k == _RETURN_USER or k == _VM_ENTRY:  # noqa: PLR1714, SIM109 - compiles to comparisons
            number = cpu_entry[c]
            if number != _NO_ENTRY:
                entry_counts[cpu_group[c], 0, number] += 1
                entry_counts[cpu_group[c], 2, number] += 1 - cpu_exited[c]
                cpu_entry[c] = _NO_ENTRY
    return _DONE, kind.size, left, 0, 0
