"""The best choice for a price of exposure, by a minimum cut; and for a most of exposure, by a mixed integer program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from asikit.advise.errors import AdviseError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from fractions import Fraction

    from asikit.advise.problem import Problem

__all__ = ["Cut", "Optimum", "cheapest_within", "cut", "fewest_within"]

_NEARLY = 1e-6


@dataclass(frozen=True)
class Cut:
    """A choice that no other beats at this price.

    :ivar price: Exits that one unit of exposure is worth.
    :ivar sites: What is declared nonsensitive.
    :ivar flow: What proves it: for each set of sites, in the problem's order, how much goes to each of its sites.
    """

    price: Fraction
    sites: frozenset[int]
    flow: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Optimum:
    """A choice that no other beats, as the solver has it.

    :ivar bound: No choice is below this: exits, or exposure, whichever was asked to be least.
    """

    sites: frozenset[int]
    bound: int


def cut(problem: Problem, price: Fraction) -> Cut:
    """Return the choice with the least exits + price * exposure.

    It is the linear program of the minimum cut, whose matrix is totally unimodular: its corners are whole numbers, and
    its dual's are the maximum flow.

    :param problem: Its stretches need no protected site (:meth:`Problem.reduced`).
    :raises AdviseError: The solver has no answer in whole numbers.
    """
    model = _Model(problem)
    costs = [price.numerator * exposure for exposure in problem.exposure]
    gains = [price.denominator * times for _, times in problem.needs]
    solved = model.run([*costs, *(-gain for gain in gains)])
    flow = [_whole(-dual) for dual in solved.row_dual[: model.links]]
    sizes = np.cumsum([len(needed) for needed, _ in problem.needs])[:-1]
    parts = np.split(np.array(flow, object), sizes) if problem.needs else []
    return Cut(price, model.chosen(solved.col_value), tuple(tuple(part.tolist()) for part in parts))


def fewest_within(problem: Problem, most: int) -> Optimum:
    """Return a choice with the fewest exits among those that expose no more than this; and of these the least exposed.

    :raises AdviseError: The solver has no answer.
    """
    gains = [0] * len(problem.exposure) + [-times for _, times in problem.needs]
    first = _Model(problem, exposure=most)
    bound = first.bound(gains) + problem.forced + sum(times for _, times in problem.needs)
    return Optimum(cheapest_within(problem, bound).sites, bound)


def cheapest_within(problem: Problem, most: int) -> Optimum:
    """Return a choice with the least exposure among those that have no more exits than this.

    :raises AdviseError: There is no such choice.
    """
    model = _Model(problem, exits=most)
    costs = [*problem.exposure, *([0] * len(problem.needs))]
    solved = model.run(costs, whole=True)
    return Optimum(model.chosen(solved.col_value), model.bound(costs))


class _Model:
    """Variables: each site is declared; each set of sites is whole. A set is only if each of its sites is."""

    def __init__(self, problem: Problem, *, exposure: int | None = None, exits: int | None = None) -> None:
        self._problem = problem
        self._sites = len(problem.exposure)
        rows: list[tuple[list[int], list[int], float]] = [
            ([self._sites + number, site], [1, -1], 0.0)
            for number, (needed, _) in enumerate(problem.needs)
            for site in needed
        ]
        self.links = len(rows)
        if exposure is not None:
            rows.append((list(range(self._sites)), list(problem.exposure), float(exposure)))
        if exits is not None:
            sets = [self._sites + number for number in range(len(problem.needs))]
            most = exits - problem.forced - sum(times for _, times in problem.needs)
            rows.append((sets, [-times for _, times in problem.needs], float(most)))
        self._rows = rows

    def run(self, costs: Sequence[int], *, whole: bool = False) -> Any:  # noqa: ANN401  (highspy has no types)
        """Return the solution of the least cost."""
        return self._solved(costs, whole=whole).getSolution()

    def bound(self, costs: Sequence[int]) -> int:
        """Return the least cost that there can be, by the bound of the search."""
        info = self._solved(costs, whole=True).getInfo()
        return int(np.ceil(info.mip_dual_bound - _NEARLY))

    def chosen(self, values: Sequence[float]) -> frozenset[int]:
        """Return the sites that are declared, of which some stretch is worth it."""
        sites = {site for site in range(self._sites) if _whole(values[site])}
        have = [needed for needed, _ in self._problem.needs if sites.issuperset(needed)]
        return frozenset(site for needed in have for site in needed)

    def _solved(self, costs: Sequence[int], *, whole: bool) -> Any:  # noqa: ANN401  (highspy has no types)
        import highspy  # noqa: PLC0415  (only who asks for advice needs a solver)

        columns = len(costs)
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = columns, len(self._rows)
        model.col_cost_ = np.array(costs, np.float64)
        lower, upper = np.zeros(columns), np.ones(columns)
        if not whole:  # bounds that follow from the rows would have a part of the dual, which is to be a flow
            upper[: self._sites] = highspy.kHighsInf
            lower[self._sites :] = -highspy.kHighsInf
        upper[list(self._problem.protected)] = 0
        model.col_lower_, model.col_upper_ = lower, upper
        model.row_lower_ = np.full(len(self._rows), -highspy.kHighsInf)
        model.row_upper_ = np.array([most for _, _, most in self._rows])
        matrix = model.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.start_ = np.cumsum([0, *(len(index) for index, _, _ in self._rows)])
        matrix.index_ = np.array([column for index, _, _ in self._rows for column in index], np.int32)
        matrix.value_ = np.array([value for _, values, _ in self._rows for value in values], np.float64)
        if whole:
            model.integrality_ = [highspy.HighsVarType.kInteger] * columns
        solver = highspy.Highs()  # type: ignore[no-untyped-call]
        solver.silent()
        for option, value in (("mip_rel_gap", 0.0), ("mip_abs_gap", 0.0), ("threads", 1)):
            solver.setOptionValue(option, value)
        solver.passModel(model)
        solver.run()
        status = solver.getModelStatus()
        if status not in {highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kModelEmpty}:
            raise AdviseError(f"no choice of sites: the solver says {solver.modelStatusToString(status)!r}")
        return solver


def _whole(value: float) -> int:
    nearest = round(value)
    if abs(value - nearest) > _NEARLY * max(1, abs(nearest)):
        raise AdviseError(f"the solver's answer {value} is no whole number: the choice cannot be proved")
    return nearest
