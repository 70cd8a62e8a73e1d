"""Loads that never retire: what they get, and what they leave."""

from __future__ import annotations

import pytest

from asikit.machine.x86 import Core, Cpu, PhysicalMemory, Pte, load_cpu
from asikit.threat import transient_address, transient_load
from tests.machine.x86.tables import Tables

HERE, FRAME, PAGE = 0x7000_0000, 0x5000, 0x1000
SECRET = b"secret!!"
USER, KERNEL = Pte.PRESENT | Pte.USER | Pte.RW, Pte.PRESENT | Pte.RW


def made(flags: int, *, cpl: int) -> tuple[Cpu, Tables]:
    """A recording processor that runs at some privilege, with a secret's page mapped."""
    core = Core(0, load_cpu("generic"), PhysicalMemory(1 << 22), threads=1)
    core.record = True
    tables = Tables(core.memory)
    tables.map(HERE, FRAME, flags)
    core.memory.write(FRAME, SECRET)
    (cpu,) = core.threads
    cpu.write_cr3(tables.root)
    cpu.cpl = cpl
    return cpu, tables


@pytest.mark.parametrize(
    ("flags", "cpl", "defers", "expected"),
    [
        (USER, 3, False, SECRET),
        (KERNEL, 3, False, None),
        (KERNEL, 3, True, SECRET),
        (KERNEL, 0, False, SECRET),
        (0, 3, True, None),
        (0, 0, False, None),
    ],
)
def test_what_it_gets(flags: int, cpl: int, expected: bytes | None, *, defers: bool) -> None:
    """What may be accessed; with the deferred check whatever is mapped; what is not present never."""
    cpu, _ = made(flags, cpl=cpl)
    assert transient_load(cpu, HERE, 8, defer_permission=defers) == expected


def test_it_never_faults() -> None:
    """Addresses that are not canonical, and frames beyond the memory, give nothing."""
    cpu, tables = made(USER, cpl=3)
    assert transient_load(cpu, 1 << 60, 8) is None
    tables.map(HERE + 2 * PAGE, cpu.memory.size, USER)
    assert transient_load(cpu, HERE + 2 * PAGE, 8) is None


def test_a_stale_translation_counts() -> None:
    """What the TLB has is gone through, whatever the page tables say by now."""
    cpu, tables = made(USER, cpl=3)
    assert transient_load(cpu, HERE, 8) == SECRET
    tables.map(HERE, FRAME, 0)
    assert transient_load(cpu, HERE, 8) == SECRET
    cpu.cpl = 0
    cpu.write_cr3(tables.root)
    assert transient_load(cpu, HERE, 8) is None


def test_the_line_comes_into_the_cache() -> None:
    """That is how it transmits; a load that gets nothing leaves nothing."""
    cpu, _ = made(KERNEL, cpl=3)
    assert cpu.recorder is not None
    assert transient_load(cpu, HERE, 8) is None
    assert cpu.recorder.l1d.line(FRAME) is None
    transient_load(cpu, HERE, 8, defer_permission=True)
    line = cpu.recorder.l1d.line(FRAME)
    assert line is not None
    assert line.value[:8] == SECRET


def test_no_accessed_bit() -> None:
    """A walk that does not retire marks nothing."""
    cpu, tables = made(USER, cpl=3)
    before = cpu.memory.read(tables.root, PAGE)
    transient_load(cpu, HERE, 8)
    assert cpu.memory.read(tables.root, PAGE) == before


@pytest.mark.parametrize("flags", [USER, KERNEL, 0])
@pytest.mark.parametrize("cpl", [0, 3])
@pytest.mark.parametrize("defers", [False, True])
def test_how_far_it_would_get(flags: int, cpl: int, *, defers: bool) -> None:
    """An address just where a load gets something, and nothing is left of the question: no translation, no line."""
    cpu, _ = made(flags, cpl=cpl)
    reached = transient_address(cpu, HERE + 3, defer_permission=defers)
    assert cpu.recorder is not None
    assert (cpu.tlb.entries(), cpu.recorder.l1d.entries()) == ((), ())
    value = transient_load(cpu, HERE + 3, 5, defer_permission=defers)
    assert (reached, value) in {(None, None), (FRAME + 3, SECRET[3:])}
    assert len(cpu.tlb.entries()) == int(value is not None)
    assert transient_address(cpu, HERE + 3, defer_permission=defers) == reached  # by the TLB now
