"""The proof that a cut is a minimum, checked without the solver, in whole numbers.

The network: from the source to each set of sites, as much as its stretches are worth; from a set to each of its sites,
without limit; from each site to the sink, as much as its exposure costs. Any flow through it is at most any cut of it
(Ford and Fulkerson 1956). So a flow that is as large as a cut proves that the cut is the least.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.advise.errors import AdviseError

if TYPE_CHECKING:
    from asikit.advise.problem import Problem
    from asikit.advise.solve import Cut

__all__ = ["check_cut"]


def check_cut(problem: Problem, cut: Cut) -> int:
    """Check a cut's flow, and return the value of both: the least of exits' worth and exposure's cost together.

    :raises AdviseError: It is no flow, or less than the cut.
    """
    into_site = [0] * len(problem.exposure)
    through = 0
    for (needed, times), parts in zip(problem.needs, cut.flow, strict=True):
        if min(parts) < 0 or sum(parts) > cut.price.denominator * times:
            raise AdviseError(f"no proof: the flow from the sites {needed} is {parts}, of at most {times} stretches")
        for site, part in zip(needed, parts, strict=True):
            into_site[site] += part
        through += sum(parts)
    for site, (flow, exposure) in enumerate(zip(into_site, problem.exposure, strict=True)):
        if flow > cut.price.numerator * exposure:
            raise AdviseError(f"no proof: the flow into site {site} is {flow}, more than its exposure costs")
    exits = problem.exits(cut.sites) - problem.forced
    value = cut.price.denominator * exits + cut.price.numerator * problem.exposed(cut.sites)
    if value != through:
        raise AdviseError(f"no proof: the cut's value is {value}, the flow's {through}")
    return value
