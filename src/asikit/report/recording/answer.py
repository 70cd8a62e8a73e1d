"""The answer in two sentences for each recording, and what it rests on."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from asikit.report.cost import interval, percent
from asikit.report.html import Lead
from asikit.report.replay import cause_line
from asikit.report.view import Note, Style

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.cost import BreakEven, CostRow
    from asikit.report.recording.sides import PolicyView, RecordingView

__all__ = ["answer", "listed"]

_KNOWN = {"estimate": "estimated", "trace": "counted in the recording"}
_ALTERNATIVES = ("blanket", "linux")


def answer(recordings: Sequence[RecordingView]) -> Lead:
    """Return how often the kernel leaves the restricted address space, what that costs, and how far one knows that."""
    sides = [side for recording in recordings for side in recording.sides]
    if not sides:
        trips = ", ".join(f"{result.round_trips:,}" for recording in recordings for result in recording.results)
        return Lead((Note(f"None of these policies is ASI's: of {trips} round trips there is nothing to exit from."),))
    part = sides[0].result.selection
    notes = [Note(f"Only a part of the recording counts: {part}. All shares are of that part.")] if part else []
    for recording in recordings:
        if recording.sides:
            of = f"{recording.name}: under" if len(recordings) > 1 else "Under"
            notes += [Note(f"{of} {_exits(recording.sides)}"), Note(_costs(recording))]
    return Lead((*notes, *(Note(_rests_on(recording), style=Style.FAINT) for recording in recordings)))


def _exits(sides: Sequence[PolicyView]) -> str:
    first = sides[0].result
    with_exit = first.round_trips - first.round_trips_without_exit
    share = with_exit / max(1, first.round_trips)
    a_trip = first.exits / max(1, first.round_trips)
    said = (
        f"{first.policy}, {with_exit:,} of {first.round_trips:,} round trips into the kernel ({share:.1%}) leave"
        f" the restricted address space, {a_trip:.3f} exits a round trip"
    )
    others = [
        f"{side.result.exits / max(1, side.result.round_trips):.3f} under {side.result.policy}" for side in sides[1:]
    ]
    if others:
        said += f", against {listed(others)}"
    causes = first.top_causes(1)
    why = f"; {causes[0].share:.0%} of them for one cause, {cause_line(causes[0])}" if causes else ""
    return f"{said}{why}."


def _costs(recording: RecordingView) -> str:
    row, cost = recording.sides[0].row, recording.cost
    others = {} if cost is None else {each.mitigation: each for each in cost.rows if each.cpu == row.cpu}
    against = [f"{name} adds {interval(others[name].overhead)}" for name in _ALTERNATIVES if name in others]
    more = [f"{interval(side.row.overhead)} under {side.result.policy}" for side in recording.sides[1:]]
    also = f" ({listed(more)})" if more else ""
    said = f"On {row.cpu} that adds {interval(row.overhead)} to the run's time{also}, while {listed(against)}"
    verdicts = [_verdict(name, even) for name, even in _even(row) if even is not None]
    return f"{said}: {'; '.join(verdicts)}." if verdicts else f"{said}."


def _even(row: CostRow) -> list[tuple[str, BreakEven | None]]:
    return [("blanket", row.break_even), ("linux", row.break_even_linux)]


def _verdict(name: str, even: BreakEven) -> str:
    """Say which costs less: with the figures of both moved together, as they are the same processor's."""
    low, high, here = even.fraction.low, even.fraction.high, even.observed
    if here < low:
        return f"ASI costs less than {name}, wherever in their ranges the figures are"
    if here > high:
        return f"ASI costs more than {name}, wherever in their ranges the figures are"
    word = "less" if here < even.fraction.mid else "more"
    return f"ASI costs {word} than {name} by the best guess, but the figures' ranges leave that open"


def _rests_on(recording: RecordingView) -> str:
    trace, cost = recording.trace, recording.cost
    kernel = trace.recorder.kernel.release
    says = f"The exits are counted: every event of {recording.name} (Linux {kernel}) went through the protocol."
    if cost is None or not recording.sides:
        return says
    row = recording.sides[0].row
    known = Counter(parameter.basis.value for parameter in row.parameters.values())
    figures = listed([f"{count} {_KNOWN.get(basis, basis)}" for basis, count in known.most_common()])
    most = row.sensitivity[0] if row.sensitivity else None
    moved = f"; {most.parameter} moves it most, from {percent(most.low)} to {percent(most.high)} alone" if most else ""
    return f"{says} The time is priced: the interval is that of {len(row.parameters)} figures ({figures}){moved}."


def listed(words: Sequence[str]) -> str:
    """Join words as a sentence does."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else ""
