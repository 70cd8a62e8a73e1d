"""The hash table of exit sites counts what a dictionary counts, also when it has to grow."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from asikit.replay._loop import Events
from asikit.replay._sites import SiteTable
from asikit.replay._tally import NO_PLACE
from asikit.trace import EventKind

_EXITS = st.tuples(
    st.sampled_from([EventKind.TOUCH_READ, EventKind.TOUCH_FETCH, EventKind.TASK_SWITCH]),
    st.integers(0, 2**32 - 2),
    st.integers(0, 3),
    st.integers(0, 5),
)


@given(st.lists(st.lists(_EXITS, min_size=1, max_size=40), max_size=4))
def test_counts(batches: list[list[tuple[EventKind, int, int, int]]]) -> None:
    """Kind, place, stack and reason of each exit are one site; transitions of the same reason are one too."""
    reasons = np.array([0, 1, 0, 1, 2, 2], np.uint8)
    table = SiteTable(capacity=2)
    wanted: Counter[tuple[int, int, int, int]] = Counter()
    for batch in batches:
        kind, arg, stack, transition = (np.array(column) for column in zip(*batch, strict=True))
        of_one_group = np.zeros(len(batch), np.uint32)
        events = Events(
            kind.astype(np.uint8), kind.astype(np.uint8), arg.astype(np.uint32), stack.astype(np.uint32), of_one_group
        )
        table.add(events, np.arange(len(batch)), transition.astype(np.int64))
        for kind_, arg_, stack_, transition_ in batch:
            place = NO_PLACE if kind_ is EventKind.TASK_SWITCH else arg_
            wanted[int(kind_), place, stack_, int(reasons[transition_])] += 1
    found = {row[:4]: row[4] for row in table.frame(reasons).iter_rows()}
    assert found == dict(wanted)
