"""A recording that a command opens says at the foot of the terminal how far it has been read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.cli._progress import progress

if TYPE_CHECKING:
    from asikit.trace import Trace

__all__ = ["open_trace"]


def open_trace(path: str) -> Trace:
    """Open a recording that the user named.

    :raises TraceError: It is none, or is truncated, or mixed with another, or newer than we know.
    """
    from asikit.trace import Trace

    trace = Trace.open(path)
    line, total = progress(), trace.rows("events")
    trace.watch = lambda events: line.at(events, "events", total=total)
    return trace
