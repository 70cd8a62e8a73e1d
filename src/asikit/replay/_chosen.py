"""What a ``--where`` means in a trace: of which tasks, CPUs, phases and entries each of its comparisons is true."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from asikit.errors import nearest
from asikit.replay._events import ENTRY_SLOTS, NO_ENTRY, entry_label
from asikit.replay.errors import SelectionError
from asikit.replay.where import Where, WhereField, WhereTerm

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import numpy.typing as npt

    from asikit.trace import Trace

    Bits = npt.NDArray[np.uint64]

__all__ = ["AT_ENTRY", "Chosen", "check_names", "entry_names"]

AT_ENTRY: Final = frozenset(field for field in WhereField if field.at_entry)
"""What is known of an event when it takes place."""

_KINDS: Final = ("syscall", "exception", "interrupt", "nmi", "vm exit")
_SHOWN: Final = 6
_SAME: Final = {"==": "==", "!=": "==", "~": "~", "!~": "~"}
"""What a comparison with a name asks for, whether it wants it or not."""


def entry_names(label: str) -> tuple[str, ...]:
    """Return what an entry may be called: ``vm exit 120 hlt``, ``vm exit``, ``120 hlt``, ``hlt``."""
    for kind in _KINDS:
        if label == kind:
            return (label,)
        if label.startswith(f"{kind} "):
            name = label.removeprefix(f"{kind} ")
            number, _, word = name.partition(" ")
            return (label, kind, name, *([number] if word else []), *([word] if word and number.isdigit() else []))
    return (label,)


@dataclass(frozen=True, eq=False)
class Chosen:
    """An expression, and for each thing that an event has the comparisons that are true of it: a bit for each.

    :ivar task: By row of tasks; the last is for what runs before a CPU's first TASK_SWITCH.
    :ivar cpu: By CPU.
    :ivar segment: By stretch in which the same phases are open.
    :ivar entry: By the slot of the last entry (:func:`asikit.replay._events.entry_slot`).
    """

    where: Where
    task: Bits
    cpu: Bits
    segment: Bits
    entry: Bits

    @classmethod
    def of(cls, where: Where, trace: Trace, phases: Sequence[tuple[str, ...]], cpus: int) -> Chosen:
        """Find what an expression means in a trace.

        :param phases: The names of the open phases, by stretch.
        :param cpus: CPUs that a trace may have.
        :raises SelectionError: The trace has nothing of which a comparison with a name could be true.
        """
        tasks = trace.table("tasks")
        entries = _all_entries(trace)
        names: dict[WhereField, list[tuple[str, ...]]] = {
            WhereField.TASK: [(comm,) for comm in tasks["comm"].to_list()],
            WhereField.PID: [(str(pid),) for pid in tasks["tgid"].to_list()],
            WhereField.CPU: [(str(cpu),) for cpu in range(cpus)],
            WhereField.PHASE: list(phases),
            WhereField.ENTRY: entries,
        }
        check_names(
            where.comparisons, {**names, WhereField.CPU: names[WhereField.CPU][: trace.recorder.machine.cpus or cpus]}
        )

        def bits(fields: Iterable[WhereField], size: int) -> Bits:
            found = np.zeros(size, np.uint64)
            for number, comparison in enumerate(where.comparisons):
                if comparison.field in fields:
                    true = [comparison.holds_of_any(each) for each in names[comparison.field]]
                    found[: len(true)] |= np.array(true, np.uint64) << np.uint64(number)
            return found

        return cls(
            where,
            bits((WhereField.TASK, WhereField.PID), tasks.height + 1),
            bits((WhereField.CPU,), cpus),
            bits((WhereField.PHASE,), len(phases)),
            bits((WhereField.ENTRY,), ENTRY_SLOTS),
        )

    def allows(self, words: Bits) -> npt.NDArray[np.bool_]:
        """Tell for each event whether it is meant, from the bits of all that it has."""
        distinct, place = np.unique(words, return_inverse=True)
        return np.array([self.true(word) for word in distinct.tolist()], np.bool_)[place]

    def true(self, word: int) -> bool:
        """Tell whether the expression is true of an event with these bits."""
        return self.where.true(lambda number: bool(word >> number & 1))


def _all_entries(trace: Trace) -> list[tuple[str, ...]]:
    meta = trace.meta
    words = (meta.get("syscalls", {}), meta.get("vectors", {}), trace.recorder.exit_names)
    return [entry_names(entry_label(slot, *words)) for slot in range(NO_ENTRY + 1)]


def check_names(comparisons: Iterable[WhereTerm], names: dict[WhereField, list[tuple[str, ...]]]) -> None:
    """Refuse a name that nothing has: its author believes that there is such a thing.

    :param names: What the things of each field are called, of those that there are.
    :raises SelectionError: No thing has it.
    """
    for comparison in comparisons:
        if comparison.operator not in _SAME or not comparison.field.at_entry:
            continue
        asked = replace(comparison, operator=_SAME[comparison.operator])
        if not any(map(asked.holds_of_any, names[asked.field])):
            known = sorted({name for each in names[asked.field] for name in each if name})
            hint = nearest(str(asked.value), known) or _listed(known)
            raise SelectionError(f"--where: no {asked.field} {asked.value} in the recording{hint}")


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "; there are none"
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return f"; there are {', '.join(names[:_SHOWN])}{more}"
