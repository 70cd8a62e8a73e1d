"""Parties: whose a datum is, and who may learn it. The one threat model, of proofs and attacks.

A party is seen from the mm that a core runs; that is why a switch of mm turns what was the own user's and guest's into
another mm's, and why one other mm stands for any number of them. On a machine there are owners instead, by name.
"""

from __future__ import annotations

from enum import IntFlag, StrEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from asikit.protocol import ProtocolConfig


class Code(StrEnum):
    """Whose code runs: as victim any of them, as attacker what is not the kernel's."""

    KERNEL = "kernel"
    USER = "user"
    GUEST = "guest"

    @property
    def is_untrusted(self) -> bool:
        """Whether it may be an attacker's."""
        return self is not Code.KERNEL


class Owner(NamedTuple):
    """Whose a datum is: the kernel's, a process' or that process' guest's.

    :ivar process: The name of the process; empty for the kernel.
    """

    code: Code
    process: str = ""

    @property
    def guest(self) -> Owner:
        """Its process' guest."""
        return self._replace(code=Code.GUEST)

    def __str__(self) -> str:
        """Text for people: `the kernel`, the process' name, `the guest of` it."""
        return {Code.KERNEL: "the kernel", Code.USER: self.process, Code.GUEST: f"the guest of {self.process}"}[
            self.code
        ]


KERNEL = Owner(Code.KERNEL)


def may_learn(who: Owner, owner: Owner, config: ProtocolConfig, *, trusting: bool = False) -> bool:
    """Tell whether somebody may learn an owner's data: the threat model (RFC v2, patch 3).

    The kernel and whose the data is may. The guest trusts its VMM, so the process may see its guest's data; whether the
    guest may see the process' own is the configuration's to say. Different processes are no friends of one another.

    :param trusting: A process and its own guest need no protection from one another.
    """
    if who.code is Code.KERNEL or who == owner:
        return True
    if owner.code is Code.KERNEL or who.process != owner.process:
        return False
    return who.code is Code.USER or trusting or not config.kvm_protects_user_data


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


_OWN, _OTHERS = "own", ("one other", "yet another")
_OWNERS: dict[Party, tuple[Owner, ...]] = {
    Party.OTHER: tuple(Owner(code, name) for name in _OTHERS for code in (Code.USER, Code.GUEST)),
    Party.USER: (Owner(Code.USER, _OWN),),
    Party.GUEST: (Owner(Code.GUEST, _OWN),),
    Party.KERNEL: (KERNEL,),
}
"""Whom each party stands for. Others are several, which is why they must not learn one another's data."""


def may_not_learn(party: Party, config: ProtocolConfig, *, trusting: bool = False) -> Party:
    """Return whose data must stay hidden from a party's code: what somebody whom it stands for may not learn.

    :param trusting: As in `may_learn`.
    """

    def hidden(other: Party) -> bool:
        pairs = ((who, owner) for who in _OWNERS[party] for owner in _OWNERS[other])
        return not all(may_learn(who, owner, config, trusting=trusting) for who, owner in pairs)

    return Party(sum(other for other in Party if hidden(other)))
