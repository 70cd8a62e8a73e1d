"""The page: the answer first, then what one needs to believe it."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, TypeAlias

from asikit.report.cost import cost_report, cost_sources
from asikit.report.html import Fold, HtmlPage, Lead, PageSection, Part, Picture, Timeline
from asikit.report.recording.answer import answer, listed
from asikit.report.recording.costs import stacked
from asikit.report.recording.flame import flame
from asikit.report.recording.timeline import cpu_table, timeline
from asikit.report.recording.trips import opened_trips
from asikit.report.replay import compare_replays, replay_report
from asikit.report.view import Note, Section, Style, Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.report.recording.sides import PolicyView, RecordingView

__all__ = ["recording_page"]

_TOP = 200
"""A page's tables can be searched; what is rarer is in the JSON."""
_MAIN_CAUSES, _MOST_PARAMETERS = 3, 5
_MOST_STEPS = 400
"""Of the round trips that are opened, for all sides together."""

Parts: TypeAlias = tuple[Part | Picture | PageSection, ...]


def recording_page(recordings: Sequence[RecordingView]) -> HtmlPage:
    """Return the page about recordings."""
    sides = [side for recording in recordings for side in recording.sides]
    parts: list[Lead | PageSection] = [answer(recordings)]
    if any(side.result.exits for side in sides):
        parts.append(PageSection((flame(sides),), "Why the kernel left the restricted address space"))
    if sides:
        parts.append(PageSection(_time(recordings), "Where time goes"))
        parts.append(PageSection(_when(sides), "When"))
        parts.append(PageSection(_step_by_step(sides), "One round trip, step by step"))
    if any(len(recording.results) > 1 for recording in recordings):
        parts.append(PageSection(_policies(recordings), "Policies side by side"))
    parts.append(PageSection(_counts(recordings), "What was counted"))
    if sides:
        parts.append(PageSection(_sources(recordings), "What the costs rest on"))
    return HtmlPage(_title(recordings), tuple(parts), _made(recordings))


def _title(recordings: Sequence[RecordingView]) -> str:
    names = [recording.name for recording in recordings]
    return f"{listed(names)} under address space isolation"


def _time(recordings: Sequence[RecordingView]) -> Parts:
    said = Note("Time added to the run, as a share of its time without any mitigation: the best guess, and its range.")
    folds = [
        Fold(f"The same in figures, and what moves them{_of(recording, recordings)}", _cost_parts(recording))
        for recording in recordings
        if recording.cost is not None
    ]
    return (said, stacked(recordings), *folds)


def _cost_parts(recording: RecordingView) -> tuple[Part, ...]:
    return () if recording.cost is None else cost_report(recording.cost, top=_MOST_PARAMETERS).parts


def _when(sides: Sequence[PolicyView]) -> Parts:
    parts: list[Timeline | Table | Note | PageSection] = []
    if any(side.result.selection for side in sides):
        parts.append(Note("The exits are those of the part that counts; all else is the whole recording."))
    for side in sides:
        shown = (timeline(side, sides=len(sides)), cpu_table(side))
        parts += [PageSection(shown, side.name)] if len(sides) > 1 else shown
    return tuple(parts)


def _step_by_step(sides: Sequence[PolicyView]) -> Parts:
    parts: list[Note | Fold | PageSection] = []
    for side in sides:
        folds = opened_trips(side, most=_MOST_STEPS // len(sides))
        if not folds:
            parts.append(Note(f"{side.name}: no round trip exits.", style=Style.FAINT))
        else:
            parts += [PageSection(folds, side.name)] if len(sides) > 1 else folds
    return tuple(parts)


def _policies(recordings: Sequence[RecordingView]) -> Parts:
    reports = [(recording, compare_replays(recording.results, causes=_MAIN_CAUSES)) for recording in recordings]
    if len(reports) == 1:
        return reports[0][1].parts
    return tuple(Section(report.parts, recording.name) for recording, report in reports)


def _counts(recordings: Sequence[RecordingView]) -> Parts:
    parts: list[Section | Fold] = []
    for number, recording in enumerate(recordings):
        for result in recording.results:
            report = replay_report(result, top=_TOP)
            title = f"{report.title}{_of(recording, recordings)}"
            whole = not number and result is recording.results[0]
            parts.append(Section(report.parts, title) if whole else Fold(title, report.parts))
    return tuple(parts)


def _sources(recordings: Sequence[RecordingView]) -> Parts:
    parts: list[Fold] = []
    for recording in recordings:
        if recording.cost is not None:
            parts += [
                Fold(f"{part.title}{_of(recording, recordings)}", part.parts)
                for part in cost_sources(recording.cost).parts
                if isinstance(part, Section)
            ]
    return tuple(parts)


def _of(recording: RecordingView, recordings: Sequence[RecordingView]) -> str:
    return f": {recording.name}" if len(recordings) > 1 else ""


def _made(recordings: Sequence[RecordingView]) -> tuple[tuple[str, str], ...]:
    rows: list[tuple[str, str]] = []
    for recording in recordings:
        trace, recorder = recording.trace, recording.trace.recorder
        machine = recorder.machine
        rows += [
            ("recording", f"{recording.name}, SHA-256 {trace.content_hash}"),
            ("workload", shlex.join(map(str, recorder.workload.command))),
            ("kernel", f"{recorder.kernel.release}: {recorder.kernel.version}"),
            ("kernel command line", recorder.kernel.command_line),
            ("machine", f"{machine.cpus} CPUs, {machine.cpu_model}, {machine.emulator}"),
        ]
    return tuple(dict.fromkeys(rows))
