"""The workloads on a stock kernel, recorded in one guest, and replayed piece by piece."""

from __future__ import annotations

import io
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from asikit.record import Recording, Streams, record
from asikit.replay import ALL_CLASSES, Policy, load_policy
from asikit.replay._tables import SideTables
from asikit.replay.causes import name_result
from asikit.replay.engine import CompiledReplay
from asikit.replay.pieces import event_pieces
from asikit.replay.sensitivity import apply_policy
from asikit.trace import TOUCH_KINDS, EventKind, PageKind, Region, Trace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import numpy.typing as npt

    from asikit.protocol import ExitReason
    from asikit.replay._tally import Tally
    from asikit.replay.pieces import Piece as EventPiece

__all__ = ["Piece", "Work", "build", "policies", "record_works", "replay_pieces"]

APPEND = "hardened_usercopy=off transparent_hugepage=never"
"""The measured kernel does not check what it copies to and from user space, and was built without huge pages."""

_NODE_FUNCTIONS = (
    "__alloc_pages*",
    "__alloc_frozen_pages*",
    "*_zone_page_state",
    "*_node_page_state",
    "*_lruvec_page_state*",
    "*_lruvec_state*",
)
"""Functions that read nothing else from before the page allocator than the node's data."""

_SITE = ("kind", "place", "stack", "reason")


@dataclass(frozen=True)
class Work:
    """A workload with so many operations."""

    workload: str
    size: int


@dataclass(frozen=True)
class Piece:
    """What is between the marks of a work, under one policy.

    :ivar causes: The exits by cause.
    """

    work: Work
    exits: int
    by_reason: Mapping[str, int]
    causes: Mapping[str, int]


def policies() -> dict[str, Policy]:
    """Give the policy of each variant of the measured kernel: memory handed out at boot mapped, or not."""
    return {"m": load_policy("denylist-2025"), "u": load_policy("no-boot-memory")}


def build(folder: Path) -> Path:
    """Compile the workloads."""
    program = folder / "workloads"
    compiler = str(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))
    source = Path(__file__).with_name("workloads.c")
    subprocess.run([compiler, "-O2", "-static", "-pthread", "-o", str(program), str(source)], check=True)
    return program


def record_works(
    works: Sequence[Work], folder: Path, kernel: Path | None = None, *, say: Callable[[str], None]
) -> Trace:
    """Record works one after the other, in one guest."""
    words = (str(build(folder)), "run", *(f"{work.workload}:{work.size}" for work in works))
    trace = folder / "validation.asitrace"
    out, err = io.BytesIO(), io.BytesIO()
    recording = Recording(words, kernel=kernel, append=APPEND, bare=True)
    done = record(recording, trace, say=say, overwrite=True, streams=Streams.to(out, err))
    if done.exit_status:
        raise RuntimeError(f"in the guest: {err.getvalue().decode().strip() or f'exit status {done.exit_status}'}")
    return Trace.open(trace)


def replay_pieces(trace: Trace, works: Sequence[Work], under: Policy, *, node_mapped: bool = False) -> list[Piece]:
    """Replay a recording of works, and count the exits of each between its marks: of all tasks, as they were counted.

    :param node_mapped: Take the node's data for mapped, whatever the policy says.
    """
    tables = SideTables.of(trace)
    sensitive = apply_policy(under, tables)
    if node_mapped:
        sensitive = replace(sensitive, places=np.where(_node_places(trace, tables), 0, sensitive.places))
    run = CompiledReplay(under, ALL_CLASSES, sensitive, tables.tasks.height)
    marks = {int(number): name for number, name in trace.meta["syscalls"].items() if name in {"getsid", "getpgid"}}
    tallies: list[tuple[str, Tally]] = []
    for events, mark in _cut(trace, marks):
        run.feed(events)
        if mark is not None:
            tallies.append((mark, run.tally()))
    pieces = [
        (before, after)
        for (first, before), (second, after) in pairwise(tallies)
        if (first, second) == ("getsid", "getpgid")
    ]
    if len(pieces) != len(works) or len(tallies) != 2 * len(works):
        raise RuntimeError(f"{len(tallies)} marks in the recording of {len(works)} works")
    return [_piece(work, *piece, tables, under) for work, piece in zip(works, pieces, strict=True)]


def _node_places(trace: Trace, tables: SideTables) -> npt.NDArray[np.bool_]:
    """Tell which places are in the node's ``struct pglist_data``.

    It is one piece of memory, with the zones' lists, which are read at its begin, and counters at its end. With
    CONFIG_NUMA it is from memblock; without, as the measured kernel is, it is in the kernel's image.
    """
    of_node = tables.symbols_matching(_NODE_FUNCTIONS)[tables.symbol_of_stack[tables.access_frame]]
    hit = np.zeros(tables.places.height, np.bool_)
    for chunk in trace.events(columns=("kind", "arg", "stack")):
        touches = chunk.filter(pl.col("kind").is_in(list(TOUCH_KINDS)))
        hit[touches["arg"].to_numpy()[of_node[touches["stack"].to_numpy()]]] = True
    place = tables.places.with_row_index("place").join(
        tables.pages.with_row_index("page").select(pl.col("page").cast(pl.UInt32), "frame", "kind"), on="page"
    )
    before = place.filter(pl.col("region") == Region.DIRECT_MAP, pl.col("kind") == PageKind.RESERVED)
    found = before.filter(pl.Series(hit[before["place"].to_numpy()]))["frame"]
    node = before.filter(pl.col("frame").is_between(found.min(), found.max()))["place"].to_numpy()
    return np.isin(np.arange(tables.places.height), node)


def _cut(trace: Trace, marks: Mapping[int, str]) -> Iterator[tuple[EventPiece, str | None]]:
    """Give the events up to each mark, with its name, and those after the last."""
    for chunk in trace.events(columns=("cpu", "kind", "arg", "stack")):
        for piece in event_pieces(chunk):
            at = np.flatnonzero((piece.kind == EventKind.ENTRY_SYSCALL) & np.isin(piece.arg, list(marks)))
            for begin, end in pairwise([0, *(at + 1).tolist(), len(piece.kind)]):
                last = int(piece.arg[end - 1]) if end - 1 in at else None
                own = slice(begin, end)
                events = piece._replace(
                    cpu=piece.cpu[own], kind=piece.kind[own], arg=piece.arg[own], stack=piece.stack[own]
                )
                yield events, None if last is None else marks[last]


def _piece(work: Work, before: Tally, after: Tally, tables: SideTables, under: Policy) -> Piece:
    reasons: Counter[ExitReason] = after.reasons - before.reasons
    sites = after.sites.join(before.sites, on=_SITE, how="left", suffix="_before").select(
        *_SITE, exits=(pl.col("exits") - pl.col("exits_before").fill_null(0)).cast(pl.UInt32)
    )
    sites = sites.filter(pl.col("exits") > 0)
    causes: Counter[str] = Counter()
    for cause in name_result(replace(after, sites=sites), tables, under, ALL_CLASSES).causes:
        touched = " ".join(word for word in (cause.access, cause.kind) if word)
        causes[": ".join([cause.reason, f"{cause.function} <- {cause.caller}", touched][: 3 if touched else 2])] += (
            cause.exits
        )
    return Piece(work, reasons.total(), {reason.value: count for reason, count in reasons.items()}, causes)
