"""Remember, in the user's cache folder, which files of a trace have had the right hash."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

# A write after the hash was taken always shows in the file's times, unless it falls into the same tick of the file
# system's clock as the write before. So what was written just now is not remembered (git calls it "racily clean"). The
# coarsest tick is FAT's.
_TICK_NS: Final = 2_000_000_000


class CheckedFiles:
    """The files of one trace that had the hash that its ``meta.json`` says, as they were then.

    A file is known by its path and by all of stat(2) that changes when somebody writes to it; the change time nobody
    can set. Each is a line in a file named by the trace's content hash: a damaged line is that of no file, and where
    nothing can be read or kept, nothing is known.
    """

    def __init__(self, content_hash: str) -> None:
        """Read what is known; of most traces, nothing."""
        self._name = content_hash
        self._lines: frozenset[str] = frozenset()
        with suppress(OSError, RuntimeError, ValueError):
            self._lines = frozenset(self._file().read_text(encoding="utf-8").splitlines())

    def has(self, path: str, status: os.stat_result) -> bool:
        """Tell whether a file is known."""
        return _line(path, status) in self._lines

    def add(self, path: str, status: os.stat_result, when: int) -> None:
        """Remember a file, for the next time that the trace is opened.

        :param status: What stat(2) said before it was hashed.
        :param when: The time then, in ns since 1970.
        """
        if max(status.st_mtime_ns, status.st_ctime_ns) + _TICK_NS > when:
            return
        with suppress(OSError, RuntimeError):
            file = self._file()
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(f"{_line(path, status)}\n")

    def forget(self) -> None:
        """Know nothing, now and the next time."""
        self._lines = frozenset()
        with suppress(OSError, RuntimeError):
            self._file().unlink()

    def _file(self) -> Path:
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base) if base else Path.home() / ".cache") / "asikit" / "checked" / self._name


def _line(path: str, status: os.stat_result) -> str:
    numbers = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return " ".join([*map(str, numbers), path])
