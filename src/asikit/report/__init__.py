"""Results as text for people: what the commands print."""

from asikit.report.overview import overview
from asikit.report.replay import compare_replays, replay_report

__all__ = ["compare_replays", "overview", "replay_report"]
