"""Positions of an attacker: from where to where, and which mechanisms there are attack programs for."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from asikit.attacks.errors import LeakError
from asikit.attacks.vulnerability import Branch, Mechanism, Party
from asikit.errors import nearest

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
        user, guest = Party.USER in way.attackers, Party.GUEST in way.attackers
        kernel, process = Party.KERNEL in way.victims, Party.USER in way.victims
        return {
            Vector.USER_KERNEL: user and kernel,
            Vector.USER_USER: user and process,
            Vector.GUEST_HOST: guest and kernel,
            Vector.GUEST_GUEST: guest and Party.GUEST in way.victims,
            Vector.CROSS_THREAD: user and (kernel or process),
            Vector.GUEST_USER: guest and process,
            Vector.SIBLING_USER: user and kernel and process,
            Vector.SIBLING_GUEST: guest and kernel,
            Vector.CROSS_CORE: user and (kernel or process) and way.crosses_cores(cpu),
            Vector.NMI: user and kernel,
            Vector.NONSENSITIVE: user and kernel,
            Vector.FLIP: user and kernel,
        }[self]

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


_BESIDE: Final = frozenset({Vector.CROSS_THREAD, Vector.SIBLING_USER, Vector.SIBLING_GUEST, Vector.CROSS_CORE})
"""Where attacker and victim run at the same time."""


def vector_named(name: str) -> Vector:
    """Return a vector. Raises LeakError with the nearest name if there is none."""
    if name not in set(Vector):
        raise LeakError(f'no vector "{name}"{nearest(name, list(Vector))} (there are {", ".join(Vector)})')
    return Vector(name)
