"""What comes in between at a point: the other CPU, an NMI, memory that turns sensitive; and when the story is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.machine.kernel import Act, Action
from asikit.protocol import Happening

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.machine.kernel import Kernel
    from asikit.proofs.stage.eavesdropper import Eavesdropper
    from asikit.proofs.stage.reader import ScriptReader
    from asikit.proofs.stage.turning import TurningPage

__all__ = ["InBetween", "StoryOver"]

H = Happening
_AFTER = 96
"""Points that a machine goes on for after the story's end."""
_TURN = 12
"""Points after which the other CPU goes on then."""
_STALLED = 400
"""Points for which a CPU goes on although the other's step is next, before that step is left out."""


class StoryOver(Exception):  # noqa: N818 - no error
    """Ends a run: the story has been followed, and whatever comes of it has happened. Says who still waits, if any."""


class InBetween:
    """Ticks off what has run, and says what is due at a point that a CPU passes.

    :param eavesdropper: Looks at every point.
    :param page: What turns sensitive in the story, if anything does.
    :param actors: How many CPUs the story is about, from CPU 0.
    """

    def __init__(
        self,
        kernel: Kernel,
        reader: ScriptReader,
        eavesdropper: Eavesdropper,
        page: TurningPage | None,
        actors: int,
    ) -> None:
        self._kernel = kernel
        self._reader, self._script = reader, reader.script
        self._eavesdropper = eavesdropper
        self._page = page
        self._actors = actors
        self._after = 0
        self._stalled = 0

    def at(self, point: str, cpu: int) -> Iterable[Action]:
        """Tick off what has run, and return what comes in between here."""
        self._eavesdropper.look()
        self._reader.ran(cpu, point)
        # Once the last check is done nothing comes in between on the way to untrusted code. The other core is no actor.
        if self._resumed(point, cpu) or (cpu >= self._actors and len(self._script)):
            return ()
        return self._due(cpu)

    def _resumed(self, point: str, cpu: int) -> bool:
        return point.partition(".")[0] in {H.RETURN_USER, H.VM_ENTRY} and not self._kernel.cpus[cpu].thread.frames

    def _due(self, cpu: int) -> Iterable[Action]:
        head = self._script.head
        if head is None:
            return self._go_on(cpu)
        if head.thread != cpu:
            return self._others_turn(head.thread)
        if head.verb == "turns sensitive" and self._page is not None:
            self._reader.take()
            self._page.turn(self._kernel.cpus[cpu])
            return (Action(Act.SWITCH, self._page.other),)
        if head.verb == "interrupted by" and head.name == H.NESTED_NMI and not self._untrusted(cpu):
            self._reader.take()
            return (Action(Act.NMI),)
        return ()

    def _others_turn(self, other: int) -> Iterable[Action]:
        """Let the CPU go on whose step is next, or leave the step out if it has not been able to for long."""
        if self._kernel.can_run(self._kernel.cpus[other]):
            self._stalled = 0
            return (Action(Act.SWITCH, other),)
        self._stalled += 1
        if self._stalled > _STALLED:
            self._stalled = 0
            self._reader.miss()
        return ()

    def _untrusted(self, cpu: int) -> bool:
        each = self._kernel.cpus[cpu]
        return bool(each.hw.cpl) or each.in_guest

    # After the story's end.

    def _go_on(self, cpu: int) -> Iterable[Action]:
        self._after += 1
        if self._after > _AFTER:
            self._kernel.crash(StoryOver(self._waits()))
        if self._after % _TURN == 0 and len(self._kernel.cpus) > 1:
            return (Action(Act.SWITCH, 1 if cpu == 0 else 0),)
        return ()

    def _waits(self) -> str:
        """Return who still waits for the sibling, after all that the machine was given to go on."""
        for cpu in self._kernel.cpus[: self._actors]:
            waiting = cpu.waiting
            if waiting is not None and not waiting.idle and not waiting.ready():
                return f"cpu {cpu.number} still waits for {waiting.what}"
        return ""
