"""Results as text for people: what the commands print."""

from __future__ import annotations

from asikit.report.calibrate import calibration_report
from asikit.report.compare import compare_report
from asikit.report.cost import cost_report, cost_sources
from asikit.report.host import host_report
from asikit.report.overview import cost_overview, overview
from asikit.report.replay import compare_replays, replay_report

__all__ = [
    "calibration_report",
    "compare_replays",
    "compare_report",
    "cost_overview",
    "cost_report",
    "cost_sources",
    "host_report",
    "overview",
    "replay_report",
]
