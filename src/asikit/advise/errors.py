"""What goes wrong when policies are looked for."""

from __future__ import annotations

from asikit.errors import AsikitError

__all__ = ["AdviseError"]


class AdviseError(AsikitError):
    """Nothing can be advised about this, or the solver's answer does not hold."""
