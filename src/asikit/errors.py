"""The one exception type that a user's mistake, file or machine can cause."""

from typing import ClassVar

__all__ = ["AsikitError"]


class AsikitError(Exception):
    """Base of everything that a user can cause.

    The message is one line that says what was wrong, where, and what to do. The command prints it as
    ``asi: error: MESSAGE`` and ends with ``exit_code``. Each room subclasses it.

    :cvar exit_code: The exit code of the command: 1 (failed) unless a subclass says otherwise.
    """

    exit_code: ClassVar[int] = 1
