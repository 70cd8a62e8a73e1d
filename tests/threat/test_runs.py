"""Two runs compared: the first thing that differs, wherever it is."""

from __future__ import annotations

import pytest

from asikit.threat import Parting, first_difference


@pytest.mark.parametrize("seen", [[], ["a"], ["a", "b"]])
def test_equal_runs(seen: list[str]) -> None:
    """Nothing differs, so nothing was learnt."""
    assert first_difference(seen, list(seen)) is None


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (["a"], ["b"], Parting(0, "a", "b")),
        (["a", "b", "c"], ["a", "x", "y"], Parting(1, "b", "x")),
        (["a", "b"], ["a"], Parting(1, "b", None)),
        ([], ["a"], Parting(0, None, "a")),
    ],
)
def test_where_they_part(one: list[str], other: list[str], expected: Parting[str]) -> None:
    """That one run sees more is a difference too."""
    assert first_difference(one, other) == expected
    assert expected.seen == (expected.one or expected.other)
