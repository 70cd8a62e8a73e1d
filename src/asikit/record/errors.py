"""Errors of recording."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["RecordError", "WorkloadError"]


class RecordError(AsikitError):
    """A recording could not be made; nothing is left of it."""


class WorkloadError(RecordError):
    """The workload could not be started in the guest."""
