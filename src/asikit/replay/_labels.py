"""The loop that says whose each event is, compiled. Imported only where counts are divided or chosen from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from asikit.compiled import jit
from asikit.replay._events import SLOTS_PER_KIND
from asikit.trace import EventKind

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["Open", "Whose", "find_whose"]

_TASK_SWITCH, _MM_SWITCH, _VM_EXIT = int(EventKind.TASK_SWITCH), int(EventKind.MM_SWITCH), int(EventKind.VM_EXIT)
_SLOTS = SLOTS_PER_KIND


class Open(NamedTuple):
    """What is remembered of each CPU; the loop changes it.

    :ivar task: The task that runs; the number of tasks if it is not known.
    :ivar leaving: The task that left in the event before, -1 if none did.
    :ivar entry: The slot of the last entry.
    """

    task: Array
    leaving: Array
    entry: Array


class Whose(NamedTuple):
    """Of each event: the task, the stretch of phases, and the entry that it counts for. The loop fills it in."""

    task: Array
    segment: Array
    entry: Array


@jit
def find_whose(  # noqa: PLR0917  (columns)
    first: int, cpu: Array, kind: Array, arg: Array, tasks: int, bounds: Array, cpus: Open, whose: Whose
) -> None:
    """Run events.

    :param first: The number of the first of these events in the trace.
    :param tasks: How many tasks are known.
    :param bounds: The first rows of events of each stretch in which the same phases are open.
    """
    cpu_task, cpu_leaving, cpu_entry = cpus
    task_of, segment_of, entry_of = whose
    segment = 0
    for i in range(kind.size):
        while segment + 1 < bounds.size and bounds[segment + 1] <= first + i:
            segment += 1
        c = cpu[i]
        k = kind[i]
        task = cpu_task[c]
        if k == _MM_SWITCH and cpu_leaving[c] >= 0:
            task = cpu_leaving[c]
        cpu_leaving[c] = -1
        if k == _TASK_SWITCH:
            cpu_leaving[c] = cpu_task[c]
            cpu_task[c] = min(int(arg[i]), tasks)
        elif k <= _VM_EXIT:
            cpu_entry[c] = _SLOTS * (int(k) - 1) + min(int(arg[i]), _SLOTS - 1)
        task_of[i] = task
        segment_of[i] = segment
        entry_of[i] = cpu_entry[c]
