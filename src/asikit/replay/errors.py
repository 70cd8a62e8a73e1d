"""What a user can do wrong with a replay, each as one line."""

from difflib import get_close_matches
from typing import TYPE_CHECKING

from asikit.errors import AsikitError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PolicyError", "ReplayError", "nearest"]


class PolicyError(AsikitError):
    """A sensitivity policy that does not exist or cannot be used; the message names the file and the key."""


class ReplayError(AsikitError):
    """A trace whose rows contradict each other; the message names the table and the row."""


def nearest(word: str, known: "Iterable[str]") -> str:
    """Return a hint with the known name nearest to a misspelt one.

    :return: ``'; the nearest is "NAME"'``, or an empty string when nothing is near.
    """
    close = get_close_matches(word, sorted(known), n=1, cutoff=0.5)
    return f'; the nearest is "{close[0]}"' if close else ""
