"""T3: ASI flushes no more often than the blanket mitigation, but for exits inside nested handlers.

An account is kept beside the model. The blanket mitigation would flush the predictors at each entry from untrusted
code, and the data side channels at the return from it: each entry pays in one of both. A nested exit pays in one more,
when it writes CR3. Each flush that ASI asks for is drawn. Whenever untrusted code runs, the account is not below zero.
It is cut off at its upper end, which only makes the claim harder.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from asikit.proofs.threads import Mode, Move, Thread, View
from asikit.protocol import HANDLER, PRIMITIVES, FlushSide

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs.model import World
    from asikit.protocol import EffectKind
    from asikit.threat import ContentsLayout

MOST = 2
"""Where the account is cut off above; and what an exit that has not written CR3 yet may draw in advance."""
CONTROL, DATA = (
    next(each.kind for each in PRIMITIVES if each.side is side) for side in (FlushSide.CONTROL, FlushSide.DATA)
)
"""The primitive that stands for each flush: the first one, which is asked for once in it."""


class Counted(NamedTuple):
    """A hardware thread and its account: flushes that the blanket mitigation has made and ASI has not."""

    thread: Thread
    control: int = 0
    data: int = 1  # the first return, from booting
    broken: str = ""


@dataclass(frozen=True)
class CostWorld:
    """The model with the account; for one thread."""

    world: World

    @property
    def threads(self) -> int:
        """Hardware threads."""
        return self.world.threads

    @property
    def layout(self) -> ContentsLayout:
        """The structures."""
        return self.world.layout

    def start(self) -> tuple[Counted, int]:
        """Return the thread after boot, and the shared bits."""
        thread, shared = self.world.start()
        return Counted(thread), shared

    def moves(self, counted: Counted, shared: int) -> Iterator[Move]:
        """Yield the model's moves, with what they mean for the account."""
        if counted.broken:
            return
        for move in self.world.moves(counted.thread, shared):
            pays = counted.thread.mode is not Mode.KERNEL and move.after.mode is Mode.KERNEL
            pays = pays or self._nested_exit(counted.thread, move)
            control = counted.control + pays - self._asks(move, CONTROL)
            data = counted.data + pays - self._asks(move, DATA)
            least = -MOST if move.after.mode is Mode.KERNEL else 0
            broken = "a flush that the blanket mitigation would not make" if min(control, data) < least else ""
            after = Counted(move.after, min(control, MOST), min(data, MOST), broken)
            yield move._replace(after=after)  # type: ignore[arg-type]

    def view(self, counted: Counted, shared: int) -> View:
        """Nothing is looked for in the structures."""
        del counted, shared
        return View()

    def spins(self, counted: Counted, shared: int) -> bool:
        """Whether the thread waits."""
        return self.world.spins(counted.thread, shared)

    def _nested_exit(self, thread: Thread, move: Move) -> bool:
        frames = thread.state.frames
        if move.verb != "runs" or not any(frame.program == HANDLER for frame in frames):
            return False
        name, pc = frames[-1]
        return self.world.protocol.programs[name].ops[pc].exits is not None

    def _asks(self, move: Move, kind: EffectKind) -> bool:
        return move.effect is not None and move.effect.kind is kind
