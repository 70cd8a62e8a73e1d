"""The loop over the events, compiled. Imported only when a replay runs: importing numba takes a while.

It looks transitions up in a table that :class:`asikit.replay._transitions.TransitionTable` fills from the protocol. It
stops where the table has no answer yet; the caller fills it in and lets the loop go on at the same event.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numba
import numpy as np

from asikit.replay._events import SLOTS_PER_KIND, TLB_FLUSHES, EventClass
from asikit.trace import EventKind

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Stop", "jit", "run_events"]

_Function = TypeVar("_Function", bound="Callable[..., Any]")


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
_CONTEXT_SWITCH = int(EventClass.CONTEXT_SWITCH)
_NESTED_PAGE_FAULT = int(EventClass.NESTED_PAGE_FAULT)
_TLB_FLUSHES = TLB_FLUSHES
_DOUBLE_FAULT = int(EventClass.DOUBLE_FAULT)


def jit(function: _Function) -> _Function:
    """Compile, keeping the machine code on disk where that is possible.

    Numba keeps it beside the source, else in the user's cache folder (or in ``NUMBA_CACHE_DIR``); if it may write in
    none of them it refuses to cache, and the code is compiled anew in each process.
    """
    try:
        return cast("_Function", numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast("_Function", numba.njit(nogil=True)(function))


@jit
def run_events(  # noqa: C901, PLR0911, PLR0912, PLR0913, PLR0915, PLR0917 - one loop, compiled as one function
    start: int,
    cpu: Array,
    kind: Array,
    arg: Array,
    stack: Array,
    group: Array,
    places: Array,
    ephmap_stacks: Array,
    event_class: Array,
    # the table
    next_state: Array,
    is_exit: Array,
    touch_mask: Array,
    saved: Array,
    loaded: Array,
    # what changes
    cpu_state: Array,
    cpu_mask: Array,
    cpu_task: Array,
    cpu_entry: Array,
    cpu_group: Array,
    cpu_exited: Array,
    entry_number: Array,
    task_state: Array,
    hits: Array,
    entry_counts: Array,
    ephmap_counts: Array,
    exit_event: Array,
    exit_transition: Array,
    exits: int,
) -> tuple[int, int, int, int, int]:
    """Run events from ``start`` on.

    What is counted is counted in the event's group; a round trip in that of its entry.

    :param group: By event: its group.
    :param entry_number: The number of each slot of entries that has been met, else -1.
    :return: Why it stopped (:class:`Stop`), at which event, how many exits are in ``exit_event`` now, and the two
        indices of the missing entry.
    """
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
                return _BAD_PLACE, event, exits, 0, 0
            found = places[place] & mask
            if found & _MISSING_BITS == 0:
                continue
            if found & _EPHMAP_BITS:
                if stack[i] >= ephmap_stacks.size:
                    return _BAD_STACK, event, exits, 0, 0
                if ephmap_stacks[stack[i]]:
                    ephmap_counts[group[i]] += 1
                    continue
            h = _UNMAPPED_TOUCH
        elif k == 0 or k > _TLB_FLUSH:
            return _BAD_KIND, event, exits, 0, 0
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
            return _TRANSITION, event, exits, s, h
        if k == _TASK_SWITCH:
            task = int(arg[i])
            if task >= task_state.size:
                return _BAD_TASK, event, exits, 0, 0
            leaving = cpu_task[c]
            kept = saved[following]
            wanted = kept if task == leaving else task_state[task]
            if wanted >= task_states or loaded[following, wanted] < 0:
                return _LOAD, event, exits, following, wanted
            if leaving >= 0:
                task_state[leaving] = kept
            cpu_task[c] = task
            following = loaded[following, wanted]
        elif k <= _VM_EXIT:
            slot = _SLOTS * (int(k) - 1) + min(int(arg[i]), _SLOTS - 1)
            number = entry_number[slot]
            if number < 0:
                return _SLOT, event, exits, slot, 0
            cpu_entry[c] = number
            cpu_group[c] = group[i]
            cpu_exited[c] = 0
        g = group[i]
        hits[g, s, h] += 1
        cpu_state[c] = following
        cpu_mask[c] = touch_mask[following]
        if is_exit[s, h]:
            cpu_exited[c] = 1
            entry_counts[g, 1, cpu_entry[c]] += 1
            exit_event[exits] = event
            exit_transition[exits] = s * event_classes + h
            exits += 1
        if k == _RETURN_USER or k == _VM_ENTRY:  # noqa: PLR1714, SIM109 - compiles to comparisons
            number = cpu_entry[c]
            if number != _NO_ENTRY:
                entry_counts[cpu_group[c], 0, number] += 1
                entry_counts[cpu_group[c], 2, number] += 1 - cpu_exited[c]
                cpu_entry[c] = _NO_ENTRY
    return _DONE, kind.size, exits, 0, 0
