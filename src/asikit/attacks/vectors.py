"""Positions of an attacker: from where to where, and which mechanisms there are attack programs for."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from asikit.attacks.errors import LeakError
from asikit.attacks.vulnerability import Branch, Mechanism, Tag
from asikit.errors import nearest
from asikit.machine.x86 import Sharing
from asikit.threat import KERNEL, Code, Owner

if TYPE_CHECKING:
    from collections.abc import Sequence

    from asikit.attacks.vulnerability import Way
    from asikit.machine.x86 import CpuModel

__all__ = ["Vector", "vector_named"]


class Vector(StrEnum):
    """From where to where; the first five are those of Linux's attack vector controls."""

    USER_KERNEL = "user_kernel"
    USER_USER = "user_user"
    GUEST_HOST = "guest_host"
    """The victim is the host's kernel, or if that cannot be one, the VMM in user mode, which is of the host too."""
    GUEST_GUEST = "guest_guest"
    CROSS_THREAD = "cross_thread"
    """The victim runs on the sibling hyperthread: the kernel if it can be a victim, else another process. The attacker
    is a process, or if none can be one, a guest."""
    GUEST_USER = "guest_user"
    """A guest and its own VMM: the victim is the process that runs it, in user mode between two KVM_RUNs."""
    SIBLING_USER = "sibling_user"
    """The victim is another process on the sibling hyperthread."""
    SIBLING_GUEST = "sibling_guest"
    """The attacker is a guest on the sibling hyperthread of the kernel's, or if that cannot be a victim, of a VMM's in
    user mode."""
    CROSS_CORE = "cross_core"
    """The victim runs on another core."""
    NMI = "nmi"
    """User to kernel, and NMIs come between any two steps of a transition: their handler is the victim."""
    FLIP = "flip"
    """User to kernel; memory turns sensitive while the attacker's TLB has its translation."""
    NONSENSITIVE = "nonsensitive"
    """User to kernel; the secret is in memory that was declared nonsensitive."""

    def suits(self, way: Way, cpu: CpuModel) -> bool:
        """Tell whether a way works from there and there is an attack program for it."""
        return self.concerns(way, cpu) and self._has_program(way)

    def concerns(self, way: Way, cpu: CpuModel) -> bool:
        """Tell whether a way is an attack from there."""
        return not self.why_not(way, cpu)

    def why_not(self, way: Way, cpu: CpuModel) -> str:
        """Return why a way is no attack from there, which is the processor's or the way's doing; empty if it is one."""
        if way.vectors and self not in way.vectors:
            return f"it works along {', '.join(way.vectors)} alone"
        if not any(one.code in way.attackers and other.code in way.victims for one, other in self.pairs):
            return f"its attacker is {_named(way.attackers)} and its victim {_named(way.victims)}: not so there"
        if self is Vector.CROSS_CORE:
            return "" if way.crosses_cores(cpu) else "nothing that it works on is shared by cores"
        return _why_not_beside(way, cpu) if self in _BESIDE else ""

    @property
    def pairs(self) -> tuple[tuple[Owner, Owner], ...]:
        """Who may attack whom from there: an attacker, and a victim whose data it must not learn."""
        return _PAIRS[self]

    def _has_program(self, way: Way) -> bool:
        by_argument = way.branch in _BY_ARGUMENT
        own_tables = way.mechanism in {Mechanism.DEFERRED, Mechanism.BYPASS}
        if self in _BESIDE:
            return not by_argument and not own_tables
        if self is Vector.NMI:
            trained = way.mechanism is Mechanism.STEER and not by_argument
            return trained or way.mechanism in {Mechanism.SAMPLE, Mechanism.TERMINAL}
        if self is Vector.FLIP:
            return way.mechanism in {Mechanism.STEER, Mechanism.DEFERRED}
        return True

    @property
    def cpus(self) -> int:
        """Logical processors that it needs."""
        return 2 if self in _BESIDE or self is Vector.FLIP else 1

    @property
    def wants_siblings(self) -> bool:
        """Whether two of them are to be threads of one core."""
        return self in _BESIDE and self is not Vector.CROSS_CORE


_USER, _GUEST = Owner(Code.USER, "attacker"), Owner(Code.GUEST, "attacker")
_OTHER_USER, _OTHER_GUEST = Owner(Code.USER, "victim"), Owner(Code.GUEST, "victim")
_PAIRS: Final[dict[Vector, tuple[tuple[Owner, Owner], ...]]] = {
    Vector.USER_KERNEL: ((_USER, KERNEL),),
    Vector.USER_USER: ((_USER, _OTHER_USER),),
    Vector.GUEST_HOST: ((_GUEST, KERNEL), (_GUEST, _USER)),
    Vector.GUEST_GUEST: ((_GUEST, _OTHER_GUEST),),
    Vector.CROSS_THREAD: ((_USER, KERNEL), (_USER, _OTHER_USER), (_GUEST, KERNEL), (_GUEST, _OTHER_USER)),
    Vector.GUEST_USER: ((_GUEST, _USER),),
    Vector.SIBLING_USER: ((_USER, _OTHER_USER),),
    Vector.SIBLING_GUEST: ((_GUEST, KERNEL), (_GUEST, _OTHER_USER)),
    Vector.CROSS_CORE: ((_USER, KERNEL), (_USER, _OTHER_USER)),
    Vector.NMI: ((_USER, KERNEL),),
    Vector.NONSENSITIVE: ((_USER, KERNEL),),
    Vector.FLIP: ((_USER, KERNEL),),
}
_BESIDE: Final = frozenset({Vector.CROSS_THREAD, Vector.SIBLING_USER, Vector.SIBLING_GUEST, Vector.CROSS_CORE})
"""Where attacker and victim run at the same time."""

_BY_ARGUMENT: Final = frozenset({Branch.CONDITIONAL, Branch.ENTRY, Branch.STRAIGHT_LINE})
"""Branches that an attacker steers by what it gives to its own call, and no training."""
_FOUND_BY: Final = {Tag.ADDRESS: "btb", Tag.POSITION: "rsb", Tag.HISTORY: "bhb"}
"""What an attacker trains, by what an entry of it is found."""


def _why_not_beside(way: Way, cpu: CpuModel) -> str:
    """Return why a way is no attack on whom a sibling thread runs; empty if it is one."""
    if way.mechanism is Mechanism.DEFERRED:
        return "it loads through the attacker's own page tables, whatever a sibling does: user_kernel is the attack"
    if way.mechanism is Mechanism.BYPASS:
        return "a load overtakes a store of its own thread"
    if way.branch in _BY_ARGUMENT:
        own = "an attacker steers by what it gives to its own call, which runs on its own thread"
        return own if way.steered or way.branch is Branch.STRAIGHT_LINE else ""
    trained = _FOUND_BY.get(way.tag) if way.mechanism is Mechanism.STEER else None
    names = [name for name in way.structures if trained is None or name == trained] or way.structures
    alone = all(way.shared(cpu, name) is Sharing.THREAD for name in names)
    return f"each thread has its own {' and '.join(names)}" if alone else ""


def _named(codes: Sequence[Code]) -> str:
    return " or ".join(f"{'the ' if code is Code.KERNEL else 'a '}{code}" for code in codes)


def vector_named(name: str) -> Vector:
    """Return a vector. Raises LeakError with the nearest name if there is none."""
    if name not in set(Vector):
        raise LeakError(f'no vector "{name}"{nearest(name, list(Vector))} (there are {", ".join(Vector)})')
    return Vector(name)
