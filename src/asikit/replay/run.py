"""A trace on disk through one or several policies, in one pass over its events."""

from __future__ import annotations

from dataclasses import replace as changed
from typing import TYPE_CHECKING

from asikit.replay.grouping import Grouping
from asikit.replay.one_pass import ALL_CLASSES, ReplayPass
from asikit.replay.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.protocol import AsiClass
    from asikit.replay.one_pass import Replayed
    from asikit.replay.policy import Policy
    from asikit.replay.result import ReplayResult
    from asikit.replay.selection import By
    from asikit.trace import Trace

__all__ = ["replay"]


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
    grouping = None if selection is None and by is None else Grouping.of(trace, selection or Selection(), by)
    replayed = ReplayPass(trace, policies, classes=classes, grouping=grouping).run()
    return [_result(one, grouping) for one in replayed]


def _result(replayed: Replayed, grouping: Grouping | None) -> ReplayResult:
    if grouping is None:
        return replayed.result()
    result = changed(replayed.result(grouping.selected), selection=grouping.selection.text)
    if grouping.by is None:
        return result
    parts = [replayed.part([number], group) for number, group in zip(grouping.selected, grouping.groups, strict=True)]
    there = [part for part in parts if part.events]
    there.sort(key=lambda part: (-part.exits, -part.round_trips, -part.events, part.name))
    return changed(result, by=grouping.by.value, parts=tuple(there))
