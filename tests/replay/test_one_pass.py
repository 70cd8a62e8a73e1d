"""Who reads along in the pass of a replay: what it is told, what it sees, and what is refused for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.replay import By, Piece, ReplayError, ReplayPass, Selection, Subject, load_policy, replay
from asikit.replay.grouping import Grouping
from asikit.trace import EventKind
from tests.builders import TraceBuilder, small_trace
from tests.replay.running import GFP_USER

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt


class Reader:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.subject: Subject | None = None
        self.rows: list[tuple[int, ...]] = []
        self.groups: list[int] = []
        self.exits: list[list[int]] = []

    def begin(self, subject: Subject) -> None:
        """Note it, once and first."""
        assert self.subject is None
        self.subject = subject
        self.exits = [[] for _ in subject.policies]

    def feed(self, piece: Piece, group: npt.NDArray[np.uint32] | None, exits: Sequence[npt.NDArray[np.int64]]) -> None:
        """Note events, their groups, and the rows of the whole trace that exit."""
        assert self.subject is not None
        assert not any(column.flags.writeable for column in piece)
        for own, rows in zip(self.exits, exits, strict=True):
            own.extend((rows + len(self.rows)).tolist())
        self.rows += list(zip(*(column.tolist() for column in piece), strict=True))
        self.groups += [] if group is None else group.tolist()


def reading(number: int, exiting: int) -> TraceBuilder:
    """Give system calls of which the first ones touch sensitive memory."""
    b = TraceBuilder().task_switch("cat", pid=7).return_user()
    for trip in range(number):
        b.entry_syscall(0)
        if trip < exiting:
            b.touch_read(kind="shmem", gfp=GFP_USER)
        b.return_user()
    return b


def test_a_consumer_sees_every_event_with_its_clock(tmp_path: Path) -> None:
    """The pieces together are the trace, in its order, whatever parts it is in; and each reader sees them."""
    trace = small_trace().write(tmp_path / "t.asitrace", rows_per_part=10)
    readers = Reader(), Reader()
    ReplayPass(trace, [], readers).run()
    wanted = [row for chunk in trace.events(columns=Piece._fields) for row in chunk.select(Piece._fields).iter_rows()]
    assert [reader.rows for reader in readers] == [wanted, wanted]
    assert len(wanted) == 27


def test_a_consumer_is_told_what_the_pass_is_over(tmp_path: Path) -> None:
    """The side tables, the policies, and what each says of the memory, before the first event."""
    reader = Reader()
    policies = [load_policy("denylist-2025"), load_policy("allowlist-2022")]
    ReplayPass(small_trace().write(tmp_path / "t.asitrace"), policies, [reader]).run()
    assert reader.subject is not None
    assert (reader.subject.policies, reader.subject.groups) == (tuple(policies), 1)
    places = reader.subject.tables.places.height
    assert [sensitive.places.size for sensitive in reader.subject.sensitive] == [places, places]


def test_the_exits_of_each_policy(tmp_path: Path) -> None:
    """Under each policy a reader has the rows that exit, in the order of the policies; the counts are the replay's."""
    trace = reading(5, exiting=3).write(tmp_path / "t.asitrace", rows_per_part=4)
    policies = [load_policy("blanket"), load_policy("denylist-2025")]
    reader = Reader()
    replayed = ReplayPass(trace, policies, [reader]).run()
    touches = [row for row, event in enumerate(reader.rows) if event[1] == EventKind.TOUCH_READ]
    assert reader.exits == [[], touches]
    results = [one.result().to_dict() for one in replayed]
    assert results == [result.to_dict() for result in replay(trace, policies)]
    assert [result["exits"] for result in results] == [0, 3]


def test_groups(tmp_path: Path) -> None:
    """Where events are divided a reader has the group of each; a part has the events of its groups."""
    b = reading(2, exiting=1).task_switch("dog", pid=8)
    trace = b.entry_syscall(0).return_user().write(tmp_path / "t.asitrace", rows_per_part=5)
    grouping = Grouping.of(trace, Selection(), By.TASK)
    reader = Reader()
    (replayed,) = ReplayPass(trace, [load_policy("denylist-2025")], [reader], grouping=grouping).run()
    assert len(reader.groups) == len(reader.rows)
    for number, group in enumerate(grouping.groups, start=1):
        assert replayed.part([number], group).events == reader.groups.count(number)
    names = {grouping.groups[number - 1].name for number in set(reader.groups)}
    assert names == {"cat", "dog", "?"}


def test_what_a_consumer_would_follow_is_there(tmp_path: Path) -> None:
    """A place that is not there is refused before a reader sees it, even if no policy looks at it."""
    b = TraceBuilder().event(EventKind.TOUCH_READ, 4_000_000_000)
    trace, reader = b.write(tmp_path / "t.asitrace"), Reader()
    message = "table events: a touch refers to place 4000000000 of 0; check the trace with `asi info --verify`"
    with pytest.raises(ReplayError, match=message):
        ReplayPass(trace, [load_policy("off")], [reader]).run()
    assert reader.rows == []
