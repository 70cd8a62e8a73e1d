"""The reference: the protocol run event by event, without a table. What the compiled replay must agree with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from asikit.protocol import AsiClass, Space
from asikit.replay._events import NO_ENTRY, entry_slot, event_class
from asikit.replay._steps import EventStep, Stepper
from asikit.replay._tally import NO_PLACE, EntryCounts, Tally, counted, together
from asikit.replay.errors import ReplayError
from asikit.replay.policy import ACCESSES, Policy
from asikit.replay.sensitivity import EPHMAP_BIT, Sensitive, missing_bit
from asikit.trace import ENTRY_KINDS, RETURN_KINDS, TOUCH_KINDS, EventKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.protocol import ExitReason, State, TaskState
    from asikit.replay.grouping import Grouping

__all__ = ["ReferenceReplay"]


class _Cpu:
    """One CPU: its state, its task if known, and of its open round trip the entry, its group, whether it has exited.

    :ivar last_entry: The entry of its last round trip, open or not.
    :ivar left: The task that has left it in the event before, if one has: the task, or None if that was not known.
    """

    def __init__(self, state: State) -> None:
        self.state = state
        self.task: int | None = None
        self.entry = self.last_entry = NO_ENTRY
        self.group = 0
        self.exited = False
        self.left: tuple[int | None] | None = None

    def counts_for(self, kind: EventKind) -> int | None:
        """Return the task that an event on it counts for: in a context switch the one that leaves."""
        return self.left[0] if kind is EventKind.MM_SWITCH and self.left is not None else self.task


class _Counts:
    """The counts of a group."""

    def __init__(self) -> None:
        self.tally = Tally()
        self.entries: dict[int, list[int]] = {}
        self.sites: Counter[tuple[int, int, int, ExitReason]] = Counter()

    def entry(self, slot: int) -> list[int]:
        return self.entries.setdefault(slot, [0, 0, 0])

    def named(self) -> Tally:
        self.tally.entries = {slot: EntryCounts(*counts) for slot, counts in sorted(self.entries.items())}
        self.tally.sites = counted(self.sites)
        return self.tally


class ReferenceReplay:
    """Feed it a trace's events in order; :meth:`tally` says what came of them."""

    def __init__(
        self,
        policy: Policy,
        classes: frozenset[AsiClass],
        sensitive: Sensitive,
        tasks: int,
        *,
        grouping: Grouping | None = None,
    ) -> None:
        """Prepare.

        :param grouping: The groups that are counted apart.
        """
        self._stepper = Stepper(policy, classes)
        self._sensitive = sensitive
        self._tasks: list[TaskState] = [self._stepper.initial_task()] * tasks
        self._cpus: dict[int, _Cpu] = {}
        self._grouping = grouping
        self._groups: dict[int, _Counts] = {}
        self._rows = 0

    def feed(self, events: Iterable[tuple[int, int, int, int]]) -> None:
        """Run events.

        :param events: ``cpu``, ``kind``, ``arg``, ``stack`` of each.
        :raises ReplayError: An event refers to a row that is not there.
        """
        for cpu, kind, arg, stack in events:
            event = EventKind(kind)
            known = self._cpus.setdefault(cpu, _Cpu(self._stepper.initial()))
            group = 0 if self._grouping is None else self._group_of(known, cpu, event, arg)
            self._group(group).tally.events += 1
            leaving = known.task
            self._event(known, group, event, arg, stack)
            known.left = (leaving,) if event is EventKind.TASK_SWITCH else None
            self._rows += 1

    def tally(self, groups: Iterable[int] | None = None) -> Tally:
        """Return the counts so far.

        :param groups: Of these groups together; of all when None.
        """
        return together(self._group(group).named() for group in (list(self._groups) if groups is None else groups))

    @property
    def exits(self) -> int:
        """All exits so far."""
        return sum(counts.tally.reasons.total() for counts in self._groups.values())

    def _group_of(self, known: _Cpu, cpu: int, kind: EventKind, arg: int) -> int:
        assert self._grouping is not None  # it is asked only then
        if kind in ENTRY_KINDS:
            known.last_entry = entry_slot(kind, arg)
        return self._grouping.group(known.counts_for(kind), cpu, self._rows, known.last_entry)

    def _group(self, number: int) -> _Counts:
        if number not in self._groups:  # making counts takes longer than an event
            self._groups[number] = _Counts()
        return self._groups[number]

    def _event(self, cpu: _Cpu, group: int, kind: EventKind, arg: int, stack: int) -> None:
        if kind in TOUCH_KINDS and not self._is_missing(cpu.state, group, kind, arg, stack):
            return
        event = event_class(kind, arg)
        if event is None:
            return
        if kind in ENTRY_KINDS:
            cpu.entry, cpu.group, cpu.exited = entry_slot(kind, arg), group, False
        step = self._stepper.step(cpu.state, event.happening)
        self._count(cpu, self._group(group), step, (int(kind), arg if kind in TOUCH_KINDS else NO_PLACE, stack))
        cpu.state = step.state
        if kind is EventKind.TASK_SWITCH:
            self._switch(cpu, arg)
        if kind in RETURN_KINDS and cpu.entry != NO_ENTRY:
            counts = self._group(cpu.group).entry(cpu.entry)
            counts[0] += 1
            counts[2] += not cpu.exited
            cpu.entry = NO_ENTRY

    def _is_missing(self, state: State, group: int, kind: EventKind, place: int, stack: int) -> bool:
        """Tell whether the CPU's address space lacks what is touched; count it if an ephemeral mapping helps."""
        space = self._stepper.space(state)
        if space not in {Space.USERSPACE, Space.KVM}:
            return False
        if place >= self._sensitive.places.size:
            raise ReplayError(
                f"a touch refers to place {place} of {self._sensitive.places.size}; record the trace again"
            )
        access = ACCESSES[kind - EventKind.TOUCH_READ]
        bits = int(self._sensitive.places[place])
        if not bits & missing_bit(userspace=space is Space.USERSPACE, access=access):
            return False
        if bits & EPHMAP_BIT[access] and self._sensitive.ephmap_stacks[stack]:
            self._group(group).tally.ephmap_operations += 1
            return False
        return True

    @staticmethod
    def _count(cpu: _Cpu, counts: _Counts, step: EventStep, site: tuple[int, int, int]) -> None:
        counts.tally.amended += step.amended
        counts.tally.effects.update(step.effects)
        if step.exit_reason is not None:
            cpu.exited = True
            counts.entry(cpu.entry)[1] += 1
            counts.tally.reasons[step.exit_reason] += 1
            counts.sites[*site, step.exit_reason] += 1

    def _switch(self, cpu: _Cpu, task: int) -> None:
        if cpu.task is not None:
            self._tasks[cpu.task] = self._stepper.save_task(cpu.state)
        if task >= len(self._tasks):
            raise ReplayError(f"a switch refers to task {task} of {len(self._tasks)}; record the trace again")
        cpu.task = task
        cpu.state = self._stepper.load_task(cpu.state, self._tasks[task])
