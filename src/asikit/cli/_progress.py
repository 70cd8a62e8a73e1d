"""One line at the foot of a terminal that says how far a command has come."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Self

import click

if TYPE_CHECKING:
    from types import TracebackType

    from asikit.record import Output, RecordingStatus

__all__ = ["Above", "Progress", "StatusLine", "progress"]

_TICK_SECONDS = 0.5
_SHORT_SECONDS = 1.0
"""A recording that is done sooner is not worth a line."""
_LONG_SECONDS = 1.5
"""Another command that is done a tick later is not worth one."""
_CLEAR = "\r\x1b[K"


class FootLine(threading.Thread, ABC):
    """A line on stderr, if that is a terminal, until its block ends. A context manager."""

    def __init__(self, *, after: float) -> None:
        """Prepare.

        :param after: Seconds before there is anything to see.
        """
        super().__init__(daemon=True)
        self._after = after
        self._began = time.monotonic()
        self._shown = False
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
        self.end()

    def end(self) -> None:
        """Clear the line and end."""
        self._ended.set()
        if self.ident is not None:
            self.join()
        with self._lock:
            self._clear()

    def run(self) -> None:
        """Show the line twice a second."""
        if self._ended.wait(self._after):
            return
        while not self._ended.wait(_TICK_SECONDS):
            with self._lock:
                self._show()

    def say(self, line: str) -> None:
        """Write a line of ours above."""
        with self._lock:
            self._clear()
            click.echo(f"asi: {line}", err=True)

    @abstractmethod
    def text(self, seconds: float) -> str:
        """Return what the line says now, this long after it began; nothing, to leave it as it is."""

    def _show(self) -> None:
        text = self.text(time.monotonic() - self._began)
        if text:
            sys.stderr.write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
            sys.stderr.flush()
            self._shown = True

    def _clear(self) -> None:
        if self._shown:
            sys.stderr.write(_CLEAR)
            sys.stderr.flush()
            self._shown = False


class Progress(FootLine):
    """How long a command takes, what it has done, and when it will end where that can be known."""

    def __init__(self, context: click.Context | None = None) -> None:
        """Prepare to show how far the command of a context has come."""
        super().__init__(after=_LONG_SECONDS)
        self._context = context
        self._done, self._total, self._unit = 0, 0, ""
        self._since = self._began

    def at(self, done: int, unit: str, *, total: int = 0) -> None:
        """Say how far it has come; less than before, if it begins anew.

        :param unit: What is counted.
        :param total: How many there are; 0 if nobody knows.
        """
        if done < self._done:
            self._since = time.monotonic()
        self._done, self._total, self._unit = done, total, unit

    def text(self, seconds: float) -> str:
        """Return the command's name, what it has done, and the time."""
        name = self._context.invoked_subcommand if self._context is not None else None
        said = [name or "working"]
        if self._total:
            said.append(f"{self._done:,} of {self._total:,} {self._unit}")
        elif self._unit:
            said.append(f"{self._done:,} {self._unit}")
        said.append(_time(seconds))
        here = seconds - (self._since - self._began)
        if 0 < self._done < self._total and here > 0:
            said.append(f"about {_time(here / self._done * (self._total - self._done))} left")
        return f"asi: {', '.join(said)}"


def progress() -> Progress:
    """Return the line of the command that runs; outside one, a line that is never shown."""
    context = click.get_current_context(silent=True)
    found = context.find_root().obj if context is not None else None
    return found if isinstance(found, Progress) else Progress()


class StatusLine(FootLine):
    """Shows the status of a recording.

    What else is written to a terminal meanwhile is to go through :meth:`above`.
    """

    def __init__(self, status: RecordingStatus, *, verbose: bool = False) -> None:
        """Prepare to show ``status``.

        :param verbose: Write a line for each stage, too, wherever stderr goes.
        """
        super().__init__(after=_SHORT_SECONDS)
        self._status = status
        if verbose:
            status.told = self._say_stage
        self._in_line = False
        """The workload's last output has not ended its line, on which nothing is shown then."""

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

    def text(self, seconds: float) -> str:
        """Return the stage of the recording, and how much there is of it."""
        return "" if self._in_line else _text(self._status, seconds)


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


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _text(status: RecordingStatus, seconds: float) -> str:
    from asikit.report import size_text

    said = f"asi: {status.stage}, {seconds:.0f} s"
    if status.events:
        size = f", {size_text(status.bytes)}" if status.bytes else ""
        said += f"; guest {status.guest_ns / 1e9:.2f} s, {status.events:,} events{size}"
    return said
