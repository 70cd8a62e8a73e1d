"""Two sides of replays or costs: what changed, by how much, and whether that is more than chance."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from asikit.cost._inlining import causes_of_kernels
from asikit.cost._records import FACETS, RECORDING, Record, read_side
from asikit.cost._statistics import Difference, Estimate, difference, estimate
from asikit.cost.errors import CompareError
from asikit.cost.expression import Monomial, Range, extremes, scaled
from asikit.errors import nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["COMPARE_SCHEMA", "Change", "Comparison", "Pair", "compare"]

COMPARE_SCHEMA = "asikit.compare/1"
"""``schema`` of the JSON form."""

GATED = "exits"
"""The metric that a gate looks at."""

_BRINGS_NEW_RECORDING = frozenset({"kernel", "workload", RECORDING})
_RANGED = "overhead"


@dataclass(frozen=True, slots=True)
class Change:
    """One figure on both sides.

    :ivar by: Second minus first. Of a cost from one run a side, its interval is what the parameters' ranges allow.
    """

    name: str
    first: Estimate
    second: Estimate
    by: Difference

    @property
    def percent(self) -> float | None:
        """The change in per cent of the first side; None if that is 0."""
        return 100 * self.by.shift / self.first.median if self.first.median else None

    def exceeds(self, percent: float) -> bool:
        """Tell whether it is an increase by more than so many per cent, and more than chance."""
        return self.by.is_real and self.by.shift > 0 and (self.percent is None or self.percent > percent)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form; an interval that there are too few runs for is null."""
        sides = {
            name: {"median": side.median, "low": side.low, "high": side.high, "runs": side.runs}
            for name, side in (("a", self.first), ("b", self.second))
        }
        ends = {"low": self.by.low, "high": self.by.high}
        shown = {name: None if end is None or abs(end) == float("inf") else end for name, end in ends.items()}
        return {
            "name": self.name,
            **sides,
            "difference": self.by.shift,
            **shown,
            "percent": self.percent,
            "differs": self.by.is_real,
        }


@dataclass(frozen=True, slots=True)
class Pair:
    """What is compared with what.

    :ivar what: What both are of.
    :ivar causes: Most changed first.
    :ivar cut: A document lacks its last causes, so that only those are compared that all have.
    :ivar read_as_one: How many of the causes have other names on the other side, for want of the same inlining.
    """

    what: dict[str, str]
    metrics: tuple[Change, ...]
    causes: tuple[Change, ...]
    cut: bool = False
    read_as_one: int = 0

    def metric(self, name: str) -> Change | None:
        """Return a metric, None if the documents do not have it."""
        return next((change for change in self.metrics if change.name == name), None)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The outcome.

    :ivar differs: In which facets the sides differ, and how.
    :ivar runs: Documents a side.
    """

    differs: dict[str, tuple[str, str]]
    runs: tuple[int, int]
    pairs: tuple[Pair, ...]

    def regressions(self, percent: float) -> tuple[Pair, ...]:
        """Return the pairs whose exits grew by more than so many per cent."""
        return tuple(
            pair for pair in self.pairs if (change := pair.metric(GATED)) is not None and change.exceeds(percent)
        )

    def to_dict(self, *, top: int | None = None) -> dict[str, Any]:
        """Return the JSON form.

        :param top: The most causes to keep; all when None.
        """
        return {
            "schema": COMPARE_SCHEMA,
            "differs": {facet: {"a": values[0], "b": values[1]} for facet, values in self.differs.items()},
            "runs": {"a": self.runs[0], "b": self.runs[1]},
            "pairs": [
                {
                    "what": pair.what,
                    "metrics": [change.to_dict() for change in pair.metrics],
                    "causes": [change.to_dict() for change in pair.causes[:top]],
                    "causes_cut_off": pair.cut,
                    "causes_read_as_one": pair.read_as_one,
                }
                for pair in self.pairs
            ],
        }


def compare(a: str, b: str, *, factors: Sequence[str] = (), anyway: bool = False) -> Comparison:
    """Compare two sides.

    :param a: A JSON file of ``asi replay`` or ``asi cost``, a folder of them, or several with commas: a side's runs.
    :param factors: In which facets the sides may differ; with none given, in any one.
    :param anyway: Compare whatever differs.
    :raises CompareError: The sides differ in something else than the factors, or nothing in them can be paired.
    """
    for factor in factors:
        if factor not in FACETS:
            near = nearest(factor, FACETS)
            raise CompareError.usage(f'no factor "{factor}"{near} (there are {", ".join(FACETS)})')
    first, second = read_side(a), read_side(b)
    differs = _differences(first, second)
    if not anyway:
        _check(differs, factors, several=len(first) > 1 or len(second) > 1)
    pairs = _pairs(first, second, set(differs) | set(factors), other_kernel="kernel" in differs)
    return Comparison(differs, (len(first), len(second)), pairs)


def _differences(first: list[list[Record]], second: list[list[Record]]) -> dict[str, tuple[str, str]]:
    """Return the facets whose values are not the same on both sides. What only one side says is no difference."""
    found = {}
    for facet in FACETS:
        sides = [
            {record.facets[facet] for run in side for record in run if facet in record.facets}
            for side in (first, second)
        ]
        if all(sides) and sides[0] != sides[1]:
            found[facet] = (", ".join(sorted(sides[0])), ", ".join(sorted(sides[1])))
    return found


def _check(differs: dict[str, tuple[str, str]], factors: Sequence[str], *, several: bool) -> None:
    """Refuse what differs in more than the factor. Several runs of one workload are so many recordings."""
    expected = set(factors)
    if several or expected & _BRINGS_NEW_RECORDING or differs.keys() & {"kernel", "workload"}:
        expected.add(RECORDING)
    unexpected = [facet for facet in differs if facet not in expected]
    if not factors and len(unexpected) <= 1:
        return
    if unexpected:
        facet = unexpected[-1] if factors else unexpected[1]
        one, other = differs[facet]
        named = ", ".join(factors) or unexpected[0]
        raise CompareError(
            f"the sides differ not only in {named}: {facet} is {_short(one)} and {_short(other)};"
            " name it with --factor, or compare with --anyway"
        )


def _short(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:37]}..."  # noqa: PLR2004


def _pairs(
    first: list[list[Record]], second: list[list[Record]], ignored: set[str], *, other_kernel: bool
) -> tuple[Pair, ...]:
    """Pair the records that are of the same in all but what differs."""
    sides = [_grouped(first, ignored), _grouped(second, ignored)]
    for side, runs in zip(sides, (first, second), strict=True):
        for key, records in side.items():
            if len(records) > len(runs):
                shown = ", ".join(value for _, value in key) or "the documents"
                raise CompareError(
                    f"{records[0].file}: several results are alike in all but {', '.join(sorted(ignored))} ({shown});"
                    " give documents with one each"
                )
    keys = [key for key in sides[0] if key in sides[1]]
    if not keys:
        raise CompareError("nothing in the two sides is of the same kind; compare two replays or two costs")
    return tuple(_pair(dict(key), sides[0][key], sides[1][key], other_kernel=other_kernel) for key in keys)


_Key = tuple[tuple[str, str], ...]


def _grouped(runs: list[list[Record]], ignored: set[str]) -> dict[_Key, list[Record]]:
    groups: dict[_Key, list[Record]] = defaultdict(list)
    for run in runs:
        for record in run:
            kept = (facet for facet in FACETS if facet not in {*ignored, RECORDING, "version"})
            groups[tuple((facet, record.facets[facet]) for facet in kept if facet in record.facets)].append(record)
    return groups


def _pair(what: dict[str, str], first: list[Record], second: list[Record], *, other_kernel: bool) -> Pair:
    metrics = [
        _change(name, [r.metrics.get(name, 0.0) for r in first], [r.metrics.get(name, 0.0) for r in second])
        for name in dict.fromkeys(name for record in (*first, *second) for name in record.metrics)
    ]
    cut = not all(record.whole for record in (*first, *second))
    sides, read_as_one = ([record.causes for record in first], [record.causes for record in second]), 0
    if other_kernel and not cut:
        sides, read_as_one = causes_of_kernels([r.sites for r in first], [r.sites for r in second])
    runs = (*sides[0], *sides[1])
    causes = [
        _change(name, [run.get(name, 0.0) for run in sides[0]], [run.get(name, 0.0) for run in sides[1]])
        for name in dict.fromkeys(name for run in runs for name in run)
        if not cut or all(name in run for run in runs)
    ]
    if len(first) == len(second) == 1 and first[0].ranges is not None and second[0].ranges is not None:
        bounds = _cost_difference(first[0], second[0])
        metrics = [
            replace(change, by=_within(change.by.shift, bounds)) if change.name == _RANGED else change
            for change in metrics
        ]
    causes.sort(key=lambda change: (not change.by.is_real, -abs(change.by.shift), change.name))
    return Pair(what, tuple(metrics), tuple(causes), cut, read_as_one)


def _within(shift: float, bounds: Range) -> Difference:
    return Difference(shift, min(shift, bounds.low), max(shift, bounds.high))


def _change(name: str, first: list[float], second: list[float]) -> Change:
    return Change(name, estimate(first), estimate(second), difference(first, second))


def _cost_difference(first: Record, second: Record) -> Range:
    """Return what the parameters' ranges allow for the difference.

    On one processor a parameter is one figure, whatever it is. A bound counted in the trace is another figure under
    another policy, but what is unknown about it is the same: how much of what may be lost is used again. So one unknown
    share places both between their bounds.
    """
    ranges: dict[str, Range] = {}
    terms: list[Monomial] = []
    same_cpu = first.facets.get("cpu") == second.facets.get("cpu")
    for record, sign, side in ((first, -1.0, "a"), (second, 1.0, "b")):
        for name, figures in (record.ranges or {}).items():
            other = ((second if record is first else first).ranges or {}).get(name)
            ranges[name if same_cpu and other == figures else f"{side}.{name}"] = figures
        for term in scaled(record.shares, sign):
            terms += [_renamed(part, ranges, side) for part in _placed(term, record)]
    ranges |= {f"{_PLACE}{name}": _WHOLE for name in first.counted | second.counted}
    return extremes(terms, ranges)


_PLACE = "place of "
_WHOLE = Range(0.0, 0.5, 1.0)


def _placed(term: Monomial, record: Record) -> list[Monomial]:
    """Write ``low + (high - low) * place`` for a parameter that the trace bounds."""
    for name, power in term.powers:
        if name in record.counted and power == 1:
            figures = (record.ranges or {})[name]
            rest = term.times(1, over=(name,))
            return [rest.times(figures.low), rest.times(figures.high - figures.low, f"{_PLACE}{name}")]
    return [term]


def _renamed(term: Monomial, ranges: dict[str, Range], side: str) -> Monomial:
    """Give the parameters that are not the same figure on both sides their side's name."""
    powers = (
        (name if name in ranges or name.startswith(_PLACE) else f"{side}.{name}", power) for name, power in term.powers
    )
    return Monomial(term.coefficient, tuple(sorted(powers)))
