"""Reports have words for all that a trace can hold."""

from __future__ import annotations

from asikit.report import info
from asikit.trace import EventKind, TlbFlush


def test_every_kind_of_event_has_words() -> None:
    """A kind without words would be in the sum of `asi info`, and in no line."""
    assert set(info._EVENT_WORDS) == {kind.name for kind in EventKind}
    assert set(info._TLB_FLUSH_WORDS) == {flush.name for flush in TlbFlush}
