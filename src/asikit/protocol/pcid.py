"""Process-context identifiers: how an address space gets a TLB tag of its own.

A PCID is `kern_pcid(asid)` with the domain's class above it and PTI's user bit on top; 12 bits in all (SDM 3A 4.10.1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.protocol.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.protocol.classes import AsiClass, Space

PCID_BITS = 12
CR3_NOFLUSH = 1 << 63
"""Bit 63 of the value written to CR3: keep the PCID's TLB entries."""
DYNAMIC_ASIDS = 6
"""Address spaces that a CPU keeps apart in its TLB, `TLB_NR_DYN_ASIDS`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PcidLayout:
    """Where the bits of a PCID go.

    :ivar pti: Bit 11 is the user half's, `X86_CR3_PTI_PCID_USER_BIT`.
    :ivar class_bits: Bits for the class, `X86_CR3_ASI_PCID_BITS`; directly below PTI's bit, or at the top without it.
    """

    pti: bool = False
    class_bits: int = 2

    @property
    def class_shift(self) -> int:
        """The lowest bit of the class."""
        return PCID_BITS - self.pti - self.class_bits

    @property
    def max_asid(self) -> int:
        """The largest ASID that leaves the class bits alone."""
        return (1 << self.class_shift) - 2

    def check(self, classes: Iterable[AsiClass]) -> None:
        """Refuse classes that do not fit.

        The prototype asserts `order_base_2(X86_CR3_ASI_PCID_BITS) <= ASI_MAX_NUM_CLASSES`, which is the wrong way round
        and hardly ever false; that the largest class + 1 fits into the bits is meant.

        :raises ConfigError: One does not fit.
        """
        for asi_class in classes:
            if asi_class + 1 >= 1 << self.class_bits:
                raise ConfigError(f"class {asi_class.name} does not fit into {self.class_bits} PCID bits; give it more")

    def pcid(self, asid: int, space: Space, *, user_half: bool = False) -> int:
        """Return `asi_pcid()`: `kern_pcid(asid) | (class + 1) << shift`.

        :raises ConfigError: It does not fit.
        """
        if not 0 <= asid <= self.max_asid:
            raise ConfigError(f"ASID {asid} does not fit; this layout has 0 to {self.max_asid}")
        if user_half and not self.pti:
            raise ConfigError("there is no user half without PTI")
        if space.asi_class is not None:
            self.check((space.asi_class,))
        # asid + 1 (`kern_pcid`), so that PCID 0 stays for code that knows nothing of PCIDs.
        return (asid + 1) | (space << self.class_shift) | (user_half << (PCID_BITS - 1))

    def cr3(self, pgd: int, pcid: int, *, noflush: bool = False) -> int:
        """Return the value to write to CR3: page table root at physical address `pgd` (page aligned), PCID, NOFLUSH."""
        return pgd | pcid | (CR3_NOFLUSH if noflush else 0)
