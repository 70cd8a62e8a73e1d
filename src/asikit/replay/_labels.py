"""The loop that says which group each event counts in, compiled. Imported only where counts are divided."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from asikit.compiled import jit
from asikit.trace import EventKind

if TYPE_CHECKING:
    import numpy.typing as npt

    Array = npt.NDArray[Any]

__all__ = ["label_events"]

_TASK_SWITCH, _MM_SWITCH = int(EventKind.TASK_SWITCH), int(EventKind.MM_SWITCH)


@jit
def label_events(  # noqa: PLR0917  (one loop, compiled as one function)
    first: int,
    cpu: Array,
    kind: Array,
    arg: Array,
    task_key: Array,
    cpu_key: Array,
    bounds: Array,
    segment_key: Array,
    cpu_task: Array,
    cpu_leaving: Array,
    groups: Array,
) -> None:
    """Fill in ``groups``.

    :param first: The number of the first of these events in the trace.
    :param cpu_task: By CPU: the task that runs; the last of ``task_key`` if it is not known.
    :param cpu_leaving: By CPU: the task that left in the event before, -1 if none did.
    """
    unknown = task_key.size - 1
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
            cpu_task[c] = min(int(arg[i]), unknown)
        groups[i] = task_key[task] * cpu_key[c] * segment_key[segment]
