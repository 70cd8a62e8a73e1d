"""What a policy can declare about a recording's memory, apart from one another: the declarations that decide each page.

A page is decided by the strongest rule that can name it: its slab cache, else the function that allocated it, else its
kind. So the pages fall into as many parts as there are such names, and a policy says of each part whether the
restricted address space has it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from asikit.replay.policy import Policy, PolicyMemory, Rules, Sensitivity
from asikit.replay.sensitivity import apply_policy
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import numpy.typing as npt

    from asikit.replay._tables import SideTables

__all__ = ["NO_SITE", "DeclaredBy", "MemorySite", "MemorySites"]

NO_SITE = -1
"""Of what no declaration is about: device registers."""


class DeclaredBy(StrEnum):
    """The keys of a policy by which a part of the memory is declared, the strongest first."""

    CACHES = "caches"
    ALLOCATED_BY = "allocated_by"
    KINDS = "kinds"


@dataclass(frozen=True, slots=True, order=True)
class MemorySite:
    """A part of the memory that a policy can declare.

    :ivar by: The key of the policy file.
    :ivar name: The slab cache, the allocating function without the compiler's suffixes, or the kind.
    """

    by: DeclaredBy
    name: str

    def __str__(self) -> str:
        """Return it as a line of a policy file has it."""
        return f"{self.by} {self.name}"


@dataclass(frozen=True, eq=False)
class MemorySites:
    """The sites of a recording.

    :ivar sites: In the order of their keys and names.
    :ivar of_page: By row of pages: the site's position, and one more, :data:`NO_SITE`, for what is no memory.
    :ivar pages: By site: how many pages of the recording are its.
    :ivar kinds: By site: the kinds of its pages.
    """

    sites: tuple[MemorySite, ...]
    of_page: npt.NDArray[np.int64]
    pages: tuple[int, ...]
    kinds: tuple[frozenset[PageKind], ...]

    @classmethod
    def of(cls, tables: SideTables) -> MemorySites:
        """Find the sites of a recording's pages."""
        names = _declarations(tables)
        known = sorted(set(names))
        position = {site: number for number, site in enumerate(known)}
        of_page = np.array([*(position[site] for site in names), NO_SITE], np.int64)
        kind_of_page = tables.kind_of_page[:-1]
        codes = np.unique(of_page[:-1] * len(PageKind) + kind_of_page)
        kinds: list[set[PageKind]] = [set() for _ in known]
        for site, kind in zip(*np.divmod(codes, len(PageKind)), strict=True):
            kinds[site].add(list(PageKind)[kind])
        pages = np.bincount(of_page[:-1], minlength=len(known))
        return cls(tuple(known), of_page, tuple(pages.tolist()), tuple(map(frozenset, kinds)))

    def mapped_by(self, policy: Policy, tables: SideTables) -> tuple[int, ...]:
        """Return by site how many of its pages a policy calls nonsensitive.

        :param tables: Of the same recording.
        :raises PolicyError: The policy names a gfp flag that the recorded kernel does not have.
        """
        nonsensitive = ~apply_policy(policy, tables).pages[:-1]
        return tuple(np.bincount(self.of_page[:-1][nonsensitive], minlength=len(self.sites)).tolist())

    def policy(
        self,
        base: Policy,
        nonsensitive: Collection[MemorySite],
        *,
        name: str,
        title: str = "",
        known: Collection[MemorySite] | None = None,
    ) -> Policy:
        """Return a policy with another's mechanism under which these sites are nonsensitive, and all else is sensitive.

        All sites are named, so that no weaker rule decides about one. What a recording does not have is sensitive.

        :param known: The sites to name, those of other recordings among them; this recording's when None.
        """
        rules = {
            sensitivity: Rules(
                caches=tuple(_named(sites, DeclaredBy.CACHES)),
                allocated_by=tuple(_named(sites, DeclaredBy.ALLOCATED_BY)),
                kinds=tuple(PageKind(kind) for kind in _named(sites, DeclaredBy.KINDS)),
            )
            for sensitivity, sites in _divided(self.sites if known is None else known, nonsensitive)
        }
        memory = PolicyMemory(
            Sensitivity.SENSITIVE,
            sensitive=rules[Sensitivity.SENSITIVE],
            nonsensitive=rules[Sensitivity.NONSENSITIVE],
        )
        return replace(base, name=name, title=title, file="", inherits=base.name, memory=memory)


def _divided(
    known: Collection[MemorySite], nonsensitive: Collection[MemorySite]
) -> Iterator[tuple[Sensitivity, list[MemorySite]]]:
    chosen = frozenset(nonsensitive)
    yield Sensitivity.SENSITIVE, [site for site in known if site not in chosen]
    yield Sensitivity.NONSENSITIVE, [site for site in known if site in chosen]


def _named(sites: list[MemorySite], by: DeclaredBy) -> list[str]:
    return [site.name for site in sites if site.by is by]


def _declarations(tables: SideTables) -> list[MemorySite]:
    """Return the site of each page."""
    caches = tables.cache_names.to_list()
    functions = tables.base_names.to_list()
    kinds = list(PageKind)
    slab = kinds.index(PageKind.SLAB)
    columns = (tables.cache_of_page, tables.allocator_of_page, tables.kind_of_page)
    found = []
    for cache, function, kind in zip(*(column[:-1].tolist() for column in columns), strict=True):
        if kind == slab and caches[cache]:
            found.append(MemorySite(DeclaredBy.CACHES, caches[cache]))
        elif function and functions[function]:
            found.append(MemorySite(DeclaredBy.ALLOCATED_BY, functions[function]))
        else:
            found.append(MemorySite(DeclaredBy.KINDS, kinds[kind].value))
    return found
