"""Which CPU goes on: the one whose step is next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.kernel.core.interleave import FOREVER

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from asikit.machine.kernel import Action
    from asikit.proofs.stage.between import InBetween
    from asikit.proofs.stage.script import Script

__all__ = ["StoryInterleaver"]


class StoryInterleaver:
    """A machine's interleaver: until the story begins nothing comes in between, and from then on what `InBetween` says.

    A machine is made with its interleaver, so this one has the script alone. What comes in between depends on what the
    kernel's CPUs do; who knows them is given to it by `begin`, and by then the machine has long been made.
    """

    every_point = True

    def __init__(self, script: Script) -> None:
        self._script = script
        self._between: InBetween | None = None

    def begin(self, between: InBetween) -> None:
        """Begin the story."""
        self._between = between

    def slice(self, cpu: int) -> int:  # every CPU alike
        """A CPU runs until the story says otherwise."""
        return FOREVER

    def choose(self, cpu: int, others: Sequence[int]) -> int:  # the story knows
        """Return the CPU whose step is next."""
        head = self._script.head
        return head.thread if head is not None and head.thread in others else others[0]

    def at(self, point: str, cpu: int) -> Iterable[Action]:
        """Return what comes in between here."""
        return () if self._between is None else self._between.at(point, cpu)
