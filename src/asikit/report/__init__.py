"""Results for people: what the commands print, built as data (:mod:`asikit.report.view`).

The names below are loaded from their modules when they are first used (PEP 562): who shows a replay does not wait for
what prices one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asikit.report._words import size_text as size_text
    from asikit.report.advise import advice_report as advice_report
    from asikit.report.advise import ephemeral_report as ephemeral_report
    from asikit.report.advise import explained_report as explained_report
    from asikit.report.calibrate import calibration_report as calibration_report
    from asikit.report.compare import compare_report as compare_report
    from asikit.report.cost import cost_report as cost_report
    from asikit.report.cost import cost_sources as cost_sources
    from asikit.report.demo import overview as overview
    from asikit.report.host import host_report as host_report
    from asikit.report.info import info_report as info_report
    from asikit.report.replay import compare_replays as compare_replays
    from asikit.report.replay import replay_report as replay_report

_HOME = {
    "advice_report": "advise",
    "calibration_report": "calibrate",
    "compare_replays": "replay",
    "compare_report": "compare",
    "cost_report": "cost",
    "cost_sources": "cost",
    "ephemeral_report": "advise",
    "explained_report": "advise",
    "host_report": "host",
    "info_report": "info",
    "overview": "demo",
    "replay_report": "replay",
    "size_text": "_words",
}

__all__ = sorted(_HOME)  # noqa: PLE0605  (names of the table above, all strings)


def __getattr__(name: str) -> object:
    """Load a public name from its module.

    :raises AttributeError: There is no such public name.
    """
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"asikit.report.{_HOME[name]}"), name)
    globals()[name] = value
    return value
