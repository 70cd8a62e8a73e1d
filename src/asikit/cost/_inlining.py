"""The same cause under two names: what one kernel's compiler inlined and the other's did not.

A cause is named by the innermost function of its stack and that one's caller. A compiler that inlines one of them
gives the same place in the source another name. Here a stack is read under the name that it has on the other side, if
there is exactly one that it can have:

* It has that name once one or two of its functions are inlined into their callers. Not where the other side shows
  one of them called there; and not where the other side has a function of its own called there, which might be the
  same.
* Or it is alike but for one function, which only this side has, where the other side has another that only it has:
  each kernel has inlined what the other shows, or the function was renamed (:func:`spelling_of`).

A name that both sides have is the same, whatever else fits. The name of the access and that of the allocation are read
each on its own, among causes of the same reason, access and kind of memory. Nothing is renamed that then has no
partner, and a row never joins several causes of both sides: each could tell the other's apart.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from asikit.cost._records import cause_text
from asikit.cost._spelling import ACCESS, ALLOCATION, name_of, spelling_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from asikit.cost._records import Site, Target
    from asikit.cost._spelling import Name, Shortened, Spelling, Stack

    _Causes = Mapping[str, float]

__all__ = ["causes_of_kernels"]


class _Cause(NamedTuple):
    """The names that make a cause."""

    target: Target
    access: Name
    allocation: Name


def causes_of_kernels(
    first: Sequence[Sequence[Site]], second: Sequence[Sequence[Site]]
) -> tuple[tuple[list[_Causes], list[_Causes]], int]:
    """Return the causes of two kernels by names that both have.

    :param first: The sites of each run of one side; likewise the other.
    :return: The exits of each side's runs by cause, and the number of causes that are not called the same on both.
    """
    rows = _rows([site for run in first for site in run], [site for run in second for site in run])
    sides = ([_causes(run, 0, rows) for run in first], [_causes(run, 1, rows) for run in second])
    return sides, len({row.text for row in rows.values() if row.has_several_names})


@dataclass(frozen=True)
class _Row:
    """A cause of both sides, or of one: its names, as each side has them."""

    causes: tuple[tuple[_Cause, ...], tuple[_Cause, ...]]

    @property
    def has_several_names(self) -> bool:
        return len(set(self._all)) > 1

    @cached_property
    def text(self) -> str:
        """All names, the first side's first."""
        return cause_text(
            self._all[0].target,
            list(dict.fromkeys(cause.access for cause in self._all)),
            list(dict.fromkeys(cause.allocation[0] for cause in self._all)),
        )

    @property
    def _all(self) -> tuple[_Cause, ...]:
        return self.causes[0] + self.causes[1]


def _causes(run: Sequence[Site], side: int, rows: Mapping[tuple[int, Site], _Row]) -> _Causes:
    exits: dict[str, float] = defaultdict(float)
    for site in run:
        exits[rows[side, site].text] += site.exits
    return exits


def _rows(first: Sequence[Site], second: Sequence[Site]) -> dict[tuple[int, Site], _Row]:
    """Return the row of each side's sites."""
    found: dict[tuple[int, Site], _Row] = {}
    for sites in _grouped(spelling_of(first, second)).values():
        first_causes, second_causes = (tuple(dict.fromkeys(_cause(site) for site in side)) for side in sites)
        row = _Row((first_causes, second_causes))
        one_to_many = min(len(first_causes), len(second_causes)) == 1
        for number, side in enumerate(sites):
            for site in side:
                found[number, site] = row if one_to_many else _Row(((_cause(site),), ()))
    return found


def _cause(site: Site) -> _Cause:
    return _Cause(site.target, name_of(site.stack, ACCESS), name_of(site.allocation, ALLOCATION))


def _grouped(spelling: Spelling) -> dict[_Cause, tuple[list[Site], list[Site]]]:
    """Group the sites of both sides by the names that they have on the other side."""
    groups: dict[_Cause, tuple[list[Site], list[Site]]] = defaultdict(lambda: ([], []))
    accesses = [_Place(spelling, side, "stack", ACCESS) for side in (0, 1)]
    allocations = [_Place(spelling, side, "allocation", ALLOCATION) for side in (0, 1)]
    for side in (0, 1):
        for site in spelling.sides[side]:
            access = accesses[1 - side].name_for(site.target, spelling.of(side, site.stack))
            allocation = allocations[1 - side].name_for(site.target, spelling.of(side, site.allocation))
            groups[_Cause(site.target, access, allocation)][side].append(site)
    return groups


class _Place:
    """The names that one side has, by target, for stacks of the other."""

    def __init__(self, spelling: Spelling, side: int, part: str, length: int) -> None:
        self._spelling, self._side, self._length = spelling, side, length
        self._names: dict[Target, set[Name]] = defaultdict(set)
        self._own: dict[Target, set[str]] = defaultdict(set)  # callers of functions that only this side has
        for site in spelling.sides[side]:
            stack = spelling.of(side, getattr(site, part))
            self._names[site.target].add(name_of(stack, length))
            own = (caller for function, caller in pairwise(stack) if spelling.is_alone(side, function))
            self._own[site.target].update(own)

    def name_for(self, target: Target, stack: Stack) -> Name:
        """Return this side's name for a stack of the other side; the stack's own if there is not exactly one."""
        names, own = self._names[target], name_of(stack, self._length)
        if own in names:
            return own
        fitting = self._spelling.fitting(self._side, stack, self._length, names)
        if len({short.name for short in fitting}) == 1 and any(not self._has_rival(target, short) for short in fitting):
            return fitting[0].name
        return own

    def _has_rival(self, target: Target, short: Shortened) -> bool:
        """Tell whether this side has a function of its own where the other's ones would be inlined."""
        return not self._own[target].isdisjoint(host for _, host in short.inlined)
