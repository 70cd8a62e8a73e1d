"""What a user can do wrong with a proof, each as one line."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["TooLargeError", "VerifyError"]


class VerifyError(AsikitError):
    """Options that contradict each other; the message says which, and what to do."""

    exit_code = 2


class TooLargeError(AsikitError):
    """An instance with more states than can be explored."""

    exit_code = 11
