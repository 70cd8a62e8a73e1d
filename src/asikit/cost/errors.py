"""What a user can do wrong with costs, each as one line."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["CalibrationError", "CompareError", "CostError", "HostError"]


class CostError(AsikitError):
    """A cost, a mitigation or a combination of them that cannot be used; the message names the file and the key."""


class CalibrationError(AsikitError):
    """This machine's costs cannot be measured; the message says what is missing."""


class HostError(AsikitError):
    """A machine's list of vulnerabilities cannot be read; the message names the file."""


class CompareError(AsikitError):
    """Two documents cannot be compared; the message names what differs."""
