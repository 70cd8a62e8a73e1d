"""The protocol tabulated: states and event classes to the next state and what it asks for.

The entries are the answers of :class:`asikit.replay._steps.Stepper`, so the table cannot say anything else than the
protocol. They are found when first needed: a recording meets a few hundred of the entries that exist.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np

from asikit.protocol import Space
from asikit.replay._events import EventClass
from asikit.replay.policy import ACCESSES
from asikit.replay.sensitivity import EPHMAP_BIT, missing_bit

if TYPE_CHECKING:
    import numpy.typing as npt

    from asikit.protocol import State, TaskState
    from asikit.replay._steps import EventStep, Stepper
    from asikit.replay.policy import TouchKind

    Numbers = npt.NDArray[np.int32]
    Bytes = npt.NDArray[np.uint8]

__all__ = ["UNKNOWN_ENTRY", "TransitionTable"]

_Number = TypeVar("_Number", np.int32, np.uint8)

UNKNOWN_ENTRY = -1
"""In ``next_state`` and ``loaded``: not known yet."""


class TransitionTable:
    """The table, and the states and steps behind its numbers. State 0 and task state 0 are the initial ones.

    :ivar next_state: (states, event classes) int32: the number of the state after the event.
    :ivar is_exit: (states, event classes) uint8: the event leaves the restricted address space.
    :ivar touch_mask: (states, accesses) uint8: the :class:`PlaceBits` that matter to a touch in this state.
    :ivar saved: (states,) int32: the number of the task's part of the state.
    :ivar loaded: (states, task states) int32: the number of the state with another task's part.
    :ivar steps: The step behind each known entry of ``next_state``.
    """

    def __init__(self, stepper: Stepper) -> None:
        self._stepper = stepper
        self._numbers: dict[State, int] = {}
        self._states: list[State] = []
        self._task_numbers: dict[TaskState, int] = {}
        self._tasks: list[TaskState] = []
        self.steps: dict[tuple[int, int], EventStep] = {}
        self.next_state: Numbers = np.empty((0, len(EventClass)), np.int32)
        self.is_exit: Bytes = np.empty((0, len(EventClass)), np.uint8)
        self.touch_mask: Bytes = np.empty((0, len(ACCESSES)), np.uint8)
        self.saved: Numbers = np.empty(0, np.int32)
        self.loaded: Numbers = np.empty((0, 0), np.int32)
        self._task_number(stepper.initial_task())
        self._state_number(stepper.initial())

    @property
    def states(self) -> int:
        """How many states are known."""
        return len(self._states)

    @property
    def capacity(self) -> int:
        """How many states the arrays have room for."""
        return self.saved.size

    def find_transition(self, state: int, event: int) -> None:
        """Fill in ``next_state[state, event]``."""
        step = self._stepper.step(self._states[state], EventClass(event).happening)
        following = self._state_number(step.state)
        self.steps[state, event] = step
        self.next_state[state, event] = following
        self.is_exit[state, event] = step.exit_reason is not None

    def find_load(self, state: int, task: int) -> None:
        """Fill in ``loaded[state, task]``."""
        loaded = self._state_number(self._stepper.load_task(self._states[state], self._tasks[task]))
        self.loaded[state, task] = loaded

    def close(self) -> None:
        """Fill in every entry that can be reached from the initial state."""
        done = (0, 0)
        while done != (len(self._states), len(self._tasks)):
            done = (len(self._states), len(self._tasks))
            for state in range(len(self._states)):
                for event in EventClass:
                    if (state, event) not in self.steps:
                        self.find_transition(state, event)
                for task in range(len(self._tasks)):
                    if self.loaded[state, task] == UNKNOWN_ENTRY:
                        self.find_load(state, task)

    def _state_number(self, state: State) -> int:
        number = self._numbers.get(state)
        if number is not None:
            return number
        number = self._numbers[state] = len(self._states)
        self._states.append(state)
        if number >= self.capacity:
            self._grow()
        self.saved[number] = self._task_number(self._stepper.save_task(state))
        self.touch_mask[number] = [self._mask(state, access) for access in ACCESSES]
        return number

    def _task_number(self, task: TaskState) -> int:
        number = self._task_numbers.setdefault(task, len(self._tasks))
        if number == len(self._tasks):
            self._tasks.append(task)
        if number >= self.loaded.shape[1]:
            self.loaded = _padded(self.loaded, (self.loaded.shape[0], max(8, 2 * number)), UNKNOWN_ENTRY)
        return number

    def _grow(self) -> None:
        rows = max(64, 2 * self.capacity)
        self.next_state = _padded(self.next_state, (rows, len(EventClass)), UNKNOWN_ENTRY)
        self.is_exit = _padded(self.is_exit, (rows, len(EventClass)), 0)
        self.touch_mask = _padded(self.touch_mask, (rows, len(ACCESSES)), 0)
        self.saved = _padded(self.saved, (rows,), 0)
        self.loaded = _padded(self.loaded, (rows, self.loaded.shape[1]), UNKNOWN_ENTRY)

    def _mask(self, state: State, access: TouchKind) -> int:
        space = self._stepper.space(state)
        if space not in {Space.USERSPACE, Space.KVM}:
            return 0
        return missing_bit(userspace=space is Space.USERSPACE, access=access) | EPHMAP_BIT[access]


def _padded(array: npt.NDArray[_Number], shape: tuple[int, ...], fill: int) -> npt.NDArray[_Number]:
    """Return a larger array with the old one in its first corner."""
    larger = np.full(shape, fill, array.dtype)
    larger[tuple(slice(0, length) for length in array.shape)] = array
    return larger
