"""Taints: what may linger in the core's microarchitecture, and what each class does about it.

A *data* taint says that a victim's data may remain where a side channel can read it (forward-looking: the attacker
is in the future). A *control* taint says that an attacker's training may remain in the branch predictors
(backward-looking: the attacker is in the past). Source: RFC v2 of January 2025, `arch/x86/include/asm/asi.h`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntFlag
from typing import TYPE_CHECKING

from asikit.protocol.errors import ClassNotRegisteredError, ClassRegisteredError, InvalidPolicyError

if TYPE_CHECKING:
    from asikit.protocol.classes import AsiClass


class Taint(IntFlag):
    """The seven taints, `asi_taints_t`. There is no KERNEL_CONTROL: nothing defends against the kernel itself."""

    KERNEL_DATA = 1 << 0
    USER_DATA = 1 << 1
    GUEST_DATA = 1 << 2
    OTHER_MM_DATA = 1 << 3
    USER_CONTROL = 1 << 4
    GUEST_CONTROL = 1 << 5
    OTHER_MM_CONTROL = 1 << 6


NO_TAINT = Taint(0)
# The prototype leaves GUEST_DATA out of its DATA_MASK: no data flush ever clears it, and a switch of mm forgets it.
DATA_MASK = Taint.KERNEL_DATA | Taint.USER_DATA | Taint.GUEST_DATA | Taint.OTHER_MM_DATA
CONTROL_MASK = Taint.USER_CONTROL | Taint.GUEST_CONTROL | Taint.OTHER_MM_CONTROL
# The prototype's ASI_NUM_TAINTS is 6 although it has seven: OTHER_MM_CONTROL would fall off.
ALL_TAINTS = DATA_MASK | CONTROL_MASK
OWN_MM_MASK = Taint.USER_DATA | Taint.GUEST_DATA | Taint.USER_CONTROL | Taint.GUEST_CONTROL
"""The taints that are about the loaded mm, which a switch of mm turns into OTHER_MM ones."""


@dataclass(frozen=True, slots=True)
class TaintPolicy:
    """What a class fears and what it leaves behind, `struct asi_taint_policy`.

    :ivar prevent_control: Entering with any of these flushes the branch predictors first.
    :ivar protect_data: Entering with any of these flushes the data side channels afterwards.
    :ivar set: The taints that running the domain's untrusted code leaves.
    """

    prevent_control: Taint
    protect_data: Taint
    set: Taint

    def check(self) -> None:
        """Refuse a policy that could never act, or that has bits of the wrong kind.

        :raises InvalidPolicyError: A field does not have bits of its kind, and only those.
        """
        for name, mask, kind in (
            ("prevent_control", CONTROL_MASK, "control"),
            ("protect_data", DATA_MASK, "data"),
        ):
            value = getattr(self, name)
            if not value & mask:
                raise InvalidPolicyError(f"{name} has no {kind} taint, so entering would never flush for it")
            if value & ~mask:
                raise InvalidPolicyError(f"{name} has {Taint(value & ~mask)!r}, which is not a {kind} taint")
        # On plain integers: `~` of a flag only knows the named bits.
        strange = int(self.set) & ~int(ALL_TAINTS)
        if strange:
            raise InvalidPolicyError(f"set has bits {strange:#x} that are no taint")


@dataclass(frozen=True, slots=True)
class ClassRegistry:
    """The registered classes and their policies; a value, so registering gives a new one."""

    entries: tuple[tuple[AsiClass, TaintPolicy], ...] = ()

    @property
    def classes(self) -> frozenset[AsiClass]:
        """The classes that are registered."""
        return frozenset(asi_class for asi_class, _ in self.entries)

    def register(self, asi_class: AsiClass, policy: TaintPolicy) -> ClassRegistry:
        """Add a class, `asi_init_class()`.

        :raises ClassRegisteredError: It is there (-EEXIST).
        :raises InvalidPolicyError: The policy could never act.
        """
        if asi_class in self.classes:
            raise ClassRegisteredError(f"class {asi_class.name} is registered already; unregister it first")
        policy.check()
        return ClassRegistry(tuple(sorted((*self.entries, (asi_class, policy)), key=lambda entry: entry[0])))

    def unregister(self, asi_class: AsiClass) -> ClassRegistry:
        """Remove a class, `asi_uninit_class()`.

        :raises ClassNotRegisteredError: It is not there.
        """
        gone = (asi_class, self.policy(asi_class))
        return ClassRegistry(tuple(entry for entry in self.entries if entry != gone))

    def policy(self, asi_class: AsiClass) -> TaintPolicy:
        """Return a class' policy.

        :raises ClassNotRegisteredError: It has none (-EINVAL).
        """
        for registered, policy in self.entries:
            if registered is asi_class:
                return policy
        raise ClassNotRegisteredError(f"class {asi_class.name} is not registered")
