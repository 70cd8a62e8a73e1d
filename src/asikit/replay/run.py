"""A trace on disk through one or several policies, in one pass over its events."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace as changed
from typing import TYPE_CHECKING

from asikit.protocol import AsiClass
from asikit.replay._steps import check_policy
from asikit.replay._tables import SideTables
from asikit.replay.causes import name_part, name_result
from asikit.replay.grouping import Grouping, Labeller
from asikit.replay.selection import Selection
from asikit.replay.sensitivity import apply_policy

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt
    import polars as pl

    from asikit.replay.engine import CompiledReplay
    from asikit.replay.policy import Policy
    from asikit.replay.result import ReplayResult
    from asikit.replay.selection import By
    from asikit.trace import Trace

    Columns = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.uint32], npt.NDArray[np.uint32]]

__all__ = ["ALL_CLASSES", "event_columns", "replay"]

ALL_CLASSES = frozenset({AsiClass.USERSPACE, AsiClass.KVM})
"""The classes that the published patches have."""

_PARTS_AHEAD = 2
_COLUMNS = ("cpu", "kind", "arg", "stack")


def replay(
    trace: Trace,
    policies: Sequence[Policy],
    classes: frozenset[AsiClass] = ALL_CLASSES,
    *,
    selection: Selection | None = None,
    by: By | None = None,
) -> list[ReplayResult]:
    """Run the ASI protocol over a recording, under each policy.

    Memory: the side tables, and three parts of the events at a time.

    :param classes: The classes of untrusted domains to protect from.
    :param selection: What is counted; everything when None.
    :param by: What the counts are divided into, besides.
    :return: One result a policy, in their order; the same trace gives the same results.
    :raises SelectionError: The recording does not have what is selected.
    :raises PolicyError: A policy does not fit the recorded kernel, or contradicts itself.
    :raises ReplayError: The trace's tables contradict each other.
    :raises TraceError: A part of the trace is damaged.
    """
    # numba takes a while to import, so only what runs a replay pays for it.
    from asikit.replay.engine import CompiledReplay  # noqa: PLC0415

    for policy in policies:
        check_policy(policy, classes)
    grouping = None if selection is None and by is None else Grouping.of(trace, selection or Selection(), by)
    labeller = None if grouping is None else Labeller(grouping)
    with _read_ahead(trace) as pieces:  # the first part is read while the side tables are
        tables = SideTables.of(trace)
        runs = [
            CompiledReplay(
                policy,
                classes,
                apply_policy(policy, tables),
                tables.tasks.height,
                groups=1 if grouping is None else grouping.size,
            )
            for policy in policies
        ]
        for columns in pieces:
            group = None if labeller is None else labeller.label(*columns[:3])
            for run in runs:
                run.feed(*columns, group)
    return [_result(run, tables, policy, classes, grouping) for run, policy in zip(runs, policies, strict=True)]


def _result(
    run: CompiledReplay,
    tables: SideTables,
    policy: Policy,
    classes: frozenset[AsiClass],
    grouping: Grouping | None,
) -> ReplayResult:
    if grouping is None:
        return name_result(run.tally(), tables, policy, classes)
    result = name_result(run.tally(grouping.selected), tables, policy, classes)
    result = changed(result, selection=grouping.selection.text)
    if grouping.by is None:
        return result
    parts = [
        name_part(run.tally([number], sites=False), group, policy, classes)
        for number, group in zip(grouping.selected, grouping.groups, strict=True)
    ]
    there = [part for part in parts if part.events]
    there.sort(key=lambda part: (-part.exits, -part.round_trips, -part.events, part.name))
    return changed(result, by=grouping.by.value, parts=tuple(there))


def event_columns(chunk: pl.DataFrame) -> list[Columns]:
    """Return a chunk's columns as the arrays that a run is fed with, without copying them.

    A chunk is in pieces, one for each row group of its file.
    """
    pieces = [chunk[name].get_chunks() for name in _COLUMNS]
    if len({tuple(piece.len() for piece in column) for column in pieces}) > 1:
        pieces = [[chunk[name].rechunk()] for name in _COLUMNS]
    return [
        (cpu.to_numpy(), kind.to_numpy(), arg.to_numpy(), stack.to_numpy())
        for cpu, kind, arg, stack in zip(*pieces, strict=True)
    ]


@contextmanager
def _read_ahead(trace: Trace) -> Iterator[Iterator[Columns]]:
    """Give the events piece by piece, decoding the next parts while the caller works on this one."""
    chunks = trace.events(columns=_COLUMNS)

    def pieces() -> Iterator[Columns]:
        while (chunk := coming.popleft().result()) is not None:
            coming.append(reader.submit(next, chunks, None))
            yield from event_columns(chunk)

    with ThreadPoolExecutor(1, thread_name_prefix="asikit-read") as reader:
        coming = deque(reader.submit(next, chunks, None) for _ in range(_PARTS_AHEAD))
        yield pieces()
