"""Results for people: what the commands print, built as data (:mod:`asikit.report.view`)."""

from __future__ import annotations

from asikit.report._words import size_text
from asikit.report.calibrate import calibration_report
from asikit.report.compare import compare_report
from asikit.report.cost import cost_report, cost_sources
from asikit.report.host import host_report
from asikit.report.info import info_report
from asikit.report.overview import overview
from asikit.report.replay import compare_replays, replay_report

__all__ = [
    "calibration_report",
    "compare_replays",
    "compare_report",
    "cost_report",
    "cost_sources",
    "host_report",
    "info_report",
    "overview",
    "replay_report",
    "size_text",
]
