"""Numbers and names that others rely on: gfp flags, the address space."""

from __future__ import annotations

import itertools

import pytest

from asikit.machine.mm import (
    GFP_ATOMIC,
    GFP_HIGHUSER,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_NOFS,
    GFP_NOIO,
    GFP_NOWAIT,
    GFP_USER,
    Gfp,
    Layout,
    NotDirectMappedError,
)
from asikit.machine.mm.gfp import GFP_DMA32, GFP_TRANSHUGE, GFP_TRANSHUGE_LIGHT
from asikit.trace import Region


def test_gfp_combinations_are_those_of_linux_6_1() -> None:
    """The values that its `mm_page_alloc` event prints as these names, but for the sensitive ones' new bit."""
    sensitive = 1 << 28
    expected = {
        GFP_KERNEL: 0xCC0,
        GFP_ATOMIC: 0xA20,
        GFP_NOWAIT: 0x800,
        GFP_NOIO: 0xC00,
        GFP_NOFS: 0xC40,
        GFP_DMA32: 0x4,
        GFP_USER: 0x100CC0 | sensitive,
        GFP_HIGHUSER: 0x100CC2 | sensitive,
    }
    assert {int(gfp): value for gfp, value in expected.items()} == {value: value for value in expected.values()}
    assert int(GFP_TRANSHUGE) == int(GFP_TRANSHUGE_LIGHT) | 0x400


def test_user_memory_is_sensitive_and_kernel_memory_is_not() -> None:
    """__GFP_SENSITIVE is in GFP_USER and in everything that includes it."""
    assert all(gfp & Gfp.SENSITIVE for gfp in (GFP_USER, GFP_HIGHUSER, GFP_HIGHUSER_MOVABLE, GFP_TRANSHUGE))
    assert not any(gfp & Gfp.SENSITIVE for gfp in (GFP_KERNEL, GFP_ATOMIC, GFP_NOWAIT, GFP_NOFS, GFP_NOIO))


def test_every_gfp_flag_is_one_bit_of_its_own() -> None:
    """No two share a bit."""
    values = [int(flag) for flag in Gfp]
    assert all(value.bit_count() == 1 for value in values)
    assert len(set(values)) == len(values)


@pytest.mark.parametrize(
    ("levels", "address", "region"),
    [
        (4, 0x0000_0000_0040_0000, Region.USER),
        (4, 0x0000_7FFF_FFFF_EFFF, Region.USER),
        (4, 0xFFFF_8800_0000_0000, Region.LDT),
        (4, 0xFFFF_8880_0000_0000, Region.DIRECT_MAP),
        (4, 0xFFFF_C87F_FFFF_FFFF, Region.DIRECT_MAP),
        (4, 0xFFFF_C880_0000_0000, Region.OTHER),
        (4, 0xFFFF_C900_0000_0000, Region.VMALLOC),
        (4, 0xFFFF_E87F_FFFF_FFFF, Region.VMALLOC),
        (4, 0xFFFF_E880_0000_0000, Region.PERCPU),
        (4, 0xFFFF_EA00_0000_0000, Region.VMEMMAP),
        (4, 0xFFFF_FE00_0000_0000, Region.CPU_ENTRY_AREA),
        (4, 0xFFFF_FF00_0000_0000, Region.ESPFIX),
        (4, 0xFFFF_FFFF_8100_0000, Region.KERNEL_IMAGE),
        (4, 0xFFFF_FFFF_A000_0000, Region.MODULES),
        (4, 0xFFFF_FFFF_FF5F_F000, Region.FIXMAP),
        (5, 0x00FF_FFFF_FFFF_E000, Region.USER),
        (5, 0xFF11_0000_0000_0000, Region.DIRECT_MAP),
        (5, 0xFFA0_0000_0000_0000, Region.VMALLOC),
        (5, 0xFFD2_0000_0000_0000 - 1, Region.PERCPU),
        (5, 0xFFD4_0000_0000_0000, Region.VMEMMAP),
        (5, 0xFFFF_FFFF_8100_0000, Region.KERNEL_IMAGE),
    ],
)
def test_regions_are_where_linux_documents_them(levels: int, address: int, region: Region) -> None:
    """Documentation/arch/x86/x86_64/mm.rst."""
    assert Layout(levels).region_of(address) is region


@pytest.mark.parametrize("levels", [4, 5])
def test_regions_do_not_overlap_and_top_level_entries_are_not_shared(levels: int) -> None:
    """The areas that end up in a restricted address space whole begin at an entry of their own."""
    layout = Layout(levels)
    spans = sorted((span.start, span.end) for _, span in layout.regions)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert layout.percpu.start % (1 << layout.pgd_shift) == 0
    assert layout.vmalloc.end == layout.percpu.start


def test_direct_map_addresses_convert_both_ways_and_no_others() -> None:
    """__va and __pa."""
    layout = Layout()
    assert layout.virt(0x1234) == 0xFFFF_8880_0000_1234
    assert layout.phys(layout.virt(0x1234)) == 0x1234
    with pytest.raises(NotDirectMappedError) as error:
        layout.phys(0x1000)
    assert str(error.value) == "address 0x1000: not in the direct map"


def test_page_tables_have_4_or_5_levels() -> None:
    """Nothing else exists."""
    with pytest.raises(ValueError, match="4 or 5 levels, not 3"):
        Layout(3)
