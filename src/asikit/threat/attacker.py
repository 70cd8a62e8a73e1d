"""The attacker: what hardware is assumed to give it, and what it can do with that.

The four `ASSUMPTIONS` are after Ward's unmapped speculation contract (OSDI 2020) and the two-mode unwinding of seL4's
time protection (FM 2023). The proofs take them as they stand; an attack replaces H2 and H3 by what a CPU model's file
says.
"""

from __future__ import annotations

from enum import Flag, auto

ASSUMPTIONS: tuple[str, ...] = (
    "H1  Speculation reaches what the present page tables map, and nothing else, but may do so at any time.",
    "H2  Each structure is emptied by its primitive, wholly: the table in docs/verify.md.",
    "H3  Those structures are shared by the threads of one core, and by nobody else.",
    "H4  Untrusted code reads all data structures of its core, and trains all its predictors.",
)


class Capability(Flag):
    """What the attacker can do: each may be taken away."""

    TRAIN = auto()
    """Train the predictors, so that kernel code with a secret in reach transmits it (Spectre v2 and its kin)."""
    SAMPLE = auto()
    """Read what victims left in the data structures (L1TF, MDS and its kin; half a gadget brings it there)."""
    DEFERRED = auto()
    """Read whatever the own page tables map, permitted or not (Meltdown)."""


ALL_CAPABILITIES = Capability.TRAIN | Capability.SAMPLE | Capability.DEFERRED
