"""Exits for each operation: predicted, and of the real kernel."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from statistics import mean
from typing import TYPE_CHECKING

from tests.record.validation.real import REASONS, Real
from tests.record.validation.recorded import Piece, Work

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["ABSOLUTE", "RELATIVE", "Compared", "compared", "is_close", "works_of"]

ABSOLUTE, RELATIVE = 0.01, 0.02
"""How far a prediction may be off: in exits for each operation, and as a part of them. The larger counts."""

_IDLE = {"work": "nothing", "more": "getrandom"}
"""Of each program, a workload whose operations do not exit: what starting and ending the program costs."""

_TIMES_IDLE, _TIMES = 5, 3
"""Timer interrupts come where they come, so the mean of several runs is taken."""

_LARGER = 3
_SIZE = 200
"""Of a workload whose real figures are not known here."""


def works_of(workloads: Sequence[str], real: Mapping[str, Real]) -> list[Work]:
    """Give what is to be recorded: each workload at the size of the real run, several times, and at three times that.

    And each program without operations.
    """
    sizes = {name: real[name].size if name in real else _SIZE for name in workloads if name != _IDLE["work"]}
    idle = [Work(name, 0) for name in _IDLE.values() for _ in range(_TIMES_IDLE)]
    small = [Work(name, size) for name, size in sizes.items() for _ in range(_TIMES)]
    return [*idle, *small, *(Work(name, _LARGER * size) for name, size in sizes.items())]


@dataclass(frozen=True)
class Compared:
    """A workload under one variant. Figures are exits for each operation.

    :ivar size: Operations of the real run and of the smaller recordings.
    :ivar predicted: The difference of recordings of two sizes, divided by that of the sizes.
    :ivar real: None if nobody has measured it.
    :ivar by_reason: Predicted and real, where that is known.
    :ivar causes: The predicted ones, most exits first.
    """

    workload: str
    size: int
    predicted: float
    real: float | None
    by_reason: Mapping[str, tuple[float, float]]
    causes: tuple[tuple[str, float], ...]

    @property
    def is_close(self) -> bool:
        """Whether it is within the promised bounds of the real figure."""
        return self.real is None or is_close(self.predicted, self.real)


def is_close(predicted: float, real: float) -> bool:
    """Tell whether a figure is within the promised bounds."""
    return abs(predicted - real) <= max(ABSOLUTE, RELATIVE * abs(real))


def compared(variant: str, pieces: Sequence[Piece], real: Mapping[str, Real]) -> list[Compared]:
    """Compare each workload of a recording of :func:`works_of`, replayed under the policy of a variant."""
    by_work: dict[Work, list[Piece]] = defaultdict(list)
    for piece in pieces:
        by_work[piece.work].append(piece)
    sizes: dict[str, set[int]] = defaultdict(set)
    for work in by_work:
        if work.size:
            sizes[work.workload].add(work.size)
    rows = []
    for name, (small, large) in ((name, sorted(both)) for name, both in sizes.items()):
        idle = by_work[Work(_IDLE[real[name].program], 0)] if name in real else []
        rows.append(_Figures(by_work[Work(name, small)], by_work[Work(name, large)], idle).compared(variant, real))
    return rows


@dataclass(frozen=True)
class _Figures:
    """The recordings of a workload: the smaller size, the larger, and its program without operations."""

    small: Sequence[Piece]
    large: Sequence[Piece]
    idle: Sequence[Piece]

    def compared(self, variant: str, real: Mapping[str, Real]) -> Compared:
        name, size = self.small[0].work.workload, self.small[0].work.size
        known = real.get(name)
        sums = None
        reasons = {}
        if known is not None:
            idle = real[_IDLE[known.program]]
            sums = self._real(_exits, known.exits[variant], idle.exits[variant])
            for reason in REASONS if variant == "m" else ():
                count = _count_of(reason)
                reasons[reason] = (
                    self._each(count),
                    self._real(count, known.by_reason[reason], idle.by_reason[reason]),
                )
        return Compared(name, size, self._each(_exits), sums, reasons, self._causes())

    def _each(self, count: Callable[[Piece], int]) -> float:
        """Return what an operation costs: the difference of two sizes."""
        more = self.large[0].work.size - self.small[0].work.size
        return (mean(map(count, self.large)) - mean(map(count, self.small))) / more

    def _real(self, count: Callable[[Piece], int], runs: tuple[int, int], idle: tuple[int, int]) -> float:
        """Return what an operation cost really: a run's exits, without what the operations do not cause.

        That is what it is in the recordings, but for what the two kernels do not agree in without operations.
        """
        size = self.small[0].work.size
        set_up = mean(map(count, self.small)) - size * self._each(count)
        more = mean(map(count, self.idle)) - mean(idle)
        return (mean(runs) - set_up + more) / size

    def _causes(self) -> tuple[tuple[str, float], ...]:
        """Return what an operation costs by cause, without what is not one exit in a hundred operations."""
        names = {name for piece in self.large for name in piece.causes}
        each = [(name, self._each(_count_of_cause(name))) for name in names]
        return tuple(sorted((one for one in each if one[1] >= ABSOLUTE), key=lambda one: (-one[1], one[0])))


def _exits(piece: Piece) -> int:
    return piece.exits


def _count_of_cause(name: str) -> Callable[[Piece], int]:
    return lambda piece: piece.causes.get(name, 0)


def _count_of(reason: str) -> Callable[[Piece], int]:
    return lambda piece: piece.by_reason.get(reason, 0)
