"""The order in which a counterexample's steps are told: of all that lead there, the one that is easiest read.

Exploration finds one of many shortest ways, and goes back and forth between the threads as it likes. Most of their
steps are no business of one another's, so the same steps can be put in an order in which each thread does as much as it
can before the other goes on.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

from asikit.proofs.explore import Happened, Path
from asikit.proofs.threads import swapped

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.proofs._table import Model
    from asikit.proofs.threads import Move


class _Core(NamedTuple):
    """Where two threads are: how many of its steps each has done, and the state that they have come to."""

    done: tuple[int, int]
    threads: tuple[Any, Any]
    shared: int
    contents: int


def with_fewest_switches(model: Model, path: Path) -> Path:
    """Return a way of the same steps to the same end that goes from one thread to the other as seldom as can be.

    :param model: Has two threads.
    """
    end = tuple(path.threads), path.shared
    leaks = _leaks(model, path.threads, path.shared, path.contents)
    own = [[step.move for step in path.steps if step.thread == who] for who in (0, 1)]
    thread, shared = model.start()
    adds = model.view(thread, shared).adds | model.view(thread, swapped(shared)).adds
    number = count()
    todo: list[tuple[int, int, int, _Core, tuple[Happened, ...]]] = []
    heappush(todo, (0, next(number), -1, _Core((0, 0), (thread, thread), shared, adds), ()))
    seen = set()
    while todo:
        switches, _, last, core, steps = heappop(todo)
        if (core, last) in seen:
            continue
        seen.add((core, last))
        if len(steps) == len(path.steps):
            if (core.threads, core.shared) == end and _leaks(model, *core[1:]) == leaks:
                return Path(steps, core.threads, core.shared, core.contents)
            continue
        for who in (0, 1):
            for move, after in _next(model, core, who, own[who][core.done[who] : core.done[who] + 1]):
                happened = Happened(who, move, core.contents, after.contents)
                heappush(todo, (switches + (who != last), next(number), who, after, (*steps, happened)))
    return path


def _next(model: Model, core: _Core, who: int, wanted: list[Move]) -> Iterator[tuple[Move, _Core]]:
    """Yield how a thread may do its next step, if it may do it here."""
    seen = core.shared if who == 0 else swapped(core.shared)
    others = model.view(core.threads[1 - who], swapped(seen)).adds
    for move in model.moves(core.threads[who], seen) if wanted else ():
        if (move.verb, move.name, move.loads) != (wanted[0].verb, wanted[0].name, wanted[0].loads):
            continue
        contents = core.contents & ~move.clears | others
        contents = model.layout.fold(contents) if move.folds else contents
        contents |= model.view(move.after, move.shared).adds
        first, second = core.threads
        threads = (move.after, second) if who == 0 else (first, move.after)
        done = (core.done[0] + (who == 0), core.done[1] + (who == 1))
        yield move, _Core(done, threads, move.shared if who == 0 else swapped(move.shared), contents)


def _leaks(model: Model, threads: tuple[Any, ...], shared: int, contents: int) -> bool:
    views = (model.view(thread, seen) for thread, seen in zip(threads, (shared, swapped(shared)), strict=True))
    return any(view.leak or view.forbids & contents for view in views)
