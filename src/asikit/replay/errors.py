"""What a user can do wrong with a replay, each as one line."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["PolicyError", "ReplayError", "SelectionError"]


class PolicyError(AsikitError):
    """A sensitivity policy that does not exist or cannot be used; the message names the file and the key."""


class ReplayError(AsikitError):
    """A trace whose rows contradict each other; the message names the table and the row."""


class SelectionError(AsikitError):
    """A task, process, CPU, phase or time that the recording does not have; the message names the nearest."""

    exit_code = 2  # wrong usage
