"""The explorer of `tests/protocol` as a model: the compiled exploration must reach just what that one does."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asikit.proofs import Move, View
from asikit.proofs.threads import OWN_BEHIND, SIBLING_BEHIND, core_of, shared_bits
from asikit.protocol import Frame, Space, ThreadState
from asikit.protocol.stepping import HANDLER, Status
from tests.protocol.exploring import CLEARS, NESTED, Explorer, Hardware, World, compiled_invariants

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.protocol.expressions import Truth

TRAINED, L1D, FILL_BUFFERS = 1, 2, 4
BITS = dict(zip(Hardware._fields, (TRAINED, L1D, FILL_BUFFERS), strict=True))
IN_NMI, SIBLING_IN_NMI = OWN_BEHIND, SIBLING_BEHIND
"""The bits that say who lags behind are free here, and say whether a thread is in an NMI: a core has one at a time."""


@dataclass(frozen=True)
class Contents:
    """Three bits, and no switches of mm."""

    bits: int = 3
    other: int = 0

    def fold(self, contents: int) -> int:
        """Return them as they are."""
        return contents


@dataclass(frozen=True)
class Legacy:
    """An Explorer's moves and checks."""

    explorer: Explorer
    layout: Contents = Contents()
    invariants: tuple[tuple[str, Truth], ...] = field(init=False)

    def __post_init__(self) -> None:
        """Compile the invariants."""
        config = self.explorer.protocol.config
        object.__setattr__(self, "invariants", compiled_invariants(config) if config.asi else ())

    @property
    def threads(self) -> int:
        """Hardware threads."""
        return self.explorer.threads

    def start(self) -> tuple[ThreadState, int]:
        """Return what a thread is after boot, and the shared bits."""
        world = self.explorer.start()
        return world.threads[0], shared_bits(world.core, 0)

    def world(self, thread: ThreadState, shared: int) -> World:
        """Return a world with this thread, and a sibling of which only the NMI matters."""
        core, _ = core_of(shared)
        frames = (Frame(HANDLER),) if shared & SIBLING_IN_NMI else ()
        sibling = self.explorer.protocol.initial_thread()._replace(frames=frames)
        return World(core, (thread, sibling)[: self.threads])

    def moves(self, thread: ThreadState, shared: int) -> Iterator[Move]:
        """Yield the explorer's moves."""
        world = self.world(thread, shared)
        for name, core, after, effect, owed in self.explorer._thread_moves(world, 0, thread):
            nmi = any(frame.program in NESTED for frame in after.frames) * IN_NMI
            bits = shared_bits(core, nmi | shared & SIBLING_IN_NMI)
            clears = BITS.get(CLEARS.get(effect.kind, ""), 0) if effect is not None else 0
            yield Move("legacy", name, after, bits, effect, clears, owed=owed)  # type: ignore[arg-type]

    def view(self, thread: ThreadState, shared: int) -> View:
        """Return what the explorer's `settle` and `checker` say of one thread."""
        core, _ = core_of(shared)
        config = self.explorer.protocol.config
        env = (*thread.cpu, *thread.task, *core[0], *core[1])
        broken = [name for name, holds in self.invariants if not holds(env)]
        leak = "" if broken in ([], ["sibling-stays-out"]) and self.threads == 1 else "".join(broken)
        if core[0].untrusted:
            return View(TRAINED, L1D | FILL_BUFFERS, leak)
        if thread.cpu.cr3 != Space.UNRESTRICTED:
            return View(0, 0, leak)
        settled = self.explorer.settle(World(core, (thread,), Hardware())).hardware
        adds = sum(bit for name, bit in BITS.items() if getattr(settled, name))
        return View(adds, TRAINED if config.asi else 0, leak)

    def spins(self, thread: ThreadState, shared: int) -> bool:
        """Whether a thread waits."""
        if not thread.frames or self.explorer.protocol.in_handler(thread):
            return False
        core, _ = core_of(shared)
        return self.explorer.protocol.step(core, thread, 0).status is Status.BLOCKED
