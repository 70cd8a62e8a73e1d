"""Booting: every combination runs a program, and looks as it should."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from itertools import product

import pytest

from asikit.machine.kernel import Machine, MachineConfig, ScenarioError, User
from asikit.machine.mm import OutOfMemoryError, Symbol
from asikit.machine.mm.pgtable import PRESENT
from asikit.machine.x86 import Access, CpuModelError, Cr0, Cr4, Efer, cpu_names, load_cpu
from asikit.protocol import Mapped, Protocol, ProtocolConfig, Space
from asikit.trace import Region
from tests.machine.kernel.core.running import Program, machine, seen, spawn


@pytest.mark.parametrize(
    ("asi", "levels", "cpus", "smt"),
    [
        (asi, levels, cpus, smt)
        for asi, levels, cpus, smt in product((True, False), (4, 5), (1, 2, 3, 4), (False, True))
        if not smt or cpus % 2 == 0
    ],
)
def test_every_combination_runs_a_program(asi: bool, levels: int, cpus: int, smt: bool) -> None:
    """asi=on and off, 4 and 5 levels, 1 to 4 CPUs, with and without hyperthreads: the same results."""
    target = machine(asi=asi, levels=levels, cpus=cpus, smt=smt)

    def program(user: Program) -> None:
        address = user.mmap(8192)
        user.store(address + 4090, b"across pages")
        user.load(address + 4090, 12)

    tasks = [spawn(target, program, cpu=cpu) for cpu in range(cpus)]
    report = target.run()
    assert all(seen(task)[1] == b"across pages" for task in tasks)
    assert report.mechanism == ("asi" if asi else "off")
    assert (report.exits > 0) == asi
    # Each enter and each exit writes CR3 once; an idle hyperthread ends up inside.
    inside = sum(cpu.thread.cpu.cr3 != Space.UNRESTRICTED for cpu in target.kernel.cpus)
    assert report.cr3_writes == 2 * report.exits + inside


def test_control_registers() -> None:
    """Write protection, SMEP, SMAP, NX and PCIDs are on, on every CPU; global pages are not."""
    for cpu in machine(cpus=2, levels=5).kernel.cpus:
        assert Cr0.WP in cpu.hw.cr0
        assert Cr4.PCIDE | Cr4.SMEP | Cr4.SMAP | Cr4.LA57 in cpu.hw.cr4
        assert Cr4.PGE not in cpu.hw.cr4
        assert Efer.NXE in cpu.hw.efer
        assert cpu.hw.cpl == 0


@pytest.mark.parametrize("levels", [4, 5])
def test_kernel_addresses(levels: int) -> None:
    """Kernel text can be fetched and not written, data written and not fetched; user addresses are not mapped."""
    kernel = machine(levels=levels).kernel
    layout = kernel.layout
    image = layout.kernel_image.start
    kernel.cpu.hw.fetch(image)
    with pytest.raises(Exception, match="page fault"):
        kernel.cpu.hw.store(image, b"x")
    data = image + (2 << 20)
    kernel.cpu.hw.store(data + 4096, b"x")
    with pytest.raises(Exception, match="page fault"):
        kernel.cpu.hw.fetch(data)
    kernel.cpu.hw.load(layout.percpu.start, 8)
    kernel.cpu.hw.load(layout.cpu_entry_area.start, 8)
    assert kernel.translate(kernel.cpu, 0x1000) == -1


def test_the_restricted_kernel_half() -> None:
    """`asi_nonsensitive_pgd` shares everything with init_mm but the direct map."""
    kernel = machine().kernel
    assert kernel.domains.nonsensitive_pgd is not None
    assert kernel.domains.shared_half_differs() is None
    index = kernel.layout.pgd_index(kernel.layout.direct_map.start)
    entries = [
        kernel.physical.read_u64((pgd << 12) + index * 8)
        for pgd in (kernel.domains.nonsensitive_pgd, kernel.contexts.init.pgd)
    ]
    assert all(entry & PRESENT for entry in entries)
    assert entries[0] != entries[1]


def test_without_asi_there_is_no_restricted_address_space() -> None:
    """`asi=off` makes no domains and no second direct map."""
    kernel = machine(asi=False).kernel
    kernel.contexts.new()
    assert kernel.domains.nonsensitive_pgd is None
    assert kernel.domains.domains.table == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cpus": 0}, "cpus is 0"),
        ({"cpus": 3, "smt": True}, "cpus is 3; it must be at least 1, and with smt even"),
        ({"memory": 1 << 20}, "it must be whole MiB, at least 16"),
        ({"memory": (32 << 20) + 1}, "it must be whole MiB"),
        ({"levels": 3}, "page tables have 4 or 5 levels"),
        ({"timer_period": 0}, "timer_period is 0"),
        ({"pageblock_order": 10}, "pageblock_order is 10; it must be 1 to 9"),
        ({"unmapped": frozenset({"module"})}, "unmapped names module, which is no region"),
        ({"asi": False, "protocol": ProtocolConfig()}, "asi is off, but the protocol's configuration has it on"),
        ({"protocol": ProtocolConfig(smt=True)}, "smt must be the same"),
    ],
)
def test_descriptions_that_make_no_sense(fields: dict[str, object], message: str) -> None:
    """One line that says what is wrong."""
    with pytest.raises(ScenarioError, match=message):
        MachineConfig(**fields)  # type: ignore[arg-type]


def test_a_cpu_that_is_not_there() -> None:
    """Names of CPU models and numbers of CPUs are checked."""
    with pytest.raises(CpuModelError):
        Machine(cpu="pentium")
    with pytest.raises(ScenarioError, match="there is no CPU 1"):
        Machine().inject_nmi(1)


@pytest.mark.parametrize("pti", [False, True])
@pytest.mark.parametrize("name", cpu_names())
def test_every_cpu_model_boots(name: str, pti: bool) -> None:
    """Without PCIDs too, as AMD's before Zen 3: then every write of CR3 flushes, and shootdowns need no INVPCID."""
    config = MachineConfig(cpu=name, cpus=2, debug=True)
    target = Machine(config, protocol=Protocol(replace(config.protocol_config(), pti=pti)))
    paging = load_cpu(name).paging

    @target.process
    def program(user: User) -> None:
        user.thread(lambda thread: thread.compute(400))
        for pages in (1, 50):
            memory = user.mmap(pages * 4096)
            user.store(memory, b"data" * 1024 * pages)
            user.munmap(memory, pages * 4096)
        user.fork(lambda child: child.getpid())
        user.wait()

    report = target.run()
    assert report.exits > 50
    assert report.tlb.shootdowns
    assert all((Cr4.PCIDE in cpu.hw.cr4) == paging.pcid for cpu in target.kernel.cpus)
    if not paging.pcid:
        assert report.tlb.flushes >= report.hw_cr3_writes


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cpu": "zen-1200", "cpus": 2, "smt": True}, "smt is on, but CPU model zen-1200 has one thread a core"),
        ({"cpu": "skylake-6600u", "levels": 5}, "levels is 5, but CPU model skylake-6600u has 4-level paging only"),
        ({"cpu": "zen2-7452", "protocol": ProtocolConfig(noflush=True)}, "CPU model zen2-7452 has no PCIDs"),
    ],
)
def test_what_a_cpu_model_does_not_have(fields: dict[str, object], message: str) -> None:
    """One line that says what is wrong."""
    with pytest.raises(ScenarioError, match=message):
        Machine(MachineConfig(**fields))  # type: ignore[arg-type]


def test_too_little_memory_is_an_error() -> None:
    """A machine can run out of it, after boot, and says so."""
    kernel = machine(memory=16 << 20).kernel
    with pytest.raises(OutOfMemoryError):
        while True:
            kernel.contexts.new()


def test_a_machine_goes_away() -> None:
    """After its run nothing keeps it in memory, greenlets included; nor after an error."""
    for limit in (None, 20):
        target = machine(cpus=2)
        spawn(target, lambda user: user.compute(50))
        target.run(limit)
        if limit is not None:
            target.close()
        kernel = weakref.ref(target.kernel)
        del target
        gc.collect()
        assert kernel() is None


def test_regions_as_a_policy_has_them() -> None:
    """Module text that restricted address spaces may not fetch, vmalloc memory where it is nonsensitive."""
    target = machine(
        regions={
            Region.MODULES: {Access.FETCH: Mapped.ABSENT},
            Region.VMALLOC: dict.fromkeys(Access, Mapped.BY_MEMORY),
        }
    )
    kernel = target.kernel

    def program(user: Program) -> None:
        def in_module() -> int:
            with kernel.function("ext4_file_read_iter", "ext4"):
                return 0

        user.getpid()
        user.call(in_module)

    spawn(target, program)
    report = target.run()
    assert report.faults.get("double", 0) == 0, "the kernel's stacks are mapped"
    assert report.exits_by_reason["page_fault"] == 1
    text = kernel.text.address(Symbol("ext4_file_read_iter", "ext4"))
    assert kernel.layout.region_of(text) is Region.MODULES
