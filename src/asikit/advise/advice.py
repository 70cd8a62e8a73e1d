"""Recordings, what can be declared about their memory, and the best that can be declared."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import TYPE_CHECKING

from asikit.advise.errors import AdviseError
from asikit.advise.frontier import Point, best_beside, frontier, within
from asikit.advise.problem import Problem
from asikit.errors import nearest
from asikit.replay import ExitOn, MechanismKind, Stretches, replay
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asikit.replay import MemorySite, Policy
    from asikit.trace import Trace

__all__ = [
    "USER_DATA",
    "Advice",
    "Beside",
    "Choice",
    "Extension",
    "RecordingShare",
    "SiteNeed",
    "Study",
    "Variant",
    "advise",
]

USER_DATA = (PageKind.ANON, PageKind.PAGE_CACHE, PageKind.SHMEM, PageKind.HUGETLB)
"""The kinds of page that hold what user code wrote."""


@dataclass(frozen=True)
class RecordingShare:
    """One of the recordings under a choice.

    :ivar exits: Under the choice.
    :ivar exposure: Of its own memory.
    :ivar own_best: The fewest exits that a choice for this recording alone has at that exposure.
    """

    name: str
    exits: int
    exposure: int
    own_best: int


@dataclass(frozen=True)
class Choice:
    """A choice of sites.

    :ivar sites: What is declared nonsensitive.
    :ivar proof: As :class:`asikit.advise.Point` has it.
    :ivar parts: By recording, if there are several.
    """

    exits: int
    exposure: int
    sites: tuple[MemorySite, ...]
    proof: str
    parts: tuple[RecordingShare, ...] = ()


@dataclass(frozen=True)
class Extension:
    """What is declared besides, from one corner of the frontier to the next with more exposure."""

    sites: tuple[MemorySite, ...]
    fewer_exits: int
    more_exposure: int


@dataclass(frozen=True)
class Beside:
    """Another policy, and the best beside it.

    :ivar fewest: The fewest exits at its exposure.
    :ivar least: The least exposure at its exits; None if it exposes what must stay sensitive.
    """

    policy: str
    exits: int
    exposure: int
    fewest: Choice
    least: Choice | None


@dataclass(frozen=True)
class Variant:
    """Another mechanism, on the same recordings.

    :ivar words: What is otherwise, as a policy file says it; empty for the base's own.
    :ivar forced: Exits that no declaration of memory avoids.
    :ivar fewest: Exits if all is declared nonsensitive that may be.
    """

    words: str
    forced: int
    fewest: int


@dataclass(frozen=True)
class SiteNeed:
    """Who needs a site.

    :ivar exposure: Of all its pages.
    :ivar stretches: How many touch it, those with an exit that nothing avoids left out.
    :ivar alone: How many of them touch no other site.
    """

    site: MemorySite
    exposure: int
    stretches: int
    alone: int


@dataclass(frozen=True)
class Advice:
    """What can be had for some recordings.

    :ivar base: The policy whose mechanism, regions and ephemeral mappings all choices have.
    :ivar forced: Exits that no declaration of memory avoids.
    :ivar most: Exits if all memory is sensitive.
    :ivar choices: In ascending order of exits.
    :ivar steps: From the least exposure to the fewest exits.
    """

    base: str
    recordings: tuple[str, ...]
    forced: int
    most: int
    protected: tuple[MemorySite, ...]
    choices: tuple[Choice, ...]
    steps: tuple[Extension, ...]
    beside: tuple[Beside, ...]
    variants: tuple[Variant, ...]


class Study:
    """Recordings under one mechanism, and what may be declared about them."""

    def __init__(
        self,
        traces: Mapping[str, Trace],
        base: Policy,
        *,
        protect: Sequence[str] = USER_DATA,
        weights: Mapping[str, int] | None = None,
    ) -> None:
        """Read the recordings.

        :param traces: By name.
        :param protect: Globs over kinds of page, or over sites (``caches key*``), that must stay sensitive. A site
            that has a page of such a kind stays sensitive, whatever else it has.
        :param weights: What a page of a site exposes, by globs over sites; of several the last counts. 1 of all others.
        :raises AdviseError: The policy's mechanism is not ASI, or nothing has a name that was given.
        """
        if base.mechanism.kind is not MechanismKind.ASI:
            raise AdviseError(f"policy {base.name} is no ASI: nothing exits, whatever is declared")
        self.base = base
        self.traces = dict(traces)
        self._asked = (tuple(protect), dict(weights or {}))
        self._stretches = {name: Stretches.of(trace, base) for name, trace in traces.items()}
        self.sites = sorted({site for each in self._stretches.values() for site in each.sites.sites})
        self._position = {site: number for number, site in enumerate(self.sites)}
        self.protected = self._protected(protect)
        self._weight = self._weights(weights or {})
        self.problems = {name: self._problem([each]) for name, each in self._stretches.items()}
        self.problem = self._problem(list(self._stretches.values()))

    def policy(self, choice: Choice, name: str, title: str = "") -> Policy:
        """Return a choice as a policy, which names each site of the recordings."""
        (first, *_) = self._stretches.values()
        return first.sites.policy(self.base, choice.sites, name=name, title=title, known=self.sites)

    def variants(self) -> tuple[Variant, ...]:
        """Return what other mechanisms would have: exits at changes of mm only, TLB entries that outlive an exit."""
        mechanism, (protect, weights) = self.base.mechanism, self._asked
        lazy = {} if mechanism.exit_on is ExitOn.MM_SWITCH else {"exit_on": ExitOn.MM_SWITCH}
        keeping = {} if mechanism.noflush else {"noflush": True}
        found = [self.as_variant("")]
        for change in (lazy, keeping, lazy | keeping):
            words = ", ".join(f"{key} = {_toml(value)}" for key, value in change.items())
            if words and words not in {variant.words for variant in found}:
                base = replace(self.base, mechanism=replace(mechanism, **change))
                found.append(Study(self.traces, base, protect=protect, weights=weights).as_variant(words))
        return tuple(found)

    def as_variant(self, words: str) -> Variant:
        """Return what this mechanism has, called so."""
        declared = set(range(len(self.sites))) - self.protected
        return Variant(words, self.problem.forced, self.problem.exits(declared))

    def need(self, site: MemorySite) -> SiteNeed:
        """Return who needs a site."""
        number = self._position[site]
        needing = [(needed, times) for needed, times in self.problem.needs if number in needed]
        alone = sum(times for needed, times in needing if len(needed) == 1)
        return SiteNeed(site, self.problem.exposure[number], sum(times for _, times in needing), alone)

    def all_but(self, site: MemorySite) -> Policy:
        """Return the policy under which a site alone is sensitive."""
        (first, *_) = self._stretches.values()
        others = [other for other in self.sites if other != site]
        return first.sites.policy(self.base, others, name=str(site), known=self.sites)

    def exposure(self, policy: Policy) -> int:
        """Return what another policy exposes of the recordings' memory."""
        return sum(
            count * self._weight[self._position[site]]
            for each in self._stretches.values()
            for site, count in zip(each.sites.sites, each.sites.mapped_by(policy, each.tables), strict=True)
        )

    def choice(self, point: Point, *, parts: bool = False) -> Choice:
        """Return a point with its sites by name.

        :param parts: With what it means to each recording.
        """
        found = tuple(self._part(name, point) for name in self.problems) if parts else ()
        sites = tuple(self.sites[site] for site in sorted(point.sites))
        return Choice(point.exits, point.exposure, sites, point.proof, found)

    def _part(self, name: str, point: Point) -> RecordingShare:
        own = self.problems[name]
        exits, exposure = own.exits(point.sites), own.exposed(point.sites)
        fewest, _ = best_beside(own, exits, exposure)
        return RecordingShare(name, exits, exposure, fewest.exits)

    def _problem(self, several: Sequence[Stretches]) -> Problem:
        pages = [0] * len(self.sites)
        needs: dict[tuple[int, ...], int] = {}
        for each in several:
            place = [self._position[site] for site in each.sites.sites]
            for number, count in zip(place, each.sites.pages, strict=True):
                pages[number] += count * self._weight[number]
            for needed, times in each.needs.items():
                here = tuple(sorted(place[site] for site in needed))
                needs[here] = needs.get(here, 0) + times
        return Problem(tuple(pages), tuple(needs.items()), sum(each.forced for each in several), self.protected)

    def _protected(self, globs: Sequence[str]) -> frozenset[int]:
        kinds: dict[MemorySite, set[PageKind]] = {}
        for each in self._stretches.values():
            for site, own in zip(each.sites.sites, each.sites.kinds, strict=True):
                kinds.setdefault(site, set()).update(own)
        known = {*map(str, self.sites), *PageKind}
        for glob in globs:
            if not any(fnmatchcase(name, glob) for name in known):
                raise AdviseError(f"--must-protect {glob}: no such kind or site{nearest(glob, sorted(known))}")
        return frozenset(
            number
            for number, site in enumerate(self.sites)
            if any(fnmatchcase(name, glob) for glob in globs for name in (str(site), *kinds[site]))
        )

    def _weights(self, weights: Mapping[str, int]) -> list[int]:
        found = [1] * len(self.sites)
        for glob, weight in weights.items():
            matching = [number for number, site in enumerate(self.sites) if fnmatchcase(str(site), glob)]
            if not matching:
                raise AdviseError(f"--weight {glob}: no such site{nearest(glob, sorted(map(str, self.sites)))}")
            for number in matching:
                found[number] = weight
        return found


def advise(subject: Study, others: Sequence[Policy] = (), *, points: int = 12, budget: int | None = None) -> Advice:
    """Return the best choices, and how far other policies are from them.

    The recordings are replayed under each choice as a policy: it has the exits that it promises.

    :param others: Policies of ASI's with the base's mechanism, to be set beside the best.
    :param points: How many choices, if the frontier has no more corners.
    :param budget: The most exposure of the one choice that is asked for instead.
    :raises AdviseError: A proof does not hold, or a replay has other exits.
    """
    found = (
        frontier(subject.problem, most_points=points).points if budget is None else (within(subject.problem, budget),)
    )
    several = len(subject.traces) > 1
    corners = [point for point in found if point.proof == "cut"][::-1]
    choices = tuple(subject.choice(point, parts=several) for point in found)
    _replay(subject, choices)
    return Advice(
        subject.base.name,
        tuple(subject.traces),
        subject.problem.forced,
        subject.problem.exits(()),
        tuple(subject.sites[site] for site in sorted(subject.protected)),
        choices,
        tuple(
            Extension(
                tuple(subject.sites[site] for site in sorted(more.sites - less.sites)),
                less.exits - more.exits,
                more.exposure - less.exposure,
            )
            for less, more in pairwise(corners)
        ),
        tuple(_beside(subject, policy) for policy in others),
        subject.variants(),
    )


def _toml(value: ExitOn | bool) -> str:  # noqa: FBT001  (a value of a file)
    return str(value).lower() if isinstance(value, bool) else f'"{value}"'


def _replay(subject: Study, choices: Sequence[Choice]) -> None:
    policies = [subject.policy(choice, f"choice {number}") for number, choice in enumerate(choices, 1)]
    results = [replay(trace, policies) for trace in subject.traces.values()]
    for choice, *replayed in zip(choices, *results, strict=True):
        exits = sum(result.exits for result in replayed)
        if exits != choice.exits:
            raise AdviseError(
                f"{replayed[0].policy} promises {choice.exits:,} exits, its replay has {exits:,}: report it"
            )


def _beside(subject: Study, policy: Policy) -> Beside:
    exits = sum(replay(trace, [policy])[0].exits for trace in subject.traces.values())
    exposure = subject.exposure(policy)
    fewest, least = best_beside(subject.problem, exits, exposure)
    return Beside(
        policy.name, exits, exposure, subject.choice(fewest), None if least is None else subject.choice(least)
    )
