"""What the data is taken from: ``data/sources.toml``, whose entries other files cite as ``@key``.

A path of Linux's tree (``Documentation/...``, ``arch/...``) cites ``linux`` by itself.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from asikit.documents import shipped_text
from asikit.errors import AsikitError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Reference", "cited", "known_sources", "spelt_out"]

_KEY = re.compile(r"(?<![\w.-])@([a-z0-9]+(?:-[a-z0-9]+)*)")
_LINUX = "linux"
_LINUX_PATH = re.compile(r"\b(?:Documentation|arch)/")


class Reference(msgspec.Struct, frozen=True, kw_only=True):
    """A work that was used.

    :ivar short: What it is called where it is cited.
    :ivar where: Where to find it: a URL.
    :ivar taken: What was taken from it.
    """

    short: str
    author: str
    title: str
    year: int
    where: str
    taken: str

    @property
    def line(self) -> str:
        """The work in one line: who, what, when, and where to find it."""
        when = "" if str(self.year) in self.title else f" ({self.year})"
        return f"{self.author}: {self.title}{when}. {self.where}"


@cache
def known_sources() -> Mapping[str, Reference]:
    """Return all works, by key."""
    return shipped_text("sources.toml", dict[str, Reference], AsikitError, "list of sources")


def cited(text: str) -> tuple[str, ...]:
    """Return the keys of the works that a text cites, in order. One that there is not is a text's own."""
    known = known_sources()
    keys = [key for key in _KEY.findall(text) if key in known]
    return tuple(dict.fromkeys([*keys, *([_LINUX] if _LINUX_PATH.search(text) else [])]))


def spelt_out(text: str) -> str:
    """Return a text with each work that it cites called by its short name."""
    known = known_sources()
    return _KEY.sub(lambda found: known[found[1]].short if found[1] in known else found[0], text)
