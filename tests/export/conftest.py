"""Recordings to export, and their histories."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import pytest

from asikit.replay import History, load_policy
from asikit.trace import Trace

SAMPLES = Path(str(files("asikit.data") / "samples"))


@pytest.fixture(scope="session", params=["phases", "kvm-guest"])
def trace(request: pytest.FixtureRequest) -> Trace:
    """Open one of the recordings that come with the package."""
    return Trace.open(SAMPLES / f"{request.param}.asitrace")


@pytest.fixture(scope="session")
def history(trace: Trace) -> History:
    """Replay it."""
    return History.of(trace, load_policy("denylist-2025"))
