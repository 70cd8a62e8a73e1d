"""What the stacks of two kernels tell about their functions: who calls whom, and which stands for which."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from asikit.cost._records import Site, Target

__all__ = ["ACCESS", "ALLOCATION", "Name", "Shortened", "Spelling", "Stack", "name_of", "spelling_of"]

Stack = tuple[str, ...]
"""Functions, innermost first."""

Name = tuple[str, ...]
"""The first functions of a stack, as many as name it."""

ACCESS, ALLOCATION = 2, 1
"""How many functions name an access (the function and its caller), and an allocation."""

_UNKNOWN = "?"
_PIECES = frozenset({"part", "cold"})
"""Suffixes of pieces that a compiler split off a function, the rest of which may be inlined all the same."""


_MOST_INLINED = 2
"""More functions between two stacks are rather another way to the same caller than inlining."""


def name_of(stack: Stack, length: int) -> Name:
    """Return the first functions of a stack, unknown ones where it ends before."""
    return (*stack, *[_UNKNOWN] * length)[:length]


class Shortened(NamedTuple):
    """A name that a stack would have if some of its functions were inlined.

    :ivar inlined: Those, each with the function that it would then be part of.
    """

    name: Name
    inlined: frozenset[tuple[str, str]]


def _shortened(stack: Stack, length: int) -> Iterator[Shortened]:
    known = stack[: stack.index(_UNKNOWN)] if _UNKNOWN in stack else stack
    for places in combinations(range(len(known)), length):
        gaps = {
            (known[inner], known[place]) for last, place in pairwise((-1, *places)) for inner in range(last + 1, place)
        }
        if 0 < len(gaps) <= _MOST_INLINED:
            yield Shortened(tuple(known[place] for place in places), frozenset(gaps))


def _base(function: str) -> str:
    """Return a function's name without what the compiler says of this copy of it (``.isra.0``, ``.constprop.0``)."""
    return function.partition(".")[0]


@dataclass(frozen=True)
class Spelling:
    """Both sides' functions under common names.

    A function that both sides have is called as they call it; a copy that a compiler made of one, as the function
    itself. Of twins, two functions that stand for each other, the name is the first side's.

    :ivar twins: The second side's twins, with the first side's.
    """

    sides: tuple[Sequence[Site], Sequence[Site]]
    twins: Mapping[str, str]

    def of(self, side: int, stack: Stack) -> Stack:
        """Return a side's stack in the common names."""
        return tuple(self._common(side, function) for function in stack)

    def is_alone(self, side: int, function: str) -> bool:
        """Tell whether the other side has neither a function, by its common name, nor its twin."""
        return function != _UNKNOWN and _base(function) not in self._bases[1 - side]

    def fitting(self, side: int, stack: Stack, length: int, names: set[Name]) -> list[Shortened]:
        """Return what names of one side a stack of the other, in common names, would have if functions were inlined.

        Not those where the side shows such a function called by the one that it would be part of.
        """
        return [
            short
            for short in _shortened(stack, length)
            if short.name in names and self._calls[side].isdisjoint(short.inlined)
        ]

    def _common(self, side: int, function: str) -> str:
        if function in self._functions[1 - side]:
            return function
        base = _base(function)
        return self.twins.get(base, base) if side else base

    @cached_property
    def _functions(self) -> list[set[str]]:
        return [{function for site in side for function in (*site.stack, *site.allocation)} for side in self.sides]

    @cached_property
    def _bases(self) -> list[set[str]]:
        return [
            {_base(self._common(side, function)) for function in functions}
            for side, functions in enumerate(self._functions)
        ]

    @cached_property
    def _calls(self) -> list[set[tuple[str, str]]]:
        return [
            {
                (self._common(side, callee), self._common(side, caller))
                for site in sites
                for stack in (site.stack, site.allocation)
                for callee, caller in pairwise(stack)
                if _PIECES.isdisjoint(callee.split(".")[1:])
            }
            for side, sites in enumerate(self.sides)
        ]


def spelling_of(first: Sequence[Site], second: Sequence[Site]) -> Spelling:
    """Return the common names of two sides' functions.

    Twins are functions of which the other side has none, in stacks that are alike but for them, up to a caller that is
    the same. Neither stack has a name of the other side by inlining alone, and neither function has two partners.
    """
    plain = Spelling((first, second), {})
    strange = [_strange(plain, side) for side in (0, 1)]
    pairs = {
        (one, two)
        for place in strange[0].keys() & strange[1].keys()
        for one in strange[0][place]
        for two in strange[1][place]
    }
    partners = [Counter(pair[side] for pair in pairs) for side in (0, 1)]
    twins = {two: one for one, two in pairs if partners[0][one] == partners[1][two] == 1}
    return Spelling((first, second), twins)


_Place = tuple["Target", Stack, str]
"""Where a function stands: what is accessed, the functions that it calls, and its caller."""


def _strange(spelling: Spelling, side: int) -> dict[_Place, set[str]]:
    """Return the functions of one side alone, by where they stand in stacks that have no name on the other side."""
    names = [_names_of_targets(spelling, number) for number in (0, 1)]
    found: dict[_Place, set[str]] = defaultdict(set)
    for site in spelling.sides[side]:
        stack, theirs = spelling.of(side, site.stack), names[1 - side][site.target]
        if name_of(stack, ACCESS) in theirs or spelling.fitting(1 - side, stack, ACCESS, theirs):
            continue
        for number, (function, caller) in enumerate(pairwise(stack[: ACCESS + 1])):
            if spelling.is_alone(side, function) and caller != _UNKNOWN:
                found[site.target, stack[:number], caller].add(function)
    return found


def _names_of_targets(spelling: Spelling, side: int) -> dict[Target, set[Name]]:
    names: dict[Target, set[Name]] = defaultdict(set)
    for site in spelling.sides[side]:
        names[site.target].add(name_of(spelling.of(side, site.stack), ACCESS))
    return names
