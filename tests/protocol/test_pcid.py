"""PCIDs: every address space its own, within 12 bits."""

from __future__ import annotations

from itertools import product

import pytest

from asikit.protocol import AsiClass, ConfigError, PcidLayout, Space
from asikit.protocol.pcid import CR3_NOFLUSH, DYNAMIC_ASIDS, PCID_BITS


@pytest.mark.parametrize("pti", [True, False], ids=["pti", "no pti"])
def test_unique_and_in_range(pti: bool) -> None:
    """All (ASID, space, half) get different PCIDs of 12 bits, and none gets PCID 0."""
    layout = PcidLayout(pti=pti)
    asids = range(layout.max_asid + 1)
    halves = (False, True) if pti else (False,)
    pcids = [layout.pcid(asid, space, user_half=half) for asid, space, half in product(asids, Space, halves)]
    assert len(set(pcids)) == len(pcids)
    assert 0 < min(pcids) <= max(pcids) < 1 << PCID_BITS
    assert layout.max_asid + 1 >= DYNAMIC_ASIDS


def test_bits() -> None:
    """`kern_pcid(asid) | (class + 1) << shift`: the class directly below PTI's bit 11, or at the top without it."""
    assert PcidLayout(pti=True).pcid(4, Space.USERSPACE, user_half=True) == 5 | (2 << 9) | (1 << 11)
    assert PcidLayout(pti=False).pcid(4, Space.KVM) == 5 | (1 << 10)
    assert PcidLayout().pcid(4, Space.UNRESTRICTED) == 5


def test_cr3() -> None:
    """Root, PCID and bit 63."""
    assert PcidLayout().cr3(0x1234000, 5, noflush=True) == CR3_NOFLUSH | 0x1234005
    assert PcidLayout().cr3(0x1234000, 5) == 0x1234005


def test_classes_must_fit() -> None:
    """The prototype's assertion is the wrong way round and lets this pass: three classes in one bit."""
    published_assertion_holds = (1 - 1).bit_length() <= len(AsiClass)  # order_base_2(1) <= ASI_MAX_NUM_CLASSES
    assert published_assertion_holds
    PcidLayout().check(AsiClass)
    with pytest.raises(ConfigError, match="class USERSPACE does not fit into 1 PCID bits; give it more"):
        PcidLayout(class_bits=1).check((AsiClass.KVM, AsiClass.USERSPACE))


def test_what_does_not_fit_is_refused() -> None:
    """ASIDs beyond the class bits, and user halves without PTI."""
    layout = PcidLayout()
    with pytest.raises(ConfigError, match="ASID 1023 does not fit; this layout has 0 to 1022"):
        layout.pcid(1023, Space.KVM)
    with pytest.raises(ConfigError, match="no user half without PTI"):
        layout.pcid(0, Space.KVM, user_half=True)
