"""Who runs next, and what comes in between: the interleavers.

Kernel and programs pass *points*, each with a name: an access (`load`, `store`, `fetch`), a micro-operation (its path,
`asi_exit.write_cr3`), a system call, a spin. At a point the kernel may ask its interleaver what happens there. Exactly
one CPU runs at any instant, so a run is a sequence of points, and the same decisions give the same run.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol

from asikit.machine.kernel.core.errors import ScenarioError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Act", "Action", "Interleaver", "RoundRobin", "Scripted"]

FOREVER = 1 << 62
"""A slice that no run ever uses up."""


class Act(StrEnum):
    """What may happen at a point, besides the code that passes it."""

    NMI = "nmi"
    INTERRUPT = "interrupt"
    SWITCH = "switch"


@dataclass(frozen=True, slots=True)
class Action:
    """One act; `cpu` is whom it is about, None for the CPU that passes the point. A switch needs one."""

    act: Act
    cpu: int | None = None


class Interleaver(Protocol):
    """What the kernel asks. `every_point` says that `at` is to be asked at each point, not only when a slice ends."""

    every_point: bool

    def slice(self, cpu: int) -> int:
        """Return after how many points a CPU hands over, at least 1."""

    def choose(self, cpu: int, others: Sequence[int]) -> int:
        """Return which of the other CPUs that could run goes on after this one; `others` is not empty."""

    def at(self, point: str, cpu: int) -> Iterable[Action]:
        """Return what happens at a point, in order."""


class RoundRobin:
    """CPUs in turn, each for a random number of points: may hand over anywhere, the same for the same seed."""

    every_point = False

    def __init__(self, seed: int = 0, *, longest: int = 40) -> None:
        if longest < 1:
            raise ScenarioError(f"longest is {longest}; a CPU must pass at least one point before it hands over")
        self._random = random.Random(seed)
        self._longest = longest

    def slice(self, cpu: int) -> int:  # every CPU alike
        """Return a number of points, short ones more often than long ones."""
        return self._random.randint(1, self._random.randint(1, self._longest))

    def choose(self, cpu: int, others: Sequence[int]) -> int:
        """Return the next CPU by number."""
        return next((other for other in others if other > cpu), others[0])

    def at(self, point: str, cpu: int) -> Iterable[Action]:
        """Nothing comes in between."""
        return ()


class Scripted:
    """At the n-th time (from 1) that a point's name is passed, do something; in between, one CPU runs until it waits.

    A step is `(point, n, act)`, where act is `nmi`, `interrupt`, or `switch K` for CPU K; `nmi K` is for another CPU.
    The name `*` counts every point; a name with `cpu K:` in front counts only what that CPU passes.
    """

    every_point = True

    def __init__(self, steps: Iterable[tuple[str, int, str]]) -> None:
        self._steps: dict[tuple[str, int], list[Action]] = {}
        for point, count, text in steps:
            self._steps.setdefault((point, count), []).append(_parse(text))
        self._passed: Counter[str] = Counter()
        self._names = {point for point, _ in self._steps}
        self.passed: list[str] = []
        """The names of all points passed so far, for tests that enumerate them; filled when `record` is set."""
        self.record = False

    def slice(self, cpu: int) -> int:
        """A CPU runs until the script or its own waiting stops it."""
        return FOREVER

    def choose(self, cpu: int, others: Sequence[int]) -> int:
        """Return the next CPU by number."""
        return next((other for other in others if other > cpu), others[0])

    def at(self, point: str, cpu: int) -> Iterable[Action]:
        """Return what the script has for this point now."""
        if self.record:
            self.passed.append(point)
        actions: list[Action] = []
        for name in (point, f"cpu {cpu}:{point}", "*"):
            if name in self._names:
                self._passed[name] += 1
                actions += self._steps.get((name, self._passed[name]), ())
        return actions

    @property
    def unused(self) -> list[tuple[str, int]]:
        """The steps whose point was not passed often enough."""
        return sorted((name, count) for name, count in self._steps if self._passed[name] < count)


def _parse(text: str) -> Action:
    word, _, number = text.partition(" ")
    if word not in set(Act) or (number and not number.isdecimal()) or (word == Act.SWITCH and not number):
        raise ScenarioError(f'"{text}" is no act of a script; use "nmi", "interrupt" or "switch K" with K a CPU')
    return Action(Act(word), int(number) if number else None)
