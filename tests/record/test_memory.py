"""Reading the guest's memory at kernel addresses."""

from __future__ import annotations

import pytest

from asikit.record import RecordError
from asikit.record._memory import physical_base
from tests.record.made_memory import TEXT, MiB, made_memory


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("moved", [0, 2 * MiB])
def test_page_tables_are_walked(levels: int, moved: int) -> None:
    """What lies in the image is read through page tables of four and of five levels, wherever KASLR has put it."""
    word = (0x1122_3344_5566_7788).to_bytes(8, "little")
    with made_memory(levels=levels, moved=moved, image={TEXT + 0x3FFC: word * 2}) as memory:
        assert memory.levels == levels
        assert memory.word(TEXT + 0x3FFC) == 0x1122_3344_5566_7788  # in two pages
        assert memory.words(TEXT + 0x3FFC, 2) == (0x1122_3344_5566_7788,) * 2
        assert memory.number(TEXT + 0x4000) == 0x1122_3344


def test_what_is_not_mapped_or_not_memory_is_refused() -> None:
    """A kernel that refers to what there is not is refused by the address."""
    entry = {TEXT + 0x8000 + 8 * 0x111: (1 << 40 | 1).to_bytes(8, "little")}
    for image, refusal in (
        ({}, "address 0x{:x}, which it does not map"),
        (entry, "physical address 0x1{:010x}, where"),
    ):
        address = 0 if image else 0xFFFF_8880_0000_1000
        with made_memory(image=image) as memory, pytest.raises(RecordError, match=refusal.format(address)):
            memory.word(0xFFFF_8880_0000_1000)


def test_a_kernel_that_is_elsewhere_is_refused() -> None:
    """Where the banner is not found, the symbols are another kernel's."""
    with pytest.raises(RecordError, match="not where its symbols and /proc/iomem say"), made_memory(banner=b"Minix"):
        pass


def test_physical_base() -> None:
    """``phys_base`` follows from where the kernel's code lies; an unreadable or restricted /proc/iomem is refused."""
    line = "00100000-1ffdffff : System RAM\n  {}-05e01ef1 : Kernel code\n  02000000-02fff : Kernel rodata\n"
    assert physical_base(TEXT, line.format("01000000")) == 0
    assert physical_base(TEXT + 0x600_0000, line.format("05000000")) == -0x200_0000
    for text in ("", line.format("00000000")):
        with pytest.raises(RecordError, match="iomem does not say where the kernel lies"):
            physical_base(TEXT, text)
