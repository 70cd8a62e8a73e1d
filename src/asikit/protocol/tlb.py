"""Generations of TLB flushes: how a CPU knows, on entering, whether its TLB is up to date.

The scheme of the 2022 RFC. A flusher increments a generation, then (after a full barrier) interrupts only CPUs whose
`curr_asi` is set; a CPU that enters sets `curr_asi`, then (after a full barrier) reads the generations, and keeps its
TLB entries only if it has seen them before. So either the flusher sees the CPU or the CPU sees the flush.
All types here are values: an operation returns a changed copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from asikit.protocol.classes import NO_DOMAIN, AsiClass, space_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SINGLE_PAGE_FLUSH_CEILING = 33
"""Pages up to which a range is flushed page by page, `tlb_single_page_flush_ceiling`."""


class DomainId(NamedTuple):
    """A domain: one class in one mm."""

    mm: int
    asi_class: AsiClass


class Generation(NamedTuple):
    """The generations that decide about one domain: of flushes in it alone, and in all domains."""

    domain: int = 0
    everywhere: int = 0


class FlushPlan(StrEnum):
    """What a CPU that got behind has to flush."""

    NOTHING = "nothing"
    PAGES = "pages"
    ADDRESS_SPACE = "address_space"


def plan_flush(seen: int, current: int, pages: int) -> FlushPlan:
    """Decide what a CPU flushes that has seen generation `seen`, for a flush of `pages` that made it `current`.

    A range is enough only if it is short and nothing else was missed.
    """
    if seen >= current:
        return FlushPlan.NOTHING
    if pages <= SINGLE_PAGE_FLUSH_CEILING and current - seen == 1:
        return FlushPlan.PAGES
    return FlushPlan.ADDRESS_SPACE


@dataclass(frozen=True, slots=True)
class Generations:
    """The shared counters: one for each domain that was ever flushed alone, one for all."""

    everywhere: int = 0
    domains: tuple[tuple[DomainId, int], ...] = ()

    def of(self, domain: DomainId) -> Generation:
        """Return the current generation of a domain."""
        return Generation(dict(self.domains).get(domain, 0), self.everywhere)

    def flush(self, domain: DomainId) -> Generations:
        """Count a flush of addresses in one domain."""
        counts = dict(self.domains)
        counts[domain] = counts.get(domain, 0) + 1
        return Generations(self.everywhere, tuple(sorted(counts.items())))

    def flush_everywhere(self) -> Generations:
        """Count a flush of globally mapped addresses."""
        return Generations(self.everywhere + 1, self.domains)


class Seen(NamedTuple):
    """What a CPU knows of a PCID: whose entries its TLB has, and up to which generation."""

    domain: DomainId
    generation: Generation


@dataclass(frozen=True, slots=True)
class SeenGenerations:
    """One CPU's record, for each ASID and class."""

    records: tuple[tuple[tuple[int, AsiClass], Seen], ...] = ()

    def is_current(self, asid: int, domain: DomainId, generations: Generations) -> bool:
        """Whether the PCID's TLB entries are the domain's and outdated by no flush: NOFLUSH may be used."""
        return dict(self.records).get((asid, domain.asi_class)) == Seen(domain, generations.of(domain))

    def record(self, asid: int, domain: DomainId, generation: Generation) -> SeenGenerations:
        """Note that the PCID's entries are the domain's, as of a generation read *before* they were flushed."""
        records = dict(self.records)
        records[asid, domain.asi_class] = Seen(domain, generation)
        return SeenGenerations(tuple(sorted(records.items())))

    def forget(self, asid: int) -> SeenGenerations:
        """Forget an ASID that is given to another mm."""
        return SeenGenerations(tuple(entry for entry in self.records if entry[0][0] != asid))

    def stale(self, asid: int, mm: int, classes: Iterable[AsiClass], generations: Generations) -> int:
        """Return the restricted spaces' bits of `CpuState.tlb_stale`, for the mm loaded under an ASID."""
        return sum(
            1 << space_of(asi_class)
            for asi_class in set(classes)
            if not self.is_current(asid, DomainId(mm, asi_class), generations)
        )


def cpus_to_interrupt(
    curr_asi: Mapping[int, int], loaded_mm: Mapping[int, int], mm: int | None = None
) -> frozenset[int]:
    """Return the CPUs that a flusher interrupts after it incremented a generation and passed a barrier.

    Only CPUs with `curr_asi` set, as the others notice on their next enter; for memory local to one mm, only CPUs that
    have it loaded.
    """
    return frozenset(
        cpu for cpu, domain in curr_asi.items() if domain != NO_DOMAIN and mm in (None, loaded_mm.get(cpu))
    )
