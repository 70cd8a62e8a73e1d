"""The hardware as the proofs assume it: structures, who shares them, what clears them; and who may learn what.

The four assumptions, after Ward's unmapped speculation contract (OSDI 2020) and the two-mode unwinding of seL4's time
protection (FM 2023):

* H1: code may bring anything that the present page tables map into the core's structures, any time, and nothing else.
* H2: each structure is emptied by one primitive, and by it completely (`STRUCTURES`).
* H3: all these structures are shared by the hardware threads of a core and by nobody else.
* H4: untrusted code reads every data structure of its core, and trains every predictor of it.

A datum is named by whose it is (`Party`), seen from the mm that the core runs; that is why a switch of mm turns what
was the own user's and guest's into another mm's, and why one other mm stands for any number of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Flag, IntFlag, auto
from typing import TYPE_CHECKING

from asikit.protocol import PRIMITIVES, FlushSide

if TYPE_CHECKING:
    from asikit.protocol import EffectKind, ProtocolConfig

ASSUMPTIONS: tuple[str, ...] = (
    "H1  Speculation reaches what the present page tables map, and nothing else, but may do so at any time.",
    "H2  Each structure is emptied by its primitive, wholly: the table in docs/verify.md.",
    "H3  Those structures are shared by the threads of one core, and by nobody else.",
    "H4  Untrusted code reads all data structures of its core, and trains all its predictors.",
)


class Party(IntFlag):
    """Whose a datum is, or who trained a predictor. The numbers are bit positions in a structure's field."""

    OTHER = 1
    """Processes and guests of other mm's."""
    USER = 2
    """The process whose mm is loaded, in user mode."""
    GUEST = 4
    """Its guest."""
    KERNEL = 8
    """The kernel's own sensitive memory."""

    @property
    def label(self) -> str:
        """Text for people: `the kernel`, `another process`."""
        return {1: "another process", 2: "the process", 4: "its guest", 8: "the kernel"}.get(int(self), "nobody")


NOBODY = Party(0)
EVERYBODY = Party.OTHER | Party.USER | Party.GUEST | Party.KERNEL
FOLDED = Party.USER | Party.GUEST
"""What becomes `Party.OTHER` when another mm is loaded."""


class Capability(Flag):
    """What the attacker can do: each may be taken away."""

    TRAIN = auto()
    """Train the predictors, so that kernel code with a secret in reach transmits it (Spectre v2 and its kin)."""
    SAMPLE = auto()
    """Read what victims left in the data structures (L1TF, MDS and its kin; half a gadget brings it there)."""
    DEFERRED = auto()
    """Read whatever the own page tables map, permitted or not (Meltdown)."""


ALL_CAPABILITIES = Capability.TRAIN | Capability.SAMPLE | Capability.DEFERRED


@dataclass(frozen=True, slots=True)
class Channel:
    """One microarchitectural structure of the core.

    :ivar name: As it is printed.
    :ivar holds: `data` of victims, or `training` by attackers.
    :ivar cleared_by: The primitive that empties it (H2).
    """

    name: str
    holds: str
    cleared_by: EffectKind


STRUCTURES: tuple[Channel, ...] = tuple(
    Channel(primitive.channel, holds, primitive.kind)
    for side, holds in ((FlushSide.DATA, "data"), (FlushSide.CONTROL, "training"))
    for primitive in PRIMITIVES
    if primitive.side is side
)
"""The kernel's Documentation/admin-guide/hw-vuln. What no primitive clears is beyond any protocol."""

FIELD_BITS = 4


@dataclass(frozen=True, slots=True)
class ContentsLayout:
    """The structures that one CPU leaks through, and their place in the packed contents: a field of `Party` each.

    :ivar structures: Those that the configuration's flushes clear; others leak nothing, or cannot be helped.
    """

    structures: tuple[Channel, ...]

    @property
    def bits(self) -> int:
        """The width of the packed contents."""
        return FIELD_BITS * len(self.structures)

    def spread(self, holds: str, parties: Party) -> int:
        """Return the contents in which all structures of a kind hold what is of some parties."""
        return sum(
            int(parties) << FIELD_BITS * place
            for place, structure in enumerate(self.structures)
            if structure.holds == holds
        )

    def cleared_by(self, kind: EffectKind) -> int:
        """Return the mask of what a primitive clears."""
        everything = (1 << FIELD_BITS) - 1
        return sum(
            everything << FIELD_BITS * place
            for place, structure in enumerate(self.structures)
            if structure.cleared_by is kind
        )

    @property
    def other(self) -> int:
        """The mask of all fields' bits for `Party.OTHER`."""
        return sum(int(Party.OTHER) << FIELD_BITS * place for place in range(len(self.structures)))

    def fold(self, contents: int) -> int:
        """Return the contents after another mm was loaded: what was the own user's and guest's is another's."""
        return (contents & ~(self.other * int(FOLDED))) | (((contents >> 1) | (contents >> 2)) & self.other)

    def unpack(self, contents: int) -> dict[str, Party]:
        """Return what each structure holds, by its name."""
        return {
            structure.name: Party((contents >> FIELD_BITS * place) & ((1 << FIELD_BITS) - 1))
            for place, structure in enumerate(self.structures)
        }


def layout_for(config: ProtocolConfig) -> ContentsLayout:
    """Return the structures that a configuration's flushes are for."""
    cleared = {*config.control_flush, *config.data_flush}
    return ContentsLayout(tuple(structure for structure in STRUCTURES if structure.cleared_by in cleared))


def may_not_learn(party: Party, config: ProtocolConfig) -> Party:
    """Return whose data must stay hidden from untrusted code: the threat model (RFC v2, patch 3).

    The guest trusts its VMM, so the process may see its guest's data; whether the guest may see the process' own is the
    configuration's to say. Another mm stands for all others, which are no friends of one another either.
    """
    if party is Party.USER:
        return Party.KERNEL | Party.OTHER
    if party is Party.GUEST:
        own = Party.USER if config.kvm_protects_user_data else NOBODY
        return Party.KERNEL | Party.OTHER | own
    return EVERYBODY
