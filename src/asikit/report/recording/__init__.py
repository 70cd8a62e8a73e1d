"""One page about recordings: the answer, and what one needs to believe it."""

from __future__ import annotations

from asikit.report.recording.page import recording_page
from asikit.report.recording.sides import Asked, PolicyView, RecordingView, look

__all__ = ["Asked", "PolicyView", "RecordingView", "look", "recording_page"]
