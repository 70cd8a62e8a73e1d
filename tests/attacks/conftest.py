"""The matrix of the default mitigations, attacked once for all tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pytest

from asikit.attacks import AttackVerdict, Finding, cells, matrix

if TYPE_CHECKING:
    from tests.once import Once

Matrix = Mapping[tuple[str, str, str], AttackVerdict]
"""Verdicts by vulnerability, vector and mitigation."""


@pytest.fixture(scope="session")
def findings(once: Once) -> tuple[Finding, ...]:
    """Attack every vulnerability from every position, with each of the default mitigations."""
    return once("matrix", lambda _: tuple(matrix(cells(("none", "linux", "blanket", "asi")))))


@pytest.fixture(scope="session")
def verdicts(findings: tuple[Finding, ...]) -> Matrix:
    """Tell what became of each attack."""
    return {(found.cell.vulnerability, found.cell.vector, found.cell.mitigation): found.verdict for found in findings}
