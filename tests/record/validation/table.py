"""The comparison as the tables of a page of the documentation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.record.validation.compared import is_close
from tests.record.validation.real import REASONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tests.record.validation.compared import Compared

__all__ = ["differences", "markdown", "of_node"]

_WORDS = {"m": "M", "u": "U", "tlb_flush": "TLB flush"}
_CAUSES = 5


def markdown(results: Mapping[str, Sequence[Compared]], kernel: str) -> str:
    """Return the tables: the sums of all variants, and those of variant m by reason.

    :param results: By variant, ``m`` among them; the same workloads in the same order.
    """
    names = [_words(variant) for variant in results]
    heads = ["workload", "operations", *(f"{name} {what}" for name in names for what in ("predicted", "real"))]
    sums = [
        (row[0].workload, f"{row[0].size:,}", *(cell for one in row for cell in _cells(one.predicted, one.real)))
        for row in zip(*results.values(), strict=True)
    ]
    reasons = [
        (one.workload, *(cell for reason in REASONS for cell in _cells(*one.by_reason[reason])))
        for one in results["m"]
        if one.by_reason
    ]
    by_reason = ["workload", *(word for reason in REASONS for word in (f"{_words(reason)} predicted", "real"))]
    return "\n".join(
        [
            f"Recorded: Linux {kernel}. Within the bounds: {_score(results)}.",
            "",
            *_table(heads, sums),
            "",
            "M by reason (no bounds are promised for parts of a sum):",
            "",
            *_table(by_reason, reasons),
        ]
    )


def of_node(not_mapped: Sequence[Compared], mapped: Sequence[Compared]) -> str:
    """Return the table of what the node's data add where they are not mapped."""
    rows = []
    for one, other in zip(not_mapped, mapped, strict=True):
        if not is_close(one.predicted, other.predicted):
            there = {cause for cause, _ in other.causes}
            added = [f"`{cause}` {_figure(exits)}" for cause, exits in one.causes if cause not in there]
            rows.append((one.workload, _figure(one.predicted), _figure(other.predicted), ", ".join(added[:_CAUSES])))
    heads = ["workload", "U, node's data not mapped", "mapped", "causes that go"]
    return "\n".join(["What the node's data add (CONFIG_NUMA):", "", *_table(heads, rows)])


def differences(results: Mapping[str, Sequence[Compared]]) -> Iterator[str]:
    """Give a line for each figure that is off, and the predicted causes below it."""
    for variant, rows in results.items():
        for one in rows:
            if not one.is_close:
                yield f"{one.workload}, {_words(variant)}: {one.predicted:.3f} predicted, {one.real:.3f} real"
                yield from (f"  {exits:8.3f}  {cause}" for cause, exits in one.causes[:_CAUSES])


def _score(results: Mapping[str, Sequence[Compared]]) -> str:
    """Say how many are within the bounds, of those that somebody has measured."""
    known = {variant: [one for one in rows if one.real is not None] for variant, rows in results.items()}
    return ", ".join(
        f"{sum(one.is_close for one in rows)} of {len(rows)} under {_words(variant)}" for variant, rows in known.items()
    )


def _words(name: str) -> str:
    return _WORDS.get(name, name if name == "switch_mm" else name.replace("_", " "))


def _cells(predicted: float, real: float | None) -> tuple[str, str]:
    if real is None:
        return _figure(predicted), "?"
    shown = _figure(predicted)
    return shown if is_close(predicted, real) else f"**{shown}**", _figure(real)


def _figure(value: float) -> str:
    text = f"{value:.3f}"
    return text if float(text) else "0.000"


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|---|{'---:|' * (len(heads) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
