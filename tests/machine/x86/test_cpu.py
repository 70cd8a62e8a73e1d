"""Loads and stores of a processor, and its control registers."""

from __future__ import annotations

import pytest

from asikit.machine.x86 import (
    CR3_NOFLUSH,
    Access,
    Core,
    Cpu,
    CpuModel,
    Cr0,
    Cr4,
    Efer,
    GeneralProtection,
    InvalidOpcode,
    Invpcid,
    PageFault,
    PfError,
    PhysicalMemory,
    Pte,
    UnsupportedError,
    load_cpu,
)
from tests.machine.x86.tables import OPEN, Tables, cpu, tables

PAGE = 0x1000
HERE = 0x7000_0000


def fresh(name: str = "generic", levels: int = 4) -> Cpu:
    """A processor as it starts."""
    (made,) = Core(0, load_cpu(name), PhysicalMemory(1 << 24), levels=levels).threads
    return made


# Memory.


def test_across_pages() -> None:
    """A range over three pages goes to their three frames, in order; numbers too."""
    on = cpu()
    mapped = tables(on)
    for number, paddr in enumerate((0x9000, 0x3000, 0x6000)):
        mapped.map(HERE + number * PAGE, paddr)
    data = bytes(range(256)) * 20
    on.store(HERE + PAGE - 4, data[: PAGE + 8])
    assert on.load(HERE + PAGE - 4, PAGE + 8) == data[: PAGE + 8]
    assert on.memory.read(0x9FFC, 4) == data[:4]
    assert on.memory.read(0x3000, PAGE) == data[4 : 4 + PAGE]
    assert on.memory.read(0x6000, 4) == data[4 + PAGE : 8 + PAGE]
    on.store_u64(HERE + PAGE - 4, 0x1122334455667788)
    assert on.load_u64(HERE + PAGE - 4) == 0x1122334455667788
    assert on.memory.read(0x9FFC, 4) + on.memory.read(0x3000, 4) == (0x1122334455667788).to_bytes(8, "little")
    assert on.load(HERE, 0) == b""


@pytest.mark.parametrize("flags", [0, Pte.PRESENT | Pte.USER])
def test_a_store_is_whole_or_not_at_all(flags: int) -> None:
    """If the second page cannot be written, the first keeps its bytes and its D flag, and CR2 says where it failed."""
    on = cpu()
    mapped = tables(on)
    first = mapped.map(HERE, 0x9000)
    mapped.map(HERE + PAGE, 0x3000, flags)
    with pytest.raises(PageFault) as caught:
        on.store(HERE + PAGE - 2, b"abcd")
    assert (caught.value.vaddr, on.cr2) == (HERE + PAGE, HERE + PAGE)
    assert caught.value.error_code == (PfError.W | PfError.P if flags else PfError.W)
    assert on.memory.read(0x9FFE, 2) == bytes(2)
    assert not on.memory.read_u64(first) & Pte.DIRTY
    mapped.map(HERE + PAGE, 0x3000)
    on.store(HERE + PAGE - 2, b"abcd")
    assert on.load(HERE + PAGE - 2, 4) == b"abcd"


def test_top_of_the_address_space() -> None:
    """A range wraps to address 0; one into the hole of non-canonical addresses is #GP, before anything is written."""
    on = cpu()
    mapped = tables(on)
    mapped.map((1 << 64) - PAGE, 0x9000)
    mapped.map(0, 0x3000)
    on.store((1 << 64) - 2, b"abcd")
    assert (on.memory.read(0x9FFE, 2), on.memory.read(0x3000, 2)) == (b"ab", b"cd")
    mapped.map((1 << 47) - PAGE, 0x5000)
    with pytest.raises(GeneralProtection, match=r"^address 0x800000000000 is not canonical$"):
        on.store((1 << 47) - 2, b"abcd")
    assert on.memory.read(0x5FFE, 2) == bytes(2)


def test_privilege_and_ac() -> None:
    """CPL 3 is user mode; with SMAP the supervisor needs AC; each change takes effect at once, hits included."""
    on = cpu()
    mapped = tables(on)
    mapped.map(HERE, 0x9000)
    mapped.map(HERE + PAGE, 0x3000, Pte.PRESENT | Pte.RW)
    on.write_cr4(on.cr4 | Cr4.SMAP | Cr4.SMEP)
    for _ in range(2):
        on.cpl = 3
        on.store(HERE, b"user")
        on.fetch(HERE)
        with pytest.raises(PageFault) as caught:
            on.load(HERE + PAGE, 1)
        assert caught.value.error_code == PfError.P | PfError.U
        on.cpl = 0
        on.load(HERE + PAGE, 1)
        for access in (lambda: on.load(HERE, 4), lambda: on.load_u64(HERE), lambda: on.fetch(HERE)):
            with pytest.raises(PageFault):
                access()
        on.ac = True
        assert on.load(HERE, 4) == b"user"
        with pytest.raises(PageFault) as caught:
            on.fetch(HERE)
        assert caught.value.error_code == PfError.P | PfError.I
        with pytest.raises(PageFault) as caught:
            on.load_implicit(HERE, 4)
        assert caught.value.error_code == PfError.P
        on.ac = False
    on.cpl = 3
    assert on.load_implicit(HERE + PAGE, 4) == bytes(4)
    on.cpl = 2
    assert on.load(HERE + PAGE, 1) == bytes(1)


def test_write_protection_takes_effect_at_once() -> None:
    """A page written without CR0.WP is write-protected as soon as WP is set, without a flush."""
    on = cpu()
    tables(on).map(HERE, 0x9000, Pte.PRESENT)
    on.write_cr0(on.cr0 & ~Cr0.WP)
    on.store(HERE, b"a")
    on.write_cr0(on.cr0 | Cr0.WP)
    with pytest.raises(PageFault) as caught:
        on.store(HERE, b"b")
    assert caught.value.error_code == PfError.P | PfError.W
    assert on.load(HERE, 1) == b"a"


def test_five_levels() -> None:
    """A processor that starts with 5-level paging reaches addresses beyond 48 bits."""
    on = cpu(levels=5)
    mapped = tables(on)
    mapped.map(0xFF11_2233_4455_6000, 0x9000)
    on.store(0xFF11_2233_4455_6000, b"far")
    assert on.memory.read(0x9000, 3) == b"far"
    with pytest.raises(UnsupportedError, match=r"^CPU model skylake-6600u has no 5-level paging$"):
        fresh("skylake-6600u", levels=5)


def test_counts() -> None:
    """Hits, misses, and CR3 writes by kind."""
    on = cpu()
    mapped = tables(on, pcid=1)
    mapped.map(HERE, 0x9000)
    before = (on.cr3_writes, on.tlb.flushes)
    hits, misses = on.tlb.hits, on.tlb.misses
    for _ in range(5):
        on.load(HERE, 8)
    assert (on.tlb.hits - hits, on.tlb.misses - misses) == (4, 1)
    on.write_cr3(mapped.root | 1 | CR3_NOFLUSH)
    on.load(HERE, 8)
    assert (on.tlb.hits - hits, on.tlb.misses - misses) == (5, 1)
    on.write_cr3(mapped.root | 1)
    on.load(HERE, 8)
    assert (on.tlb.hits - hits, on.tlb.misses - misses) == (5, 2)
    assert (on.cr3_writes - before[0], on.cr3_noflush_writes, on.tlb.flushes - before[1]) == (2, 1, 1)


# Control registers.


def test_start() -> None:
    """As a boot loader leaves it, in IA-32e mode, with no protection on."""
    on = fresh()
    assert on.cr0 == Cr0.PE | Cr0.ET | Cr0.PG
    assert (on.cr3, on.cr4, on.efer) == (0, Cr4.PAE, Efer.LME | Efer.LMA)
    assert (on.cpl, on.ac, on.interrupts_enabled, on.pcid, on.root) == (0, False, False, 0, 0)


def test_cr3() -> None:
    """Root and PCID by CR4.PCIDE; bit 63 reads as 0."""
    on = fresh()
    on.write_cr3(0x5018)
    assert (on.cr3, on.root, on.pcid) == (0x5018, 0x5000, 0)
    on.write_cr3(0x5000)
    on.write_cr4(on.cr4 | Cr4.PCIDE)
    on.write_cr3(0x5018 | CR3_NOFLUSH)
    assert (on.cr3, on.root, on.pcid) == (0x5018, 0x5000, 0x18)


def refused(on: Cpu, message: str, write: str, value: int) -> None:
    """A register write is #GP and changes nothing."""
    before = (on.cr0, on.cr3, on.cr4, on.efer, on.mode, on.cr3_writes)
    with pytest.raises(GeneralProtection) as caught:
        getattr(on, write)(value)
    assert str(caught.value) == message
    assert (on.cr0, on.cr3, on.cr4, on.efer, on.mode, on.cr3_writes) == before


def test_refused_values() -> None:
    """#GP for reserved bits and combinations, each with its reason."""
    on = fresh()
    cr0, cr4, efer = int(on.cr0), int(on.cr4), int(on.efer)
    refused(on, "MOV to CR3: reserved bits in 0x400000000000", "write_cr3", 1 << 46)
    refused(on, "MOV to CR3: reserved bits in 0x8000000000001000", "write_cr3", CR3_NOFLUSH | 0x1000)
    refused(on, "MOV to CR0: reserved bits in 0x180000011", "write_cr0", cr0 | 1 << 32)
    refused(on, "MOV to CR0: PG without PE", "write_cr0", cr0 & ~1)
    refused(on, "MOV to CR0: NW without CD", "write_cr0", cr0 | Cr0.NW)
    refused(on, "MOV to CR0: PG cleared in 64-bit mode", "write_cr0", cr0 & ~Cr0.PG)
    refused(on, "MOV to CR4: reserved bits in 0x8020", "write_cr4", cr4 | 1 << 15)
    refused(on, "MOV to CR4: PAE cleared in IA-32e mode", "write_cr4", cr4 & ~Cr4.PAE)
    refused(on, "MOV to CR4: LA57 changed in IA-32e mode", "write_cr4", cr4 | Cr4.LA57)
    refused(on, "WRMSR to IA32_EFER: reserved bits in 0x502", "write_efer", efer | 2)
    refused(on, "WRMSR to IA32_EFER: LME changed while paging is on", "write_efer", efer & ~Efer.LME)
    on.write_cr3(0x1018)
    refused(on, "MOV to CR4: PCIDE set while CR3 bits 11:0 are not 0", "write_cr4", cr4 | Cr4.PCIDE)
    on.write_cr3(0x1000)
    on.write_cr4(cr4 | Cr4.PCIDE)
    on.cs_l = False
    refused(on, "MOV to CR0: PG cleared while CR4.PCIDE is set", "write_cr0", cr0 & ~Cr0.PG)
    on.cpl = 3
    for write, name in (
        ("write_cr0", "MOV to CR0"),
        ("write_cr3", "MOV to CR3"),
        ("write_cr4", "MOV to CR4"),
        ("write_efer", "WRMSR"),
        ("invlpg", "INVLPG"),
        ("invpcid", "INVPCID"),
    ):
        refused(on, f"{name} at CPL 3", write, 0)


def test_what_a_model_lacks() -> None:
    """Bits of CR4 that the CPU lacks are reserved, and INVPCID is #UD."""
    on = fresh("zen2-7452")
    for bit in (Cr4.PCIDE, Cr4.LA57):
        refused(on, f"MOV to CR4: reserved bits in {Cr4.PAE | bit:#x}", "write_cr4", Cr4.PAE | bit)
    on.write_cr4(Cr4.PAE | Cr4.SMEP | Cr4.SMAP | Cr4.PGE)
    with pytest.raises(InvalidOpcode, match=r"^INVPCID: this CPU lacks it$"):
        on.invpcid(Invpcid.ALL)


def test_lma_is_read_only() -> None:
    """A write to LMA is ignored."""
    on = fresh()
    on.write_efer(int(on.efer) & ~Efer.LMA | Efer.NXE)
    assert on.efer == Efer.LME | Efer.LMA | Efer.NXE


def test_out_of_ia32e_mode_and_into_it_again() -> None:
    """From compatibility mode: PG off (everything is flushed, addresses are physical), LA57 changed, PG on again."""
    on = fresh()
    mapped = tables(on)
    mapped.map(HERE, 0x9000)
    on.memory.write(0x9000, b"there")
    assert on.load(HERE, 5) == b"there"
    on.cs_l = False
    on.write_cr0(on.cr0 & ~Cr0.PG)
    assert (on.efer, len(on.tlb)) == (Efer.LME, 0)
    assert on.load(0x9000, 5) == b"there"
    assert on.load_implicit(0x9000, 5) == b"there"
    on.store(0x9FFE, b"over")
    assert on.memory.read(0x9FFE, 4) == b"over"
    refused(on, "MOV to CR4: PCIDE set outside of IA-32e mode", "write_cr4", Cr4.PAE | Cr4.PCIDE)
    on.write_cr4(0)
    refused(on, "MOV to CR0: PG set with EFER.LME but without CR4.PAE", "write_cr0", on.cr0 | Cr0.PG)
    on.write_cr4(Cr4.PAE | Cr4.LA57)
    five = Tables(on.memory, levels=5, first=0x40_0000)
    five.map(HERE, 0x9000)
    on.write_cr3(five.root)
    on.cs_l = True
    refused(on, "MOV to CR0: PG set with EFER.LME and CS.L", "write_cr0", on.cr0 | Cr0.PG)
    on.cs_l = False
    on.write_cr0(on.cr0 | Cr0.PG)
    assert on.efer == Efer.LME | Efer.LMA
    assert on.mode.la57
    assert on.load(HERE, 5) == b"there"
    on.write_cr0(on.cr0 & ~Cr0.PG)
    on.write_efer(0)
    with pytest.raises(
        UnsupportedError, match=r"^32-bit and PAE paging are not modelled; set IA32_EFER\.LME before CR0\.PG$"
    ):
        on.write_cr0(on.cr0 | Cr0.PG)


def test_refused_invpcid() -> None:
    """#GP for types, PCIDs and addresses that there are not (SDM 2A)."""
    on = fresh()
    for arguments, message in (
        ((4, 0, 0), "INVPCID: there is no type 4"),
        ((0, 1 << 12, 0), "INVPCID: reserved bits in descriptor, PCID 0x1000"),
        ((0, 1, 0), "INVPCID: PCID 1 while CR4.PCIDE is clear"),
        ((1, 1, 0), "INVPCID: PCID 1 while CR4.PCIDE is clear"),
        ((0, 0, 1 << 47), "INVPCID: address 0x800000000000 is not canonical"),
    ):
        with pytest.raises(GeneralProtection) as caught:
            on.invpcid(*arguments)
        assert str(caught.value) == message
    on.invpcid(Invpcid.ALL, 1, 1 << 47)
    on.invlpg(1 << 47)


def test_models_decide() -> None:
    """Width of a physical address and 1 GiB pages are the model's."""
    model: CpuModel = load_cpu("skylake-6600u")
    (on,) = Core(0, model, PhysicalMemory(1 << 24)).threads
    mapped = tables(on)
    mapped.map(HERE, 1 << model.paging.maxphyaddr)
    with pytest.raises(PageFault) as caught:
        on.translate(HERE, Access.READ)
    assert caught.value.error_code == PfError.P | PfError.RSVD
    assert on.mode.gib_pages


def test_open_flags() -> None:
    """What tests call open is present, writable and user."""
    assert int(OPEN) == 7
