"""A terminal for a command under test."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

ASI = (sys.executable, "-c", "from asikit.cli import main; main()")
# The command leads a session of its own on the terminal, so that what is typed there reaches it as signals do.
_LEAD = """
import fcntl, os, sys, termios
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp(sys.argv[1], sys.argv[1:])
"""
_HANGS_SECONDS = 120
_OURS = ("ASI_PAGER", "PAGER", "LESS", "NO_COLOR", "COLUMNS", "LINES")


@dataclass
class Terminal:
    """A command that runs on a terminal of some size, and all that it has shown.

    :ivar shown: What the terminal was given so far, with lines ended by a newline alone.
    """

    process: subprocess.Popen[bytes]
    end: int
    shown: str = ""
    _raw: bytes = field(default=b"", repr=False)

    @classmethod
    def run(cls, *words: str, rows: int = 10, columns: int = 80, environment: Mapping[str, str] | None = None) -> Self:
        """Start a command; ``TERM`` is that of an ordinary terminal, and no pager is set but by ``environment``."""
        end, its = pty.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        around = {name: value for name, value in os.environ.items() if name not in _OURS}
        process = subprocess.Popen(
            [sys.executable, "-c", _LEAD, *words],
            stdin=its,
            stdout=its,
            stderr=its,
            env={**around, "TERM": "xterm", **(environment or {})},
        )
        os.close(its)
        return cls(process, end)

    def type(self, text: str) -> None:
        """Type."""
        os.write(self.end, text.encode())

    def until(self, pattern: str) -> None:
        """Read until the terminal shows something. Fails if the command ends before."""
        while not re.search(pattern, self.shown):
            assert self._read(), f"ended without {pattern!r}:\n{self.shown}"

    def finish(self) -> int:
        """Read to the end and return the exit status."""
        while self._read():
            pass
        os.close(self.end)
        return self.process.wait()

    def _read(self) -> bool:
        data = b""
        assert select.select([self.end], [], [], _HANGS_SECONDS)[0], f"nothing more is shown after:\n{self.shown}"
        with suppress(OSError):  # Linux says so when nobody has the other end any more
            data = os.read(self.end, 1 << 16)
        self._raw += data
        self.shown = self._raw.decode(errors="replace").replace("\r\n", "\n")
        return bool(data)
