"""What a user can get wrong with a mitigation."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["MitigationError"]


class MitigationError(AsikitError):
    """A mitigation that does not exist or cannot be used; the message names the file and the key."""
