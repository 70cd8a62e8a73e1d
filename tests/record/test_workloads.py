"""Workloads that people mean: some are recorded as they are typed, `make workloads` records all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.replay import load_policy, replay
from asikit.trace import Trace
from tests.record.workloads import TOP, WORKLOADS, record_as_typed

if TYPE_CHECKING:
    from pathlib import Path

PAGE = TOP / "docs/workloads.md"
QUICK = (
    pytest.param("sqlite", marks=pytest.mark.needs_sqlite3),
    pytest.param("make", marks=[pytest.mark.needs_cc, pytest.mark.needs_make]),
    pytest.param("unshare", marks=[pytest.mark.needs_ip, pytest.mark.needs_ps]),
)


@pytest.mark.slow
@pytest.mark.needs_qemu
@pytest.mark.parametrize("name", QUICK)
def test_workload_as_typed(tmp_path: Path, name: str) -> None:
    """It does what it is there for, ends well, and nothing of its recording is lost."""
    workload = WORKLOADS[name]
    here = sorted(path.name for path in (TOP / "samples").iterdir())
    outcome = record_as_typed(workload, tmp_path / "it.asitrace")
    assert outcome.status == 0, outcome.err
    assert outcome.shows(workload), outcome.out
    assert not any(Trace.open(tmp_path / "it.asitrace").meta["lost"].values())
    (result,) = replay(Trace.open(tmp_path / "it.asitrace"), [load_policy("denylist-2025")])
    assert 0 < result.exits < result.round_trips
    assert sorted(path.name for path in (TOP / "samples").iterdir()) == here  # what it wrote is gone


def test_page_has_each_workload() -> None:
    """The page on workloads shows each command as it is run."""
    text = PAGE.read_text(encoding="utf-8")
    for workload in WORKLOADS.values():
        assert f"\n## {workload.name}\n" in text, workload.name
        assert f"```sh\n{workload.command}\n```" in text, workload.name
