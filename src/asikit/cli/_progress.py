"""One line at the foot of a terminal that says how far a recording has come."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from types import TracebackType

    from asikit.record import Output, RecordingStatus

__all__ = ["Above", "StatusLine"]

_TICK_SECONDS = 0.5
_SHORT_SECONDS = 1.0
"""What is done sooner is not worth a line."""
_CLEAR = "\r\x1b[K"


class StatusLine(threading.Thread):
    """Shows a status on stderr, if that is a terminal, until its block ends. A context manager.

    What else is written to a terminal meanwhile is to go through :meth:`above`.
    """

    def __init__(self, status: RecordingStatus, *, verbose: bool = False) -> None:
        """Prepare to show ``status``.

        :param verbose: Write a line for each stage, too, wherever stderr goes.
        """
        super().__init__(daemon=True)
        self._status = status
        if verbose:
            status.told = self._say_stage
        self._began = time.monotonic()
        self._shown = False
        self._in_line = False
        """The workload's last output has not ended its line, on which nothing is shown then."""
        self._lock = threading.Lock()
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        """Begin."""
        if sys.stderr is not None and sys.stderr.isatty():
            self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Clear the line and end."""
        self._ended.set()
        if self.ident is not None:
            self.join()
        with self._lock:
            self._clear()

    def run(self) -> None:
        """Show the status twice a second."""
        if self._ended.wait(_SHORT_SECONDS):
            return
        while not self._ended.wait(_TICK_SECONDS):
            with self._lock:
                if not self._in_line:
                    self._show()

    def say(self, line: str) -> None:
        """Write a line of ours above."""
        with self._lock:
            self._clear()
            click.echo(f"asi: {line}", err=True)

    def _say_stage(self, stage: str) -> None:
        self.say(f"[{time.monotonic() - self._began:.1f} s] {stage}")

    def above(self, stream: Output | None) -> Output | None:
        """Give a file for what the workload writes to ``stream``: the line makes room for it on a terminal."""
        return Above(stream, self) if stream is not None and os.isatty(stream.fileno()) else stream

    def make_room(self, data: bytes) -> None:
        """Clear the line, as ``data`` comes now."""
        with self._lock:
            self._clear()
            self._in_line = not data.endswith(b"\n")

    def _show(self) -> None:
        text = _text(self._status, time.monotonic() - self._began)
        sys.stderr.write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
        sys.stderr.flush()
        self._shown = True

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
            self._shown = False


class Above:
    """A stream of the workload's that is a terminal, above the status line."""

    def __init__(self, stream: Output, line: StatusLine) -> None:
        """Write to ``stream``."""
        self._stream = stream
        self._line = line

    def fileno(self) -> int:
        """Give the number of the file behind."""
        return self._stream.fileno()

    def write(self, data: bytes) -> int:
        """Write, after the line has been cleared."""
        self._line.make_room(data)
        return self._stream.write(data)

    def flush(self) -> None:
        """Write what is buffered."""
        self._stream.flush()


def _text(status: RecordingStatus, seconds: float) -> str:
    from asikit.report import size_text

    said = f"asi: {status.stage}, {seconds:.0f} s"
    if status.events:
        size = f", {size_text(status.bytes)}" if status.bytes else ""
        said += f"; guest {status.guest_ns / 1e9:.2f} s, {status.events:,} events{size}"
    return said
