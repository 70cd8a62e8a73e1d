"""The threat model, one for proofs and attacks: who may learn what, from where, and how a mitigation can be got wrong.

>>> from asikit.protocol import ProtocolConfig
>>> from asikit.threat import Code, Owner, may_learn
>>> may_learn(Owner(Code.USER, "a"), Owner(Code.USER, "b"), ProtocolConfig())
False

`parties` says whose data there are and who may learn them, `structures` what they stay behind in, `transient` how far
a load gets that never retires, `attacker` what untrusted code can do. A `design` is a protocol and what the rest of the
kernel owes it; `mutants` is the catalogue of ways to get one wrong, made by `edits`. `runs` compares two runs that
differ in a secret.
"""

from __future__ import annotations

from asikit.threat.attacker import ALL_CAPABILITIES, ASSUMPTIONS, Capability
from asikit.threat.design import Design, leave_stale_translations, nothing_is_sensitive
from asikit.threat.errors import ThreatError, UnknownMutantError
from asikit.threat.mutants import ALTERNATIVES, CATALOGUE, Mutant, has_element, mutant
from asikit.threat.parties import EVERYBODY, FOLDED, KERNEL, NOBODY, Code, Owner, Party, may_learn, may_not_learn
from asikit.threat.runs import Parting, first_difference
from asikit.threat.structures import (
    ALL_PREDICTORS,
    DATA,
    PREDICTORS,
    STRUCTURES,
    Channel,
    ContentsLayout,
    assumed,
    layout_for,
    left_behind,
)
from asikit.threat.transient import transient_address, transient_load

__all__ = [
    "ALL_CAPABILITIES",
    "ALL_PREDICTORS",
    "ALTERNATIVES",
    "ASSUMPTIONS",
    "CATALOGUE",
    "DATA",
    "EVERYBODY",
    "FOLDED",
    "KERNEL",
    "NOBODY",
    "PREDICTORS",
    "STRUCTURES",
    "Capability",
    "Channel",
    "Code",
    "ContentsLayout",
    "Design",
    "Mutant",
    "Owner",
    "Parting",
    "Party",
    "ThreatError",
    "UnknownMutantError",
    "assumed",
    "first_difference",
    "has_element",
    "layout_for",
    "leave_stale_translations",
    "left_behind",
    "may_learn",
    "may_not_learn",
    "mutant",
    "nothing_is_sensitive",
    "transient_address",
    "transient_load",
]
