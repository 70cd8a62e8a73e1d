"""Boot: from a machine description to a kernel that can run tasks (arch/x86/kernel/setup.c, init/main.c).

Early boot allocates from `Memblock` and reaches memory by arithmetic. Then CR3 is loaded, the page allocator takes
over, and from there on everything goes through the page tables.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from asikit.machine.kernel.core.domains import DomainTables
from asikit.machine.kernel.core.errors import ScenarioError
from asikit.machine.kernel.core.invariants import InvariantChecker
from asikit.machine.kernel.core.kernel import Kernel
from asikit.machine.kernel.core.memory_context import MemoryContexts
from asikit.machine.kernel.core.percpu import Asid, CpuContext, KernelCore
from asikit.machine.kernel.core.restricted import RestrictedMap, RestrictedVmalloc, is_whole
from asikit.machine.kernel.core.task import Task, TaskStatus
from asikit.machine.kernel.core.text import IMAGE_TEXT_BYTES, MODULE_TEXT_BYTES
from asikit.machine.kernel.core.watching import AllocationWatch
from asikit.machine.mm import GFP_PGTABLE_KERNEL, BootMemory, DirectMap, Layout, Memblock, PageAllocator, PageTables
from asikit.machine.mm.ephmap import Ephmap
from asikit.machine.mm.layout import PAGE_SIZE
from asikit.machine.mm.pagecache import PageCache
from asikit.machine.mm.percpu import PerCpu
from asikit.machine.mm.pgtable import PAGE_KERNEL, PAGE_KERNEL_ROX
from asikit.machine.mm.services import MmServices
from asikit.machine.mm.slab import SlabAllocator
from asikit.machine.mm.stacks import KernelStacks
from asikit.machine.mm.vmalloc import Vmalloc
from asikit.machine.x86 import CpuModel, Cr0, Cr4, Efer, PhysicalMemory, Processor, load_cpu
from asikit.protocol import Protocol, SeenGenerations, Space
from asikit.protocol.pcid import DYNAMIC_ASIDS
from asikit.trace import PageKind, Region

if TYPE_CHECKING:
    from asikit.machine.kernel.core.config import MachineConfig
    from asikit.machine.kernel.core.interleave import Interleaver

__all__ = ["boot"]

_TEXT_PFN: Final = 512
"""The kernel image lies at 2 MiB, so that its text is one 2 MiB page."""
_TEXT_FRAMES: Final = IMAGE_TEXT_BYTES // PAGE_SIZE
_DATA_FRAMES: Final = 64
"""Page frames of the kernel image's data, .data to .bss; the first is `empty_zero_page`."""
_SIBLINGS: Final = 2
_FIVE_LEVELS: Final = 5
_MODULE_FRAMES: Final = MODULE_TEXT_BYTES // PAGE_SIZE
_ENTRY_AREA_PAGES: Final = 2
"""Pages of each CPU's entry area that the model has: entry stack and exception stacks."""


def boot(config: MachineConfig, interleaver: Interleaver | None = None) -> Kernel:
    """Boot a machine.

    :param interleaver: Who decides what comes in between; whom the configuration makes if None.
    :raises AsikitError: The description names a CPU model or a combination that does not exist.
    :raises OutOfMemoryError: There is too little memory.
    """
    protocol = config.protocol if isinstance(config.protocol, Protocol) else Protocol(config.protocol_config())
    layout = Layout(config.levels)
    physical = PhysicalMemory(config.memory)
    kernel = Kernel(
        config, protocol, layout, physical, _cpus(config, protocol, physical), interleaver or config.new_interleaver()
    )
    for cpu in kernel.cpus:
        cpu.idle = cpu.task = Task(0, 0, f"swapper/{cpu.number}", None, lambda: None, cpu=cpu.number, idle=True)
        cpu.idle.status = TaskStatus.RUNNABLE
    memblock = _early(kernel)
    _load_page_tables(kernel)
    _memory_management(kernel, memblock)
    _late(kernel)
    return kernel


def _check(config: MachineConfig, protocol: Protocol, model: CpuModel) -> None:
    """Raise ScenarioError for what the CPU model does not have."""
    if config.smt and model.threads < _SIBLINGS:
        raise ScenarioError(f"smt is on, but CPU model {model.name} has one thread a core")
    if config.levels == _FIVE_LEVELS and not model.paging.la57:
        raise ScenarioError(f"levels is 5, but CPU model {model.name} has 4-level paging only")
    if protocol.config.noflush and not (model.paging.pcid and model.paging.invpcid):
        raise ScenarioError(
            f"the protocol keeps TLB entries over CR3 writes (noflush), but CPU model {model.name} has no PCIDs"
        )


def _cpus(config: MachineConfig, protocol: Protocol, physical: PhysicalMemory) -> list[CpuContext]:
    """Make processor and per-CPU state; `loaded_mm` is filled in when there is one."""
    threads = _SIBLINGS if config.smt else 1
    model = load_cpu(config.cpu)
    _check(config, protocol, model)
    processor = Processor(
        model, physical, cores=config.cpus // threads, threads=threads, levels=config.levels, seed=config.seed
    )
    cores = [KernelCore(core.number, protocol.initial_core()) for core in processor.cores]
    cpus = []
    for hw in processor.cpus:
        core = cores[hw.number // threads]
        cpu = CpuContext(
            hw.number,
            hw,
            core,
            hw.thread,
            protocol.initial_thread(),
            deque(),
            [Asid() for _ in range(DYNAMIC_ASIDS)],
            SeenGenerations(),
        )
        core.cpus.append(cpu)
        cpus.append(cpu)
    if not config.smt:  # nobody is there to release these
        for core in cores:
            core.state = core.state._replace(first=core.state.first._replace(stunned=0))
    return cpus


def _early(kernel: Kernel) -> Memblock:
    """Map physical memory and the kernel image, with page tables from `Memblock`."""
    config, layout, physical = kernel.config, kernel.layout, kernel.physical
    frames = config.memory // PAGE_SIZE
    memblock = Memblock(frames)
    memblock.reserve(0, 1)
    memblock.reserve(_TEXT_PFN, _TEXT_PFN + _TEXT_FRAMES + _DATA_FRAMES + _MODULE_FRAMES)
    access = BootMemory(physical, layout)
    kernel.direct_map = DirectMap(
        access,
        layout,
        frames,
        memblock.alloc,
        physical.read_u64,
        asi=kernel.protocol.config.asi,
        pageblock_order=config.pageblock_order,
    )
    kernel.direct_map.build()
    root = kernel.direct_map.pgd
    kernel.tables = PageTables(access, layout, memblock.alloc)
    image, modules = layout.kernel_image.start, layout.modules.start
    kernel.tables.map_page(root, image, _TEXT_PFN, PAGE_KERNEL_ROX, level=2)
    data, text = _TEXT_PFN + _TEXT_FRAMES, _TEXT_PFN + _TEXT_FRAMES + _DATA_FRAMES
    for page in range(_DATA_FRAMES):
        kernel.tables.map_page(root, image + IMAGE_TEXT_BYTES + page * PAGE_SIZE, data + page, PAGE_KERNEL)
    for page in range(_MODULE_FRAMES):
        kernel.tables.map_page(root, modules + page * PAGE_SIZE, text + page, PAGE_KERNEL_ROX)
    # So that editors of fixmap entries never have to make a table: one exists from boot, as `level2_fixmap_pgt` does.
    kernel.tables.ensure(root, layout.fixmap.start)
    return memblock


def _load_page_tables(kernel: Kernel) -> None:
    """Every CPU: protections on, PCIDs on, init_mm's page tables loaded."""
    kernel.contexts = MemoryContexts(kernel, kernel.direct_map.pgd)
    kernel.domains = DomainTables(kernel, kernel.direct_map.nonsensitive_pgd)
    for cpu in kernel.cpus:
        hw = cpu.hw
        hw.write_efer(int(Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE))
        hw.write_cr0(int(Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.PG))
        hw.write_cr3(kernel.direct_map.pgd * PAGE_SIZE)
        hw.write_cr4(int(_features(kernel)))
        cpu.loaded_mm = kernel.contexts.init
        kernel.contexts.init.cpumask.add(cpu.number)
        cpu.asids[0].mm = kernel.contexts.init.id
        hw.write_cr3(kernel.asi.cr3(cpu, Space.UNRESTRICTED))


def _features(kernel: Kernel) -> Cr4:
    """Return what is turned on in CR4, of what the CPU has."""
    paging = kernel.cpus[0].hw.core.model.paging
    features = {
        Cr4.LA57: kernel.config.levels == _FIVE_LEVELS,
        Cr4.PCIDE: kernel.asi.has_pcids,
        Cr4.SMEP: paging.smep,
        Cr4.SMAP: paging.smap,
    }
    return sum((feature for feature, on in features.items() if on), Cr4.PAE)


def _memory_management(kernel: Kernel, memblock: Memblock) -> None:
    """Let the page allocator take over: `mm_core_init()`."""
    config, context, flusher = kernel.config, kernel.context, kernel.flusher
    kernel.cpus[0].hw.interrupts_enabled = True
    kernel.direct_map.attach(context=context, flusher=flusher)
    if kernel.protocol.config.asi:
        _reserved_is_nonsensitive(kernel, memblock)
    kernel.allocator = PageAllocator(
        kernel.access,
        kernel.direct_map,
        memblock.free_ranges(),
        context,
        cpus=config.cpus,
        debug=config.debug,
        sensitivity=config.sensitivity,
        allocated_by=kernel.allocated_by,
    )
    for pfn in memblock.allocated:  # this kernel's boot needs memory for nothing else
        kernel.allocator.page(pfn).kind = PageKind.PAGE_TABLE

    def table() -> int:
        return kernel.allocator.alloc_pages(GFP_PGTABLE_KERNEL, kind=PageKind.PAGE_TABLE)

    kernel.direct_map.attach(access=kernel.access, allocate=table, free=kernel.allocator.free_pages)
    kernel.tables = PageTables(kernel.access, kernel.layout, table, kernel.allocator.free_pages)
    kernel.services = MmServices(
        access=kernel.access,
        allocator=kernel.allocator,
        flusher=flusher,
        context=context,
        layout=kernel.layout,
        init_pgd=kernel.direct_map.pgd,
        zero_page=_TEXT_PFN + _TEXT_FRAMES,
        new_lock=kernel.mutex,
    )
    kernel.percpu = PerCpu(kernel.services, config.cpus)
    partly = kernel.protocol.config.asi and not is_whole(kernel, Region.VMALLOC)
    kernel.vmalloc = RestrictedVmalloc(kernel.services, kernel) if partly else Vmalloc(kernel.services)
    kernel.stacks = KernelStacks(kernel.services, kernel.vmalloc)
    kernel.slab = SlabAllocator(kernel.services)
    kernel.ephmap = Ephmap(
        kernel.services,
        config.cpus,
        read_kinds=config.ephmap_read if config.asi else (),
        write_kinds=config.ephmap_write if config.asi else (),
        flush_one=flusher.flush_one,
    )
    kernel.page_cache = PageCache(kernel.services, kernel.ephmap)


def _reserved_is_nonsensitive(kernel: Kernel, memblock: Memblock) -> None:
    """Declare what boot has used nonsensitive: page tables and the kernel's own image hold nobody's data.

    The published series leaves all memory sensitive until it is allocated; its shipped policies say this of reserved
    memory. The rest of the last pageblock goes to the allocator as nonsensitive.
    """
    order = kernel.direct_map.pageblocks.order
    frames = kernel.config.memory // PAGE_SIZE
    free = memblock.free_ranges()
    used = max((each.start for each in free if each.stop == frames), default=frames)
    used = min((used + (1 << order) - 1) >> order << order, frames >> order << order)
    kernel.direct_map.set_direct_map_sensitive(0, used, sensitive=False)
    kernel.direct_map.pageblocks.set_sensitive(0, used, sensitive=False)


def _late(kernel: Kernel) -> None:
    """Entry areas, the restricted kernel half, stacks of idle tasks, checks."""
    root, area = kernel.direct_map.pgd, kernel.layout.cpu_entry_area.start
    for page in range(_ENTRY_AREA_PAGES * kernel.config.cpus):
        pfn = kernel.allocator.alloc_pages(GFP_PGTABLE_KERNEL, kind=PageKind.RESERVED)
        kernel.tables.map_page(root, area + page * PAGE_SIZE, pfn, PAGE_KERNEL)
    if kernel.protocol.config.asi:
        with kernel.context.uncounted():
            RestrictedMap(kernel).build()
    if kernel.config.debug and kernel.protocol.config.asi:
        kernel.invariants = InvariantChecker(kernel)
    kernel.allocator.observers.append(AllocationWatch(kernel))
