"""What the trace room raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from asikit.errors import AsikitError

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST_REASON = 200


class TraceError(AsikitError):
    """A trace, or what was to become one, is not in order. The message names the file and the fault."""

    @classmethod
    def at(cls, file: Path | str, fault: str) -> Self:
        """Make the one-line message ``FILE: FAULT``; a file name that would not print as it is, is quoted."""
        name = str(file)
        return cls(f"{name if name.isprintable() else ascii(name)}: {fault}")

    @classmethod
    def no_trace(cls, folder: Path, fault: str) -> Self:
        """Say that what was named as a trace is none: wrong usage."""
        return cls.usage(str(cls.at(folder, fault)))

    @classmethod
    def from_os_error(cls, file: Path | str, doing: str, error: OSError) -> Self:
        """Say which file could not be read or written, and the system's reason."""
        return cls.at(file, f"cannot be {doing}: {error.strerror or error}")


class TraceExistsError(TraceError):
    """There is something by the trace's name, which was not to be overwritten."""


def first_line(error: BaseException) -> str:
    """Give the first line of another library's message, cut to a length that fits on a screen."""
    lines = str(error).strip().splitlines()
    line = lines[0] if lines else type(error).__name__
    return line if len(line) <= _LONGEST_REASON else line[: _LONGEST_REASON - 3] + "..."
