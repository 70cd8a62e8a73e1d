"""The one exception type that a user's mistake, file or machine can cause, and the hint for a misspelt name."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["AsikitError", "nearest"]


_WRONG_USAGE = 2


class AsikitError(Exception):
    """Base of everything that a user can cause.

    The message is one line that says what was wrong, where, and what to do. The command prints it as
    ``asi: error: MESSAGE`` and ends with ``exit_code``. Each room subclasses it.

    :ivar exit_code: The exit code of the command: 1 (failed) unless a subclass or :meth:`usage` says otherwise.
    """

    exit_code: int = 1

    @classmethod
    def usage(cls, message: str) -> Self:
        """Return an error about what the user wrote, a misspelt name for example: the command ends with 2."""
        error = cls(message)
        error.exit_code = _WRONG_USAGE
        return error


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known name nearest to a misspelt one.

    Names that begin with the word are nearer than any other: who writes ``zen2`` means ``zen2-7452``, not ``zen-1200``.

    :return: ``'; the nearest is "NAME"'``, or an empty string when nothing is near.
    """
    names = sorted(known)
    longer = [name for name in names if word and name.startswith(word)]
    close = get_close_matches(word, longer or names, n=1, cutoff=0 if longer else 0.5)
    return f'; the nearest is "{close[0]}"' if close else ""
