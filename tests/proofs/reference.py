"""The exploration a second time, in plain Python over sets: what the compiled one is compared with.

Moves are the oracle's, found by `Protocol.step`; only the model's views are shared. What the structures hold is kept by
name, states are tuples, and the graph is walked as it stands: no commands, no tables, and no reductions.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from asikit.proofs import Party, Thread, World
from asikit.proofs.threads import swapped
from tests.proofs.oracle import Oracle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs import Move

Held = frozenset[tuple[str, Party]]


class Core(NamedTuple):
    """A whole state: what each thread is, what they share as the first sees it, and what is held where."""

    threads: tuple[Thread, ...]
    shared: int
    held: Held


@dataclass(frozen=True)
class Reference:
    """The exploration of `asikit.proofs.explore`, slowly."""

    world: World

    def run(self) -> tuple[int, int, bool]:
        """Return states, transitions, and whether there is a leak; all states are visited, leak or not."""
        start = self.start()
        seen = {start}
        queue = deque([start])
        transitions, leaks = 0, False
        while queue:
            core = queue.popleft()
            leaks = leaks or self.leaks(core)
            for after in self.successors(core):
                transitions += 1
                if after not in seen:
                    seen.add(after)
                    queue.append(after)
        return len(seen), transitions, leaks

    def start(self) -> Core:
        """Return the state after boot."""
        thread, shared = self.world.start()
        return self.settled(Core((thread,) * self.world.threads, shared, frozenset()))

    def successors(self, core: Core) -> Iterator[Core]:
        """Yield what every move of every thread leads to."""
        for who, thread in enumerate(core.threads):
            for move in Oracle(self.world).moves(thread, self.seen_by(core, who)):
                yield self.after(core, who, move)

    def after(self, core: Core, who: int, move: Move) -> Core:
        """Return the state after a thread's move."""
        cleared = {structure.name for structure in self.world.layout.structures if move.effect is not None
                   and structure.cleared_by is move.effect.kind}  # fmt: skip
        held = {entry for entry in core.held if entry[0] not in cleared}
        threads = tuple(move.after if index == who else thread for index, thread in enumerate(core.threads))
        shared = move.shared if who == 0 else swapped(move.shared)
        if move.folds:  # what the other thread brings in at once belongs to the old mm
            held |= {entry for entry in self.settled(core._replace(held=frozenset())).held if entry[0] in cleared}
            own = Party.USER, Party.GUEST
            held = {(name, Party.OTHER if party in own else party) for name, party in held}
        return self.settled(Core(threads, shared, frozenset(held)))

    def settled(self, core: Core) -> Core:
        """Return the state with all that the threads can bring into the structures."""
        adds: set[tuple[str, Party]] = set(core.held)
        for who, thread in enumerate(core.threads):
            adds |= self.named(self.world.view(thread, self.seen_by(core, who)).adds)
        return core._replace(held=frozenset(adds))

    def leaks(self, core: Core) -> bool:
        """Whether some thread leaks."""
        views = [self.world.view(thread, self.seen_by(core, who)) for who, thread in enumerate(core.threads)]
        return any(view.leak or core.held & self.named(view.forbids) for view in views)

    def seen_by(self, core: Core, who: int) -> int:
        """Return the shared bits as a thread sees them."""
        return core.shared if who == 0 else swapped(core.shared)

    def named(self, contents: int) -> set[tuple[str, Party]]:
        """Return packed contents by name."""
        held = self.world.layout.unpack(contents)
        return {(name, party) for name, parties in held.items() for party in Party if party & parties}
