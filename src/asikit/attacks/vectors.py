"""Positions of an attacker: from where to where, and which mechanisms there are attack programs for."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from asikit.attacks.errors import LeakError
from asikit.attacks.vulnerability import Branch, Mechanism
from asikit.errors import nearest
from asikit.threat import KERNEL, Code, Owner

if TYPE_CHECKING:
    from asikit.attacks.vulnerability import Way
    from asikit.machine.x86 import CpuModel

__all__ = ["Vector", "vector_named"]


class Vector(StrEnum):
    """From where to where; the first five are those of Linux's attack vector controls."""

    USER_KERNEL = "user_kernel"
    USER_USER = "user_user"
    GUEST_HOST = "guest_host"
    GUEST_GUEST = "guest_guest"
    CROSS_THREAD = "cross_thread"
    """The victim runs on the sibling hyperthread: the kernel if it can be a victim, else another process."""
    GUEST_USER = "guest_user"
    """A guest and its own VMM: the victim is the process that runs it, in user mode between two KVM_RUNs."""
    SIBLING_USER = "sibling_user"
    """The victim is another process on the sibling hyperthread, of what can have the kernel as victim too."""
    SIBLING_GUEST = "sibling_guest"
    """The attacker is a guest on the sibling hyperthread of the kernel's."""
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
        """Tell whether a way has attackers and victims there; across cores something must be shared by them."""
        if way.vectors and self not in way.vectors:
            return False
        if self is Vector.CROSS_CORE and not way.crosses_cores(cpu):
            return False
        if self is Vector.SIBLING_USER and Code.KERNEL not in way.victims:
            return False
        return any(one.code in way.attackers and other.code in way.victims for one, other in self.pairs)

    @property
    def pairs(self) -> tuple[tuple[Owner, Owner], ...]:
        """Who may attack whom from there: an attacker, and a victim whose data it must not learn."""
        return _PAIRS[self]

    def _has_program(self, way: Way) -> bool:
        by_argument = way.branch in {Branch.CONDITIONAL, Branch.ENTRY, Branch.STRAIGHT_LINE}
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
    Vector.GUEST_HOST: ((_GUEST, KERNEL),),
    Vector.GUEST_GUEST: ((_GUEST, _OTHER_GUEST),),
    Vector.CROSS_THREAD: ((_USER, KERNEL), (_USER, _OTHER_USER)),
    Vector.GUEST_USER: ((_GUEST, _USER),),
    Vector.SIBLING_USER: ((_USER, _OTHER_USER),),
    Vector.SIBLING_GUEST: ((_GUEST, KERNEL),),
    Vector.CROSS_CORE: ((_USER, KERNEL), (_USER, _OTHER_USER)),
    Vector.NMI: ((_USER, KERNEL),),
    Vector.NONSENSITIVE: ((_USER, KERNEL),),
    Vector.FLIP: ((_USER, KERNEL),),
}
_BESIDE: Final = frozenset({Vector.CROSS_THREAD, Vector.SIBLING_USER, Vector.SIBLING_GUEST, Vector.CROSS_CORE})
"""Where attacker and victim run at the same time."""


def vector_named(name: str) -> Vector:
    """Return a vector. Raises LeakError with the nearest name if there is none."""
    if name not in set(Vector):
        raise LeakError(f'no vector "{name}"{nearest(name, list(Vector))} (there are {", ".join(Vector)})')
    return Vector(name)
