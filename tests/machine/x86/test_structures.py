"""Microarchitectural structures: what is recorded, who comes by it, what clears it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.machine.x86 import (
    Core,
    Datum,
    FillBuffer,
    PhysicalMemory,
    Processor,
    Recorder,
    Sharing,
    StoreBuffer,
    StructureModel,
    Training,
    load_cpu,
)
from asikit.protocol import EffectKind
from tests.machine.x86.tables import Tables

if TYPE_CHECKING:
    from asikit.machine.x86 import Cpu

HERE = 0x7000_0000
SECRET = b"secret!!"


def core(name: str = "generic", threads: int = 2) -> Core:
    """A recording core whose threads map HERE to 0x5000."""
    made = Core(0, load_cpu(name), PhysicalMemory(1 << 22), threads=threads)
    made.record = True
    tables = Tables(made.memory)
    tables.map(HERE, 0x5000)
    for cpu in made.threads:
        cpu.write_cr3(tables.root)
    return made


def recorder(of: Core) -> Recorder:
    """The recorder of a core that has one."""
    assert of.recorder is not None
    return of.recorder


def test_off_unless_asked_for() -> None:
    """Without recording there is no recorder and an access leaves nothing; turning it off forgets."""
    plain = Core(0, load_cpu("generic"), PhysicalMemory(1 << 22))
    assert (plain.record, plain.recorder, plain.threads[0].recorder) == (False, None, None)
    plain.do("verw")
    assert plain.done == {"verw": 1}
    made = core()
    made.threads[0].load(HERE, 8)
    made.record = False
    assert (made.record, made.threads[0].recorder) == (False, None)


def test_loads_and_stores() -> None:
    """A load leaves its lines in fill buffer and L1D and its value in a load port; a store its value in the buffer."""
    made = core()
    cpu: Cpu = made.threads[0]
    held = recorder(made)
    made.memory.write(0x5000, bytes(range(128)))
    cpu.owner = "victim"
    cpu.load(HERE + 60, 8)
    lines = (Datum("victim", bytes(range(64)), 0x5000, 0), Datum("victim", bytes(range(64, 128)), 0x5040, 0))
    assert held.fill_buffer.entries() == lines
    assert held.l1d.entries() == lines
    assert held.load_port.entries() == (Datum("victim", bytes(range(60, 68)), 0x503C, 0),)
    cpu.owner = "other"
    cpu.store(HERE + 8, SECRET)
    assert held.store_buffer.entries() == (Datum("other", SECRET, 0x5008, 0),)
    line = held.l1d.line(0x5010)
    assert line is not None
    assert (line.owner, line.value[8:16]) == ("other", SECRET)
    assert held.fill_buffer.entries() == lines
    assert held.l1d.line(0x9000) is None


def test_every_access_is_recorded() -> None:
    """Also those that were fast before recording began, and numbers, and each part of one that crosses pages."""
    made = core()
    cpu = made.threads[0]
    made.record = False
    for _ in range(3):
        cpu.load_u64(HERE)
        cpu.store_u64(HERE, 5)
    made.record = True
    held = recorder(made)
    cpu.store_u64(HERE, 7)
    cpu.load_u64(HERE)
    cpu.load_u64(HERE)
    assert [datum.value[0] for datum in held.store_buffer.entries()] == [7]
    assert [datum.value[0] for datum in held.load_port.entries()] == [7, 7]


def test_prefetch_touches_the_cache_only() -> None:
    """A line comes into the L1D, and no value through a load port: the half-Spectre gadget."""
    made = core()
    held = recorder(made)
    made.memory.write(0x6000, SECRET)
    held.prefetch(0, "gadget", 0x6004)
    line = held.l1d.line(0x6000)
    assert line is not None
    assert line.value.startswith(SECRET)
    assert held.load_port.entries() == ()


def test_predictors() -> None:
    """Branches, conditions and calls teach each its own structure, and become history."""
    held = recorder(core())
    held.branch(0, "attacker", 0x100, 0x200)
    held.branch(0, "attacker", 0x100, 0x300)
    held.condition(0, "attacker", 0x110, taken=True)
    held.condition(0, "attacker", 0x110, taken=False)
    held.call(0, "attacker", 0x120, 0x125)
    assert held.btb.predict(1, 0x100) == Training("attacker", 0x100, 0x300, 0)
    assert held.btb.predict(1, 0x104) is None
    assert held.pht.predict(0, 0x110) == Training("attacker", 0x110, 0, 0)
    assert [entry.source for entry in held.bhb.entries()] == [0x100, 0x100, 0x110, 0x120]
    assert held.rsb.pop(1) is None
    assert held.rsb.pop(0) == Training("attacker", 0x120, 0x125, 0)
    assert held.rsb.pop(0) is None


def test_registers_and_units() -> None:
    """Vector registers, the divider, and what comes from the uncore."""
    held = recorder(core())
    held.vector(0, "victim", b"v" * 32)
    held.divide(0, "victim", 42)
    held.special(0, "victim", b"rand")
    assert held.vector_registers.visible(1) == (Datum("victim", b"v" * 32, None, 0),)
    assert held.divider.visible(1) == (Datum("victim", (42).to_bytes(8, "little"), None, 0),)
    assert held.staging_buffer.visible(0)[0].value == held.fill_buffer.visible(1)[0].value == b"rand"


@pytest.mark.parametrize(
    ("sharing", "sibling_sees"),
    [(Sharing.THREAD, False), (Sharing.PARTITIONED, False), (Sharing.CORE, True), (Sharing.UNCORE, True)],
)
def test_sharing(sharing: Sharing, sibling_sees: bool) -> None:
    """Who comes by a thread's data, and whose data a thread clears."""
    structure = FillBuffer(StructureModel(entries=4, sharing=sharing, cleared_by=()), threads=2)
    mine, theirs = Datum("a", b"a", None, 0), Datum("b", b"b", None, 1)
    structure.add(mine)
    structure.add(theirs)
    assert structure.visible(1) == ((theirs, mine) if sibling_sees else (theirs,))
    structure.clear(0)
    assert structure.entries() == (() if sibling_sees else (theirs,))


def test_capacity() -> None:
    """The oldest goes; a partition is an equal part, and all of it without a sibling."""
    for sharing, threads, room in (
        (Sharing.CORE, 2, 4),
        (Sharing.THREAD, 2, 4),
        (Sharing.PARTITIONED, 2, 2),
        (Sharing.PARTITIONED, 1, 4),
    ):
        structure = FillBuffer(StructureModel(entries=4, sharing=sharing, cleared_by=()), threads)
        for number in range(9):
            structure.add(Datum("a", bytes([number]), None, 0))
        assert [entry.value[0] for entry in structure.visible(0)] == list(range(8, 8 - room, -1))


def test_repartition() -> None:
    """A thread that sleeps leaves its part, and what is in it, to the sibling; nothing else moves."""
    made = core()
    held = recorder(made)
    made.threads[0].store(HERE, SECRET)
    held.call(0, "victim", 1, 2)
    assert held.store_buffer.visible(1) == ()
    held.sleep(0)
    assert held.store_buffer.visible(1) == (Datum("", SECRET, 0x5000, 0),)
    assert held.store_buffer.visible(0) == ()
    assert held.rsb.visible(1) == ()
    made.threads[1].store(HERE, SECRET)
    held.wake(0)  # and when it wakes up, whatever the sibling left in the part may be there
    assert [entry.thread for entry in held.store_buffer.visible(0)] == [1, 0]
    assert [entry.thread for entry in held.store_buffer.visible(1)] == [1, 0]
    alone = StoreBuffer(StructureModel(entries=4, sharing=Sharing.PARTITIONED, cleared_by=()), threads=1)
    alone.add(Datum("a", b"a", None, 0))
    alone.sleep(0)
    assert len(alone.entries()) == 1


def fill(of: Core) -> None:
    """Put something of each thread into every structure."""
    held = recorder(of)
    for thread, cpu in enumerate(of.threads):
        cpu.store(HERE, SECRET)
        cpu.load(HERE, 8)
        held.branch(thread, "a", 1, 2)
        held.condition(thread, "a", 1, taken=True)
        held.call(thread, "a", 1, 2)
        held.vector(thread, "a", SECRET)
        held.divide(thread, "a", 1)
        held.special(thread, "a", SECRET)


@pytest.mark.parametrize(
    ("primitive", "cleared"),
    [
        ("ibpb", {"btb": set(), "rsb": {1}}),
        ("rsb_fill", {"rsb": {1}}),
        ("bhb_clear", {"bhb": {1}}),
        ("verw", {"fill_buffer": set(), "store_buffer": {1}, "load_port": set()}),
        ("l1d_flush", {"l1d": set()}),
        ("dummy_divide", {"divider": set()}),
    ],
)
def test_primitives(primitive: str, cleared: dict[str, set[int]]) -> None:
    """Each clears what the model says and nothing else; what each thread has for itself, the doer's alone."""
    made = core()
    fill(made)
    before = {structure.name: structure.entries() for structure in recorder(made).structures}
    assert all(before.values())
    made.do(EffectKind(primitive), thread=0)
    for structure in recorder(made).structures:
        if structure.name in cleared:
            assert {entry.thread for entry in structure.entries()} == cleared[structure.name], structure.name
        else:
            assert structure.entries() == before[structure.name], structure.name
    assert made.done == {primitive: 1}


def test_no_such_primitive() -> None:
    """The message names those that there are."""
    with pytest.raises(
        ValueError,
        match=r'^no primitive "wbinvd" \(there are ibpb, bhb_clear, rsb_fill, l1d_flush, verw, dummy_divide\)$',
    ):
        core().do("wbinvd")


def test_the_uncore_is_shared_by_cores() -> None:
    """What one core gets from the staging buffer, another may come by; the cores' own structures are their own."""
    processor = Processor(load_cpu("generic"), PhysicalMemory(1 << 20), cores=2)
    for made in processor.cores:
        made.record = True
    first, second = (recorder(made) for made in processor.cores)
    first.special(0, "victim", SECRET)
    assert [datum.value for datum in second.staging_buffer.visible(0)] == [SECRET]
    assert second.fill_buffer.visible(0) == ()


def test_threads_of_a_core() -> None:
    """No more threads than the model has."""
    with pytest.raises(ValueError, match=r"^a core of CPU model zen-1200 has at most 1 threads, not 2$"):
        Core(0, load_cpu("zen-1200"), PhysicalMemory(4096), threads=2)
