"""The workload's standard streams: of what kind the user's are, and passing on what goes through them."""

from __future__ import annotations

import io
import os
import select
import stat
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, Self

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator
    from io import BufferedReader

__all__ = ["Feeder", "Forwarder", "Output", "Streams"]

_PIECE_BYTES = 1 << 16
_PATIENCE_MS = 200
"""How soon a thread that waits for input notices that none is wanted any more."""


class Output(Protocol):
    """What the workload's output can go to."""

    def fileno(self) -> int:
        """Give the number of the file behind; without one, OSError."""

    def write(self, data: bytes, /) -> int:
        """Write."""

    def flush(self) -> None:
        """Write what is buffered."""


class _Nothing(io.BytesIO):
    """An input that stands for /dev/null, and need not be closed."""


@dataclass(frozen=True, slots=True)
class Streams:
    """Standard input, output and error of the workload; None: closed."""

    stdin: BinaryIO | None
    out: Output | None
    err: Output | None

    @classmethod
    def of_this_process(cls) -> Self:
        """Give this process's own. Python has None for what was closed when it began."""
        stdin, out, err = (None if stream is None else stream.buffer for stream in (sys.stdin, sys.stdout, sys.stderr))
        return cls(stdin, out, err)

    @classmethod
    def to(cls, out: Output, err: Output, stdin: BinaryIO | None = None) -> Self:
        """Give streams that end in two files; without ``stdin`` the input is empty."""
        return cls(stdin or _Nothing(), out, err)

    def kinds(self) -> tuple[str, str, str]:
        """Give the kinds, as guest/init.c knows them."""
        out, err = _kind(self.out), _kind(self.err)
        return _kind(self.stdin), out, "out" if err == "pipe" and _are_one(self.out, self.err) else err

    def words(self) -> Iterator[str]:
        """Give the words for init."""
        for name, kind in zip(("stdin", "stdout", "stderr"), self.kinds(), strict=True):
            yield from (name, kind)
        terminals = [stream for stream in (self.out, self.err, self.stdin) if stream and _kind(stream) == "tty"]
        if terminals:
            size = os.get_terminal_size(terminals[0].fileno())
            yield from ("window", f"{size.lines} {size.columns}")


def _status(stream: BinaryIO | Output | None) -> os.stat_result | None:
    """Give what the file behind a stream is; None: there is none."""
    try:
        return os.fstat(stream.fileno()) if stream else None
    except (OSError, AttributeError):  # not of the operating system (io.UnsupportedOperation), or closed
        return None


def _kind(stream: BinaryIO | Output | None) -> str:
    status = _status(stream)
    if stream is None:
        return "closed"
    if isinstance(stream, _Nothing):
        return "null"
    if status is None or not stat.S_ISCHR(status.st_mode):
        return "pipe"
    if os.isatty(stream.fileno()):
        return "tty"
    return "null" if status.st_rdev == Path(os.devnull).stat().st_rdev else "pipe"


def _are_one(one: Output | None, other: Output | None) -> bool:
    first, second = _status(one), _status(other)
    return first is not None and second is not None and os.path.samestat(first, second)


class Forwarder(threading.Thread):
    """Passes on one stream of the workload's output.

    When nobody takes it any more it is still read, or the guest would wait for that for ever.
    """

    def __init__(self, source: BufferedReader, target: Output | None) -> None:
        """Prepare to read from ``source``; None drops all."""
        super().__init__(daemon=True)
        self._source = source
        self._target = target
        self.failure: OSError | None = None
        """Why it could not be written; a reader that has gone is no failure."""

    def run(self) -> None:
        """Read to the end."""
        target = self._target
        while data := self._source.read1(_PIECE_BYTES):
            if target is None:
                continue
            try:
                target.write(data)
                target.flush()
            except BrokenPipeError:
                target = None
            except OSError as error:
                self.failure, target = error, None


class Feeder(threading.Thread):
    """Passes what the user sends to the recorder's pipe, and rings the guest's bell for it."""

    def __init__(self, source: BinaryIO, pipe: int, bell: socket.socket) -> None:
        """Prepare to read from ``source``. The thread closes ``pipe`` at the end of the input."""
        super().__init__(daemon=True)
        self._source = source
        self._pipe = pipe
        self._bell = bell
        os.set_blocking(pipe, False)
        bell.setblocking(False)  # noqa: FBT003 - it takes no names
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()
        self.join()

    def run(self) -> None:
        """Read to the end, or until nobody wants more."""
        try:
            with suppress(BrokenPipeError):  # the guest has gone
                while (data := self._next()) is not None:
                    self._pass_on(memoryview(data))
        finally:
            os.close(self._pipe)
            self._ring()

    def _pass_on(self, data: memoryview) -> None:
        room = select.poll()
        room.register(self._pipe, select.POLLOUT)
        while data and not self._stopped.is_set():
            if room.poll(_PATIENCE_MS):
                data = data[os.write(self._pipe, data) :]
                self._ring()

    def _ring(self) -> None:
        with suppress(OSError):  # it has been rung often enough, or the guest has gone
            self._bell.send(b"!")

    def _next(self) -> bytes | None:
        """Wait for input; None at its end. A background job leaves its terminal alone."""
        try:
            number = self._source.fileno()
        except (OSError, AttributeError):
            return self._source.read(_PIECE_BYTES) or None
        waiting = select.poll()
        waiting.register(number, select.POLLIN)
        while not self._stopped.is_set():
            if _in_background(number):
                self._stopped.wait(_PATIENCE_MS / 1000)
            elif waiting.poll(_PATIENCE_MS):
                return os.read(number, _PIECE_BYTES) or None
        return None


def _in_background(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # no terminal, or not the one that controls this process
        return False
