"""What a user can ask of the threat model that there is not, each as one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.errors import AsikitError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["ThreatError", "UnknownMutantError"]


class ThreatError(AsikitError):
    """Something that makes no sense for the mitigation that was asked about; the message says what to do."""

    exit_code = 2


class UnknownMutantError(ThreatError):
    """A mutant that is not in the catalogue; the message names the nearest that is."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no mutant {name!r}{nearest(name, known)} (asi verify --list-mutants)")
