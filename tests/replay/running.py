"""Running built traces through policies, compiled and by the reference, for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import TYPE_CHECKING, Any

from asikit.replay import ALL_CLASSES, Policy, ReferenceReplay, ReplayResult, load_policy, replay
from asikit.replay._tables import SideTables
from asikit.replay.engine import CompiledReplay
from asikit.replay.pieces import event_pieces
from asikit.replay.sensitivity import Sensitive, apply_policy

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from asikit.protocol import AsiClass
    from asikit.replay._tally import Tally
    from asikit.trace import Trace
    from tests.builders import TraceBuilder

HARDWALL = 0x100000
"""The bit of ``__GFP_HARDWALL`` in built traces."""
GFP_KERNEL = 0xCC0
GFP_USER = GFP_KERNEL | HARDWALL


def policy(name: str = "denylist-2025", **mechanism: Any) -> Policy:  # noqa: ANN401  (fields of Mechanism)
    """Give a shipped policy with fields of its mechanism changed."""
    loaded = load_policy(name)
    return changed(loaded, mechanism=changed(loaded.mechanism, **mechanism))


def written(text: str, folder: Path, name: str = "mine.toml") -> Path:
    """Write a policy file."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def run(
    builder: TraceBuilder,
    folder: Path,
    under: Policy | str = "denylist-2025",
    classes: frozenset[AsiClass] = ALL_CLASSES,
) -> ReplayResult:
    """Write a built trace and replay it."""
    folder.mkdir(exist_ok=True)
    loaded = load_policy(under) if isinstance(under, str) else under
    return replay(builder.write(folder / "t.asitrace"), [loaded], classes)[0]


def both_tallies(trace: Trace, under: Policy, classes: frozenset[AsiClass] = ALL_CLASSES) -> tuple[Tally, Tally]:
    """Run a trace through the compiled replay and through the reference."""
    tables = SideTables.of(trace)
    return tallies_of(list(trace.events()), under, apply_policy(under, tables), tables.tasks.height, classes)


def tallies_of(
    chunks: list[pl.DataFrame], under: Policy, sensitive: Sensitive, tasks: int, classes: frozenset[AsiClass]
) -> tuple[Tally, Tally]:
    """Run events through the compiled replay and through the reference."""
    compiled = CompiledReplay(under, classes, sensitive, tasks)
    reference = ReferenceReplay(under, classes, sensitive, tasks)
    for chunk in chunks:
        for piece in event_pieces(chunk):
            compiled.feed(piece)
        reference.feed(chunk.select("cpu", "kind", "arg", "stack").iter_rows())
    return compiled.tally(), reference.tally()
