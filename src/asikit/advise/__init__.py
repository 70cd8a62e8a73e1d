"""Which memory to declare nonsensitive: the best choices, with proof that there is none better.

A stretch of a round trip goes on restricted only if *all* sites that it touches are nonsensitive. So what each
declaration saves depends on the others, and a list of the best single ones is wrong. To choose sites, each with its
exposure, so that as many stretches as possible have all of theirs, is the project selection problem (Picard 1976). For
a given price of exposure a minimum cut is an optimum, and its flow proves it. What lies between those optima a mixed
integer program finds, with a bound that proves it.
"""

from __future__ import annotations

from asikit.advise.advice import (
    USER_DATA,
    Advice,
    Beside,
    Choice,
    Extension,
    RecordingShare,
    SiteNeed,
    Study,
    Variant,
    advise,
)
from asikit.advise.certificate import check_cut
from asikit.advise.ephemeral import Ephemeral, advise_ephemeral
from asikit.advise.errors import AdviseError
from asikit.advise.frontier import Frontier, Point, best_beside, frontier
from asikit.advise.policy_text import policy_text
from asikit.advise.problem import Problem
from asikit.advise.solve import Cut, Optimum, cheapest_within, cut, fewest_within

__all__ = [
    "USER_DATA",
    "Advice",
    "AdviseError",
    "Beside",
    "Choice",
    "Cut",
    "Ephemeral",
    "Extension",
    "Frontier",
    "Optimum",
    "Point",
    "Problem",
    "RecordingShare",
    "SiteNeed",
    "Study",
    "Variant",
    "advise",
    "advise_ephemeral",
    "best_beside",
    "cheapest_within",
    "check_cut",
    "cut",
    "fewest_within",
    "frontier",
    "policy_text",
]
