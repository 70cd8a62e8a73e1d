"""Non-interference: two runs that differ in nothing but a secret, and the first thing in which they differ besides."""

from __future__ import annotations

from itertools import zip_longest
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

_Seen = TypeVar("_Seen")


class Parting(NamedTuple, Generic[_Seen]):
    """Where two runs part.

    :ivar place: How many observations are the same before it.
    :ivar one: What was seen in the one run; None if no more was seen.
    :ivar other: The same of the other run. One of the two is not None.
    """

    place: int
    one: _Seen | None
    other: _Seen | None

    @property
    def seen(self) -> _Seen:
        """What was seen, in the first run that saw anything there."""
        seen = self.other if self.one is None else self.one
        assert seen is not None
        return seen


def first_difference(one: Iterable[_Seen], other: Iterable[_Seen]) -> Parting[_Seen] | None:
    """Return the first thing in which two runs' observations differ, None if they are equal: nothing was learnt."""
    for place, (here, there) in enumerate(zip_longest(one, other)):
        if here != there:
            return Parting(place, here, there)
    return None
