"""Which functions should reach user data through an ephemeral mapping: the fewest, for each number of exits."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from asikit.advise.errors import AdviseError
from asikit.advise.frontier import frontier
from asikit.advise.problem import Problem
from asikit.replay import PolicyEphmap, Stretches, TouchKind, replay

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.replay import Policy
    from asikit.trace import PageKind, Trace

__all__ = ["Ephemeral", "advise_ephemeral"]


@dataclass(frozen=True)
class Ephemeral:
    """A choice of functions.

    :ivar proof: As :class:`asikit.advise.Point` has it.
    :ivar policy: It, with all other memory declared nonsensitive.
    """

    exits: int
    functions: tuple[str, ...]
    proof: str
    policy: Policy


def advise_ephemeral(
    trace: Trace,
    base: Policy,
    kinds: Sequence[PageKind],
    access: Sequence[TouchKind] = (TouchKind.READ, TouchKind.WRITE),
    *,
    points: int = 12,
) -> tuple[Ephemeral, ...]:
    """Return the fewest functions for each number of exits, in ascending order of exits.

    All memory is nonsensitive but sites that have a page of these kinds. So what is left are the exits at user data,
    and those that nothing avoids. The recording is replayed under each choice: it has the exits that it promises.

    :param base: Its mechanism and regions count.
    :param kinds: What is reached through an ephemeral mapping, in the direct map.
    :param access: Accesses that the mapping serves.
    :raises AdviseError: A proof does not hold, or a replay has other exits.
    """
    under = replace(base, ephmap=PolicyEphmap(tuple(kinds), tuple(access)))
    stretches = Stretches.of(trace, under, functions=True)
    sites, known = stretches.sites, len(stretches.sites.sites)
    protected = frozenset(number for number, own in enumerate(sites.kinds) if own.intersection(kinds))
    exposure = (0,) * known + (1,) * len(stretches.functions)
    problem = Problem(exposure, tuple(stretches.needs.items()), stretches.forced, protected)
    declared = [site for number, site in enumerate(sites.sites) if number not in protected]
    choices = []
    for point in frontier(problem, most_points=points).points:
        functions = tuple(stretches.functions[site - known] for site in sorted(point.sites) if site >= known)
        # A policy without functions lets all of them: one without a mapping has no kinds.
        ephmap = replace(under.ephmap, functions=functions) if functions else PolicyEphmap()
        title = f"{point.exits:,} exits with an ephemeral mapping in {len(functions)} functions"
        policy = replace(sites.policy(under, declared, name=f"{len(functions)} functions", title=title), ephmap=ephmap)
        choices.append(Ephemeral(point.exits, functions, point.proof, policy))
    for choice, result in zip(choices, replay(trace, [choice.policy for choice in choices]), strict=True):
        if result.exits != choice.exits:
            raise AdviseError(
                f"{choice.policy.name} promise {choice.exits:,} exits, their replay has {result.exits:,}: report it"
            )
    return tuple(choices)
