"""What a user can do wrong with a proof, each as one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.errors import AsikitError, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TooLargeError", "UnknownMutantError", "VerifyError"]


class VerifyError(AsikitError):
    """Options that contradict each other; the message says which, and what to do."""

    exit_code = 2


class UnknownMutantError(VerifyError):
    """A mutant that is not in the catalogue; the message names the nearest that is."""

    def __init__(self, name: str, known: Iterable[str]) -> None:
        super().__init__(f"no mutant {name!r}{nearest(name, known)} (asi verify --list-mutants)")


class TooLargeError(AsikitError):
    """An instance with more states than can be explored."""

    exit_code = 11
