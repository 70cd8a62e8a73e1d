"""A counterexample's steps as a script: those still to come, whose turn it is, and how many could not be followed.

Plain data: it knows no machine.
"""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

from asikit.protocol import Happening

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.proofs.story import StoryStep

__all__ = ["Script"]

H = Happening
_NOTHING_TO_DO = frozenset({"skips", "breaks a rule in"})
"""Verbs of steps that are the protocol's own business: the machine does them, or fails to, by itself."""
_DISTURBS = frozenset({"stops waiting", "interrupted by"})
"""Verbs of steps by which a thread that waits goes on."""
_BY_HARDWARE = f"{H.UNMAPPED_TOUCH}."
"""What the paths begin with of micro-operations that the machine's processor does, not its driver."""
_SWITCHES = frozenset({H.CONTEXT_SWITCH, H.MM_SWITCH})


class Script:
    """The steps that are still to come.

    :ivar missed: How many were left out.
    """

    def __init__(self, steps: Iterable[StoryStep]) -> None:
        self._steps = deque(
            step
            for step in _with_loads_first(steps)
            if step.verb not in _NOTHING_TO_DO and not step.name.startswith(_BY_HARDWARE)
        )
        self.missed = 0

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def head(self) -> StoryStep | None:
        """The next step, None at the end."""
        return self._steps[0] if self._steps else None

    @property
    def disturbed(self) -> int | None:
        """The thread that is to wait no more, if that is the next step; None if it is another one."""
        head = self.head
        return head.thread if head is not None and head.verb in _DISTURBS else None

    def next_of(self, thread: int) -> StoryStep | None:
        """Return the next step if it is a thread's, else None."""
        head = self.head
        return head if head is not None and head.thread == thread else None

    def take(self) -> StoryStep:
        """Take the next step off, which is done now."""
        return self._steps.popleft()

    def miss(self) -> None:
        """Leave the next step out."""
        self.missed += 1
        self.take()

    def tick_off(self, thread: int, path: str) -> bool:
        """Take off the micro-operation that a thread has run; returns whether there was anything to take off.

        It is the next step, or (in another protocol) one after it of the same piece: then those before it are left out.
        """
        piece = takewhile(lambda step: step.verb == "runs" and step.thread == thread, self._steps)
        place = next((number for number, step in enumerate(piece) if step.name == path), None)
        if place is None:
            return False
        for _ in range(place):
            self.miss()
        self.take()
        return True


def _with_loads_first(steps: Iterable[StoryStep]) -> list[StoryStep]:
    """Return steps with the task that a switch goes to at its beginning, not at its end."""
    moved: list[StoryStep] = []
    for step in steps:
        moved.append(replace(step, loads=None))
        if step.loads is not None:
            begin = max(
                place
                for place, earlier in enumerate(moved)
                if earlier.thread == step.thread and earlier.name in _SWITCHES
            )
            moved[begin] = replace(moved[begin], loads=step.loads)
    return moved
