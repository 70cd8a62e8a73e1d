"""What a user can get wrong in this room."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["LeakError"]


class LeakError(AsikitError):
    """A vulnerability, vector or mitigation that does not exist, or a file that does not describe one."""

    exit_code = 2
