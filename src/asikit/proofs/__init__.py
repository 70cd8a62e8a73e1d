"""Proofs about the protocol: exhaustive exploration, induction, mutants with counterexamples.

>>> from asikit.proofs import verify, world_for
>>> print(verify(world_for("asi", threads=1)).verdict)
PROVED

`model` is the world around the protocol, on the assumptions of `asikit.threat`; `explore` visits all of it. `relation`
is what may happen in it, as guarded commands that `interpreter` runs for the exploration and that a solver reads:
`induction` proves the model for schedules of any length by the clauses of `invariant`. `necessity` tries the mutants,
the ways to get the protocol wrong that `asikit.threat` lists, and `story` tells what each of them leads to.
"""

from __future__ import annotations

from asikit.proofs.equivalence import SITUATIONS, SideBySide, Situation, compare, equivalence_verdict
from asikit.proofs.errors import TooLargeError, VerifyError
from asikit.proofs.model import World
from asikit.proofs.necessity import MutantRow, verify_mutants
from asikit.proofs.reproduce import Reproduction, reproduce
from asikit.proofs.story import Counterexample, StoryStep
from asikit.proofs.threads import Mode, Move, Thread, View
from asikit.proofs.verify import (
    BOTH,
    MITIGATIONS,
    NOT_PROVED,
    Property,
    Verdict,
    Verification,
    method_for,
    prove,
    verify,
    world_for,
)
from asikit.threat import (
    ALTERNATIVES,
    ASSUMPTIONS,
    CATALOGUE,
    Capability,
    Channel,
    Mutant,
    Party,
    UnknownMutantError,
    has_element,
    mutant,
)

__all__ = [
    "ALTERNATIVES",
    "ASSUMPTIONS",
    "BOTH",
    "CATALOGUE",
    "MITIGATIONS",
    "NOT_PROVED",
    "SITUATIONS",
    "Capability",
    "Channel",
    "Counterexample",
    "Mode",
    "Move",
    "Mutant",
    "MutantRow",
    "Party",
    "Property",
    "Reproduction",
    "SideBySide",
    "Situation",
    "StoryStep",
    "Thread",
    "TooLargeError",
    "UnknownMutantError",
    "Verdict",
    "Verification",
    "VerifyError",
    "View",
    "World",
    "compare",
    "equivalence_verdict",
    "has_element",
    "method_for",
    "mutant",
    "prove",
    "reproduce",
    "verify",
    "verify_mutants",
    "world_for",
]
