"""A scheduler that follows a counterexample's plain data, and knows nothing of the model that found it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asikit.protocol import Happening, Status

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.proofs import StoryStep
    from asikit.protocol import Protocol, ThreadState


@dataclass
class Follower:
    """A core that is driven by steps.

    :ivar protocol: The mutant's.
    :ivar effects: What was asked of the hardware so far, with who asked.
    """

    protocol: Protocol
    threads: list[ThreadState]
    effects: list[tuple[int, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Boot."""
        self.core = self.protocol.initial_core()
        if len(self.threads) == 1:
            self.core = self.core._replace(first=self.core.first._replace(stunned=0))

    def follow(self, steps: Iterable[StoryStep]) -> None:
        """Do the steps; each must be possible, and do what it says."""
        for step in steps:
            self._do(step)
            if step.loads is not None:
                self.threads[step.thread] = self.threads[step.thread]._replace(task=step.loads)

    def waits(self, who: int) -> bool:
        """Whether a thread waits for the other."""
        return self.protocol.step(self.core, self.threads[who], who).status is Status.BLOCKED

    def _do(self, step: StoryStep) -> None:
        who, thread = step.thread, self.threads[step.thread]
        if step.verb == "begins":
            self.threads[who] = self.protocol.begin(thread, step.name)
        elif step.verb == "interrupted by":
            self.threads[who] = self.protocol.interrupt(thread, Happening(step.name))
        elif step.verb == "leaves":
            self.threads[who] = self.protocol.leave(thread)
        elif step.verb == "stops waiting":
            self.threads[who] = self.protocol.stop_waiting(thread)
        elif step.verb in {"runs", "skips"}:
            done = self.protocol.step(self.core, thread, who)
            assert done.status is Status.RAN
            assert done.ran == (step.name if step.verb == "runs" else "")
            assert (str(done.effect) if done.effect else "") == step.effect
            self.core, self.threads[who] = done.core, done.thread
            self.effects += [(who, step.effect)] if step.effect else []
        else:
            assert step.verb == "turns sensitive"
