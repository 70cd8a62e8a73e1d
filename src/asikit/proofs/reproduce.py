"""Counterexamples run on the machine: a model of a processor and a kernel, with the mutant's protocol in it.

>>> from asikit.proofs import mutant, reproduce, verify, world_for
>>> world, candidate = world_for(threads=1), mutant("no-verw")
>>> found = verify(world, candidate).counterexample
>>> reproduce(world, candidate, found).leaks
True

The machine follows the story (`asikit.proofs.stage`), and its core does transiently what the assumptions about the
hardware let it do (`asikit.proofs.stage.eavesdropper`). It leaks if what untrusted code comes by differs between two
runs that differ only in a secret that it must not learn: non-interference. The same story on the machine with the
protocol as it is must show nothing: the control.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from asikit.proofs.stage import owners, perform
from asikit.threat import first_difference

if TYPE_CHECKING:
    from asikit.proofs.model import World
    from asikit.proofs.stage import Learnt
    from asikit.proofs.story import Counterexample
    from asikit.threat import Mutant, Owner


@dataclass(frozen=True, slots=True)
class Reproduction:
    """What became of a counterexample on the machine.

    :ivar leaks: Whether the machine with the mutant goes wrong and the machine without it does not; None if the
        unchanged protocol goes wrong there too.
    :ivar kind: `leak`, `deadlock` or `broken rule`, as in a counterexample; empty if nothing went wrong.
    :ivar says: What went wrong, or that nothing did.
    :ivar missed: Steps of the story that the machine could not follow.
    """

    leaks: bool | None
    kind: str
    says: str
    missed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"kind": self.kind or None, "says": self.says, "missed": self.missed}


def reproduce(world: World, candidate: Mutant | None, found: Counterexample) -> Reproduction:
    """Run a counterexample on the machine.

    :param world: The model as it is, without the mutant.
    :param candidate: The mutant; without one there is no control.
    """
    base = world if candidate is None else candidate.base(world)
    kind, says, missed = _outcome(base if candidate is None else candidate.edit(base), found)
    if not kind or candidate is None:
        return Reproduction(leaks=bool(kind), kind=kind, says=says, missed=missed)
    control, control_says, _ = _outcome(base, found)
    if control:
        return Reproduction(None, kind, f"the unchanged protocol does so too: {control_says}", missed)
    return Reproduction(leaks=True, kind=kind, says=says, missed=missed)


def _outcome(world: World, found: Counterexample) -> tuple[str, str, int]:
    """Return how a story ends on the machine: kind, sentence, and steps that could not be followed."""
    plain = perform(world, found.steps)
    for owner in owners(world):
        other = perform(world, found.steps, changed=owner)
        leak = _difference(world, owner, plain.learnt, other.learnt)
        if leak:
            return "leak", leak, plain.missed
    if plain.kind:
        return plain.kind, plain.says, plain.missed
    return "", "what untrusted code comes by does not depend on a secret, and nothing else goes wrong", plain.missed


def _difference(world: World, owner: Owner, one: tuple[Learnt, ...], other: tuple[Learnt, ...]) -> str:
    """Return who learns a secret, from two runs that differ in it; empty if nobody does who must not."""
    mine, theirs = ([each for each in learnt if world.must_not_learn(each.who, owner)] for learnt in (one, other))
    found = first_difference(mine, theirs)
    return "" if found is None else f"{found.seen.who} learns data of {owner}: {found.seen.how}"
