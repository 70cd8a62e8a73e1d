"""The matrix of the default mitigations, attacked once for all tests."""

from collections.abc import Mapping

import pytest

from asikit.leaks import Verdict, cells, matrix

Matrix = Mapping[tuple[str, str, str], Verdict]
"""Verdicts by vulnerability, vector and mitigation."""


@pytest.fixture(scope="session")
def verdicts() -> Matrix:
    """Attack every vulnerability from every position, with each of the default mitigations."""
    wanted = cells(("none", "linux", "blanket", "asi"))
    return {
        (found.cell.vulnerability, found.cell.vector, found.cell.mitigation): found.verdict for found in matrix(wanted)
    }
