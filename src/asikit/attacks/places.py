"""Where code and data of victims are: an attacker knows all addresses."""

from __future__ import annotations

from typing import Final

__all__ = [
    "CALL",
    "CHECKS",
    "ELSEWHERE",
    "ENTRY",
    "FILL",
    "GADGET",
    "GUEST_SECRET",
    "PATTERN",
    "RETURN",
    "USER_FUNCTION",
    "branch_of",
]

GADGET: Final = 0xFFFF_FFFF_8123_4560
"""Where code of the victim's is that loads from an address in a register, and then from a line that the value names."""
CHECKS: Final = (GADGET + 0x100, GADGET + 0x180)
"""Two bounds checks of the victim's, the one before and the other after it has used its secret."""
ENTRY: Final = GADGET + 0x200
"""The entry code's branch."""
ELSEWHERE: Final = GADGET + 0x300
"""An indirect branch of the kernel's that rightly goes to the gadget."""
USER_FUNCTION: Final = 0x40_1000
"""A function of a victim in user mode, or of a guest's."""
GUEST_SECRET: Final = 0x3000
"""Where a victim guest has its secret, as a guest physical address."""
CALL: Final = 5
"""Where in a function, in bytes, the branch is that goes to it: the thunk through which it is called."""
RETURN: Final = 14
"""Where in it its return is."""
FILL: Final = 32
"""Entries that fill any return stack or branch history that an attacker has to fill."""
PATTERN: Final = range(USER_FUNCTION + 0x1000, USER_FUNCTION + 0x1000 + FILL)
"""Branches of the attacker's that make the history by which a victim's branch goes to the gadget."""


def branch_of(secret: bytes) -> int:
    """Return where a victim has a branch whose address depends on a secret."""
    return (int.from_bytes(secret[:4], "little") << 12) + 0x10
