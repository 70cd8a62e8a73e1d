"""Classes of untrusted domains, and the address spaces that they give a task."""

from __future__ import annotations

from enum import IntEnum, StrEnum


class AsiClass(IntEnum):
    """A kind of untrusted domain, `enum asi_class_id`. A domain is one class in one mm.

    The numbers are part of a PCID (`asikit.protocol.pcid`).
    """

    KVM = 0
    """A virtual machine's guest. Does not map user addresses."""
    USERSPACE = 1
    """A process in user mode. Maps user addresses."""
    IDLE = 2
    """An idle CPU: runs nothing untrusted itself, but with SMT its sibling may, so it too must leave the unrestricted
    address space. Maps only globally nonsensitive memory. Never published as code (2022 thread; Project Rain)."""

    @property
    def maps_user(self) -> bool:
        """Whether the domain maps the mm's user addresses, `asi_maps_user_addr()`."""
        return self is AsiClass.USERSPACE


class Space(IntEnum):
    """A kernel address space of the loaded mm; as a domain, UNRESTRICTED stands for none.

    One numbering serves `curr_asi`, `target`, CR3 and the ASI bits of a PCID: class + 1.
    """

    UNRESTRICTED = 0
    KVM = AsiClass.KVM + 1
    USERSPACE = AsiClass.USERSPACE + 1
    IDLE = AsiClass.IDLE + 1

    @property
    def asi_class(self) -> AsiClass | None:
        """The class whose restricted address space this is, None for the unrestricted one."""
        return None if self is Space.UNRESTRICTED else AsiClass(self - 1)

    @property
    def label(self) -> str:
        """Text for people: `unrestricted`, `restricted kvm`."""
        return "unrestricted" if self is Space.UNRESTRICTED else f"restricted {self.name.lower()}"


class Mapped(StrEnum):
    """What the restricted address spaces have of a region of addresses; the words of a sensitivity policy."""

    MAPPED = "mapped"
    ABSENT = "absent"
    BY_MEMORY = "by_memory"
    """Mapped where the memory behind it is nonsensitive."""
    USERSPACE = "userspace"
    """Mapped in the domains of the class USERSPACE only, not in KVM's (`asi_maps_user_addr()`)."""


NO_DOMAIN = Space.UNRESTRICTED
"""The value of `curr_asi` and `target` that the kernel writes NULL."""


def space_of(asi_class: AsiClass) -> Space:
    """Return the restricted address space of a class."""
    return Space(asi_class + 1)
