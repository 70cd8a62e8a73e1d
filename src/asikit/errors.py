"""The one exception type that a user's mistake, file or machine can cause, and the hint for a misspelt name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AsikitError", "nearest"]


class AsikitError(Exception):
    """Base of everything that a user can cause.

    The message is one line that says what was wrong, where, and what to do. The command prints it as
    ``asi: error: MESSAGE`` and ends with ``exit_code``. Each room subclasses it.

    :cvar exit_code: The exit code of the command: 1 (failed) unless a subclass says otherwise.
    """

    exit_code: ClassVar[int] = 1


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known name nearest to a misspelt one.

    :return: ``'; the nearest is "NAME"'``, or an empty string when nothing is near.
    """
    close = get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f'; the nearest is "{close[0]}"' if close else ""
