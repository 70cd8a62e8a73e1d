"""The reference: the protocol run event by event, without a table. What the compiled replay must agree with."""

from collections import Counter
from typing import TYPE_CHECKING

from asikit.protocol import AsiClass, Space
from asikit.replay._events import NO_ENTRY, entry_slot, event_class
from asikit.replay._steps import Step, Stepper
from asikit.replay._tally import NO_PLACE, EntryCounts, Tally, counted
from asikit.replay.errors import ReplayError
from asikit.replay.policy import ACCESSES, Access, Policy
from asikit.replay.sensitivity import PlaceBits, Sensitive, missing_bit
from asikit.trace import ENTRY_KINDS, RETURN_KINDS, TOUCH_KINDS, EventKind

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.protocol import ExitReason, State, TaskState

__all__ = ["ReferenceReplay"]

_EPHMAP_BIT = {Access.READ: PlaceBits.EPHMAP_READ, Access.WRITE: PlaceBits.EPHMAP_WRITE, Access.FETCH: PlaceBits(0)}


class _Cpu:
    """One CPU: its state, its task if known, the entry of its open round trip, and whether that has exited."""

    def __init__(self, state: "State") -> None:
        self.state = state
        self.task: int | None = None
        self.entry = NO_ENTRY
        self.exited = False


class ReferenceReplay:
    """Feed it a trace's events in order; :meth:`tally` says what came of them."""

    def __init__(self, policy: Policy, classes: frozenset[AsiClass], sensitive: Sensitive, tasks: int) -> None:
        self._stepper = Stepper(policy, classes)
        self._sensitive = sensitive
        self._tasks: list[TaskState] = [self._stepper.initial_task()] * tasks
        self._cpus: dict[int, _Cpu] = {}
        self._entries: dict[int, list[int]] = {}
        self._sites: Counter[tuple[int, int, int, ExitReason]] = Counter()
        self._tally = Tally()

    def feed(self, events: "Iterable[tuple[int, int, int, int]]") -> None:
        """Run events.

        :param events: ``cpu``, ``kind``, ``arg``, ``stack`` of each.
        :raises ReplayError: An event refers to a row that is not there.
        """
        for cpu, kind, arg, stack in events:
            self._event(cpu, EventKind(kind), arg, stack)
            self._tally.events += 1

    def tally(self) -> Tally:
        """Return the counts so far."""
        self._tally.entries = {slot: EntryCounts(*counts) for slot, counts in sorted(self._entries.items())}
        self._tally.sites = counted(self._sites)
        return self._tally

    def _event(self, number: int, kind: EventKind, arg: int, stack: int) -> None:
        cpu = self._cpus.setdefault(number, _Cpu(self._stepper.initial()))
        if kind in TOUCH_KINDS and not self._is_missing(cpu.state, kind, arg, stack):
            return
        event = event_class(kind, arg)
        if event is None:
            return
        if kind in ENTRY_KINDS:
            cpu.entry, cpu.exited = entry_slot(kind, arg), False
        step = self._stepper.step(cpu.state, event.happening)
        self._count(cpu, step, (int(kind), arg if kind in TOUCH_KINDS else NO_PLACE, stack))
        cpu.state = step.state
        if kind is EventKind.TASK_SWITCH:
            self._switch(cpu, arg)
        if kind in RETURN_KINDS and cpu.entry != NO_ENTRY:
            counts = self._entry(cpu.entry)
            counts[0] += 1
            counts[2] += not cpu.exited
            cpu.entry = NO_ENTRY

    def _is_missing(self, state: "State", kind: EventKind, place: int, stack: int) -> bool:
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
        if bits & _EPHMAP_BIT[access] and self._sensitive.ephmap_stacks[stack]:
            self._tally.ephmap_operations += 1
            return False
        return True

    def _entry(self, slot: int) -> list[int]:
        return self._entries.setdefault(slot, [0, 0, 0])

    def _count(self, cpu: _Cpu, step: Step, site: tuple[int, int, int]) -> None:
        self._tally.amended += step.amended
        self._tally.effects.update(step.effects)
        if step.exit_reason is not None:
            cpu.exited = True
            self._entry(cpu.entry)[1] += 1
            self._tally.reasons[step.exit_reason] += 1
            self._sites[*site, step.exit_reason] += 1

    def _switch(self, cpu: _Cpu, task: int) -> None:
        if cpu.task is not None:
            self._tasks[cpu.task] = self._stepper.save_task(cpu.state)
        if task >= len(self._tasks):
            raise ReplayError(f"a switch refers to task {task} of {len(self._tasks)}; record the trace again")
        cpu.task = task
        cpu.state = self._stepper.load_task(cpu.state, self._tasks[task])
