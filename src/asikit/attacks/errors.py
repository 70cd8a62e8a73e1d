"""What a user can get wrong in this room."""

from __future__ import annotations

from typing import ClassVar

from asikit.errors import AsikitError

__all__ = ["LeakError"]


class LeakError(AsikitError):
    """A vulnerability, vector or mitigation that does not exist, or a file that does not describe one."""

    exit_code: ClassVar[int] = 2
