"""The matrix of the default mitigations, attacked once for all tests."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from asikit.attacks import AttackVerdict, Finding, cells, matrix

Matrix = Mapping[tuple[str, str, str], AttackVerdict]
"""Verdicts by vulnerability, vector and mitigation."""


@pytest.fixture(scope="session")
def findings() -> tuple[Finding, ...]:
    """Attack every vulnerability from every position, with each of the default mitigations."""
    return tuple(matrix(cells(("none", "linux", "blanket", "asi"))))


@pytest.fixture(scope="session")
def verdicts(findings: tuple[Finding, ...]) -> Matrix:
    """Tell what became of each attack."""
    return {(found.cell.vulnerability, found.cell.vector, found.cell.mitigation): found.verdict for found in findings}
