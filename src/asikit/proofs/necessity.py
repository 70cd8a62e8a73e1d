"""T4: every element of the mechanism removed, or moved, alone, and what becomes of it."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from os import sched_getaffinity
from typing import TYPE_CHECKING, Any

from asikit.proofs.verify import Verdict, Verification, verify, world_for
from asikit.threat import CATALOGUE, has_element, mutant

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["MutantRow", "verify_mutants"]

_AT_ONCE = 2
"""Mutants that are explored beside one another: each may take a gigabyte."""


@dataclass(frozen=True, slots=True)
class MutantRow:
    """What became of a mutant.

    :ivar mutant: Its name.
    :ivar variant: As `Mutant.variant`.
    :ivar says: What is changed, one line.
    :ivar family: As `Mutant.family`.
    :ivar verdict: REFUTED if any of the two is.
    :ivar without_smt: With one thread to a core; None if that was not asked for.
    :ivar with_smt: With two; None if that was not needed.
    :ivar refuted: The verification that refuted it.
    :ivar states: States that were reached, in all.
    """

    mutant: str
    variant: str
    says: str
    family: str
    verdict: Verdict
    without_smt: Verdict | None
    with_smt: Verdict | None
    refuted: Verification | None
    states: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the row as JSON values."""
        found = self.refuted.counterexample if self.refuted is not None else None
        machine = self.refuted.machine if self.refuted is not None else None
        return {
            "mutant": self.mutant,
            "variant": self.variant or None,
            "says": self.says,
            "family": self.family,
            "verdict": str(self.verdict),
            "without_smt": _text(self.without_smt),
            "with_smt": _text(self.with_smt),
            "kind": None if found is None else found.kind,
            "steps": None if found is None else len(found.steps),
            "states": self.states,
            "counterexample": None if found is None else found.to_dict(),
            "leaks_on_machine": None if machine is None else machine.leaks,
            "on_machine": None if machine is None else machine.to_dict(),
        }


def verify_mutants(
    names: Iterable[str] | None = None,
    *,
    threads: int | None = None,
    nesting: int = 1,
    on_machine: bool = False,
) -> Iterator[MutantRow]:
    """Yield what becomes of mutants of ASI, in order: with one thread first, and if that does not refute it, with two.

    Several are explored at a time if there are several processors.

    :param names: Of mutants; by default the whole catalogue.
    :param threads: Only with so many threads.
    :param on_machine: Run counterexamples on the machine too.
    :raises UnknownMutantError: There is no mutant of some name.
    """
    wanted = [each.name for each in (CATALOGUE if names is None else map(mutant, names))]
    row = partial(_row, counts=(1, 2) if threads is None else (threads,), nesting=nesting, on_machine=on_machine)
    workers = min(len(sched_getaffinity(0)), len(wanted), _AT_ONCE)
    if workers < _AT_ONCE:
        yield from map(row, wanted)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(row, wanted)


def _row(name: str, *, counts: tuple[int, ...], nesting: int, on_machine: bool) -> MutantRow:
    candidate = mutant(name)
    verdicts: dict[int, Verdict] = {}
    refuted, states = None, 0
    for threads in counts:
        world = world_for(threads=threads, nesting=nesting)
        if not has_element(world, candidate):
            # The model as it is: its own verdict is not this row's to find.
            verdicts[threads] = Verdict.PROVED
            continue
        verification = verify(world, candidate, on_machine=on_machine)
        verdicts[threads] = verification.verdict
        states += verification.states
        if verification.verdict is Verdict.REFUTED:
            refuted = verification
            break
    worst = max(verdicts.values(), key=[Verdict.PROVED, Verdict.UNKNOWN, Verdict.REFUTED].index)
    return MutantRow(
        name,
        candidate.variant,
        candidate.says,
        candidate.family,
        worst,
        verdicts.get(1),
        verdicts.get(2),
        refuted,
        states,
    )


def _text(verdict: Verdict | None) -> str | None:
    return None if verdict is None else str(verdict)
