"""What a run amounted to: counts with the meanings that a replay of its trace has, and the programs' results."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asikit.protocol import AsiClass, Effect, EffectKind, ExitReason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from asikit.protocol import ProtocolConfig

__all__ = ["SCHEMA", "MachineReport", "MachineTally", "RoundTrip", "TlbCounts"]

SCHEMA = "asikit.run/1"
"""`schema` of the JSON form."""


@dataclass(slots=True)
class RoundTrip:
    """An entry from untrusted code, until the CPU's next return to such: its kind and number, and its exits."""

    kind: str
    number: int
    exits: int = 0

    @property
    def asi_class(self) -> AsiClass:
        """The class of the domain that it came from."""
        return AsiClass.KVM if self.kind == "vm_exit" else AsiClass.USERSPACE


@dataclass(frozen=True, slots=True)
class TlbCounts:
    """What all CPUs' TLBs did. `flushes` are the operations that dropped entries, for whatever reason.

    :ivar shootdowns: Flushes that interrupted other CPUs; `ipis` how many interrupts they took.
    """

    hits: int = 0
    misses: int = 0
    flushes: int = 0
    shootdowns: int = 0
    ipis: int = 0


@dataclass
class MachineTally:
    """Counts while a machine runs."""

    effects: Counter[Effect] = field(default_factory=Counter)
    reasons: Counter[ExitReason] = field(default_factory=Counter)
    round_trips: Counter[tuple[str, int]] = field(default_factory=Counter)
    without_exit: Counter[tuple[str, int]] = field(default_factory=Counter)
    exits_by_entry: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    """`user`, `kernel` (real ones in kernel mode), `asi` (only ASI's), `spurious`, `double`."""
    shootdowns: int = 0
    ipis: int = 0
    interrupts: Counter[str] = field(default_factory=Counter)
    switches: Counter[str] = field(default_factory=Counter)
    """`task`, `mm`, `migration`."""
    allocations: Counter[str] = field(default_factory=Counter)
    """`pages`, `frees`, `flips`."""

    def close(self, trip: RoundTrip) -> None:
        """Count a round trip that has ended."""
        key = trip.kind, trip.number
        self.round_trips[key] += 1
        if not trip.exits:
            self.without_exit[key] += 1

    def exit(self, trip: RoundTrip | None, reason: ExitReason) -> None:
        """Count an exit."""
        self.reasons[reason] += 1
        if trip is not None:
            trip.exits += 1
            self.exits_by_entry[trip.kind, trip.number] += 1


@dataclass(frozen=True)
class MachineReport:
    """A run of a machine, so far.

    Round trips, exits, flushes, CR3 writes, TLB flushes and stuns mean what they mean in `asikit.replay.ReplayResult`:
    only what the mechanism adds, none of what a kernel without it does too.

    :ivar mechanism: `asi`, `blanket` or `off`.
    :ivar round_trips: Entries from a protected-from domain, each with the CPU's next return to an untrusted domain.
    :ivar round_trips_without_exit: Those that ran in the restricted address space to their end.
    :ivar unprotected_round_trips: Round trips from domains of other classes.
    :ivar exits: Changes from the restricted to the unrestricted address space.
    :ivar exits_by_reason: Their number by reason; every reason has a key.
    :ivar flushes: Predictor and data flushes by kind; those that the configuration needs have a key.
    :ivar cr3_writes: Writes of CR3 that the protocol asks for; `cr3_writes_noflush` those that kept the TLB's entries.
    :ivar tlb_flushes: TLB flushes by CR3 writes that the protocol asks for, and that it asks for as such.
    :ivar stuns: Interruptions of the sibling thread.
    :ivar by_entry: Round trips, exits and trips without exit, by kind and number of the entry.
    :ivar faults: Page faults: `user`, `kernel`, `asi` (that happen only because of ASI), `spurious`, `double`.
    :ivar tlb: What the TLBs did, for the mechanism and otherwise.
    :ivar interrupts: Interrupts delivered, by name.
    :ivar switches: Switches of `task` and `mm`, and each `migration` of a task to another CPU.
    :ivar allocations: `pages` allocated, `frees`, and `flips` of a pageblock's sensitivity.
    :ivar hw_cr3_writes: All CR3 writes of all processors, the kernel's own among them.
    :ivar clock: Logical time of each CPU: accesses, instructions and system calls that happen without ASI too.
    :ivar results: Everything that programs and guests could see, canonically; equal for equal behaviour (I10).
    """

    mechanism: str
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
    by_entry: Mapping[tuple[str, int], tuple[int, int, int]]
    faults: Mapping[str, int]
    tlb: TlbCounts
    interrupts: Mapping[str, int]
    switches: Mapping[str, int]
    allocations: Mapping[str, int]
    hw_cr3_writes: int
    clock: tuple[int, ...]
    results: bytes = field(repr=False)

    @staticmethod
    def of(
        tally: MachineTally,
        config: ProtocolConfig,
        *,
        tlb: TlbCounts,
        hw_cr3_writes: int,
        clock: tuple[int, ...],
        results: bytes,
    ) -> MachineReport:
        """Return the report of a tally."""
        protected = {key for key in tally.round_trips if RoundTrip(*key).asi_class in config.classes}
        cr3 = {effect: times for effect, times in tally.effects.items() if effect.kind is EffectKind.WRITE_CR3}
        noflush = sum(times for effect, times in cr3.items() if effect.noflush)
        kinds: Counter[EffectKind] = Counter()
        for effect, times in tally.effects.items():
            kinds[effect.kind] += times
        active = config.asi or config.blanket
        keys = sorted({*tally.round_trips, *tally.exits_by_entry})
        return MachineReport(
            mechanism="asi" if config.asi else "blanket" if config.blanket else "off",
            round_trips=sum(tally.round_trips[key] for key in protected),
            round_trips_without_exit=sum(tally.without_exit[key] for key in protected),
            unprotected_round_trips=sum(tally.round_trips[key] for key in tally.round_trips if key not in protected),
            exits=tally.reasons.total(),
            exits_by_reason={reason.value: tally.reasons[reason] for reason in ExitReason},
            flushes={kind.value: kinds[kind] for kind in (*config.control_flush, *config.data_flush)} if active else {},
            cr3_writes=sum(cr3.values()),
            cr3_writes_noflush=noflush,
            tlb_flushes=sum(cr3.values()) - noflush + kinds[EffectKind.TLB_FLUSH],
            stuns=kinds[EffectKind.STUN],
            by_entry={
                key: (tally.round_trips[key], tally.exits_by_entry[key], tally.without_exit[key]) for key in keys
            },
            faults=dict(tally.faults),
            tlb=tlb,
            interrupts=dict(tally.interrupts),
            switches=dict(tally.switches),
            allocations=dict(tally.allocations),
            hw_cr3_writes=hw_cr3_writes,
            clock=clock,
            results=results,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form, as plain values."""
        plain = {
            name: value
            for name, value in vars(self).items()
            if name not in {"by_entry", "tlb", "results", "exits_by_reason", "flushes"}
        }
        return {
            "schema": SCHEMA,
            **plain,
            "exits_by_reason": dict(self.exits_by_reason),
            "flushes": dict(self.flushes),
            "by_entry": [
                {"kind": kind, "number": number, "round_trips": trips, "exits": exits, "without_exit": without}
                for (kind, number), (trips, exits, without) in self.by_entry.items()
            ],
            "tlb": {name: getattr(self.tlb, name) for name in TlbCounts.__slots__},
            "results_sha256": hashlib.sha256(self.results).hexdigest(),
        }
