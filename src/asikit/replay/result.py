"""The outcome of a replay: counts with names, and the causes of the exits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

    from asikit.replay._stacks import CauseStacks

__all__ = ["SCHEMA", "Cause", "EntryRow", "Part", "ReplayResult"]

SCHEMA = "asikit.replay/1"
"""``schema`` of the JSON form."""

_SHARE_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Cause:
    """Exits that have the same explanation.

    :ivar reason: The exit reason (``page_fault``, ``context_switch``, ...).
    :ivar function: The function that touched what is missing, ``?`` if unknown.
    :ivar caller: Its caller, ``?`` if unknown or none.
    :ivar access: ``read``, ``write`` or ``fetch``; empty for an exit that no touch caused.
    :ivar region: The region of the touched address; empty for an exit that no touch caused.
    :ivar kind: The kind of the touched page; empty for an exit that no touch caused.
    :ivar cache: The slab cache of the page, or the file system type of page cache; empty if neither.
    :ivar allocated_by: The function that allocated the page, ``?`` if unknown.
    :ivar exits: Their number.
    :ivar share: That number, divided by all exits.
    """

    reason: str
    function: str
    caller: str
    access: str
    region: str
    kind: str
    cache: str
    allocated_by: str
    exits: int
    share: float


@dataclass(frozen=True, slots=True)
class EntryRow:
    """The round trips that began with one kind of entry.

    :ivar entry: For example ``syscall pread64``, ``interrupt 236``, ``exception 14 page fault``, ``vm exit 120``;
        ``outside round trips`` for exits before a CPU's first entry.
    :ivar round_trips: The complete ones: the recording has their return.
    :ivar exits: All exits, in incomplete ones too.
    :ivar without_exit: Complete ones that had no exit.
    """

    entry: str
    round_trips: int
    exits: int
    without_exit: int


@dataclass(frozen=True, slots=True)
class Part:
    """The counts of a part of what was selected: of a task, a process, a CPU, or of the phases that were open.

    An exit is of the task that runs, at a context switch of the one that leaves; a round trip is of the task and the
    phases of its entry. Otherwise the fields are those of :class:`ReplayResult`.

    :ivar name: What the part is called.
    :ivar pids: The processes in it, if the parts are tasks or processes.
    """

    name: str
    pids: tuple[int, ...]
    events: int
    round_trips: int
    round_trips_without_exit: int
    exits: int
    exits_by_reason: Mapping[str, int]
    flushes: Mapping[str, int]
    cr3_writes: int
    tlb_flushes: int
    stuns: int
    ephmap_operations: int


@dataclass(frozen=True)
class ReplayResult:
    """What a recording costs under a policy.

    :ivar policy: Its name.
    :ivar title: One line about it.
    :ivar mechanism: ``asi``, ``blanket`` or ``off``; only with the first are there exits.
    :ivar classes: The classes of domains protected from, sorted.
    :ivar events: Events in the recording.
    :ivar round_trips: Entries from a protected-from domain to the CPU's next return to an untrusted domain.
    :ivar round_trips_without_exit: Those that ran in the restricted address space to their end.
    :ivar unprotected_round_trips: Round trips from domains of other classes: ASI does nothing for them.
    :ivar exits: Changes from the restricted to the unrestricted address space.
    :ivar exits_by_reason: Their number by reason; every reason has a key.
    :ivar flushes: Predictor and data flushes by kind; the kinds that the policy's processor needs have a key.
    :ivar cr3_writes: CR3 writes that the mechanism asks for; the ones of a kernel without it are not among them.
    :ivar cr3_writes_noflush: Those that kept the TLB's entries.
    :ivar tlb_flushes: TLB flushes beyond those of a kernel without the mechanism: asked for as such, or by a CR3 write
        that discards the entries of the address space it loads.
    :ivar stuns: Interruptions of the sibling thread.
    :ivar ephmap_operations: Touches that went through an ephemeral mapping instead of an exit.
    :ivar amended_events: Events that do not follow from what was recorded before them.
    :ivar by_entry: Round trips by entry, most first.
    :ivar cause_table: The fields of :class:`Cause` but the share, most exits first.
    :ivar stacks: The stacks of the causes, by all their names.
    :ivar warnings: A line for each name that the policy's author gave and that matches nothing in the recording.
    :ivar selection: What of the recording was counted, in words; empty: all of it.
    :ivar by: What the parts are: ``task``, ``pid``, ``cpu`` or ``phase``; empty if there are none.
    :ivar parts: Most exits first. Their counts add up to those above.
    """

    policy: str
    title: str
    mechanism: str
    classes: tuple[str, ...]
    events: int
    round_trips: int
    round_trips_without_exit: int
    unprotected_round_trips: int
    exits: int
    exits_by_reason: Mapping[str, int]
    flushes: Mapping[str, int]
    cr3_writes: int
    cr3_writes_noflush: int
    tlb_flushes: int
    stuns: int
    ephmap_operations: int
    amended_events: int
    by_entry: tuple[EntryRow, ...]
    cause_table: pl.DataFrame
    stacks: CauseStacks
    warnings: tuple[str, ...] = ()
    selection: str = ""
    by: str = ""
    parts: tuple[Part, ...] = ()

    @cached_property
    def causes(self) -> tuple[Cause, ...]:
        """Causes of the exits, most first."""
        return self.top_causes(None)

    def top_causes(self, count: int | None) -> tuple[Cause, ...]:
        """Return the first causes, all when None. A long recording may have a hundred thousand."""
        rows = self.cause_table if count is None else self.cause_table.head(count)
        exits = max(1, self.exits)
        return tuple(
            Cause(**row, share=round(row["exits"] / exits, _SHARE_DIGITS)) for row in rows.iter_rows(named=True)
        )

    def to_dict(self, *, top: int | None = None) -> dict[str, Any]:
        """Return the JSON form, as plain values.

        :param top: The most causes and entries to keep; all when None.
        """
        return {
            "schema": SCHEMA,
            "policy": self.policy,
            "title": self.title,
            "mechanism": self.mechanism,
            "classes": list(self.classes),
            "events": self.events,
            "round_trips": self.round_trips,
            "round_trips_without_exit": self.round_trips_without_exit,
            "unprotected_round_trips": self.unprotected_round_trips,
            "exits": self.exits,
            "exits_by_reason": dict(self.exits_by_reason),
            "flushes": dict(self.flushes),
            "cr3_writes": self.cr3_writes,
            "cr3_writes_noflush": self.cr3_writes_noflush,
            "tlb_flushes": self.tlb_flushes,
            "stuns": self.stuns,
            "ephmap_operations": self.ephmap_operations,
            "amended_events": self.amended_events,
            "by_entry": [asdict(row) for row in self.by_entry[:top]],
            "causes": [self._cause_to_dict(cause) for cause in self.top_causes(top)],
            "warnings": list(self.warnings),
            "selection": self.selection or None,
            "by": {"key": self.by, "parts": [asdict(part) for part in self.parts]} if self.by else None,
        }

    def _cause_to_dict(self, cause: Cause) -> dict[str, Any]:
        names = tuple(getattr(cause, label) for label in self.stacks.labels)
        return asdict(cause) | {"stacks": [asdict(stack) for stack in self.stacks.by_cause[names]]}
