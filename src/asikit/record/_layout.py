"""Where things are in the guest's kernel: what the plugin must know before it can record.

From the guest's symbols, BTF, trace event formats, and its memory, which the host shares. What recording needs and a
kernel does not have is refused by its name; what is only useful is left out, and the trace says so.
"""

from __future__ import annotations

import itertools
import mmap
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.record._address_space import first_chunk, regions
from asikit.record._btf import Btf
from asikit.record._memory import KERNEL_MAP, GuestMemory
from asikit.record._struct_page import check_slab, check_table, page_forms
from asikit.record._symbols import Symbols
from asikit.record._trace_events import event_fields, gfp_flags
from asikit.record.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from asikit.trace import Region

__all__ = ["KernelLayout", "read_layout"]

_RENAMED = {"newstat": "stat", "newfstat": "fstat", "newlstat": "lstat", "newuname": "uname", "umount": "umount2"}
"""System calls whose function is not called as user space calls them (arch/x86/entry/syscalls/syscall_64.tbl)."""

_GATES = 256
_MOST_SYSCALLS = 512

_OFFSETS = {
    "orig_ax_offset": "pt_regs.orig_ax",
    "task_pid": "task_struct.pid",
    "task_tgid": "task_struct.tgid",
    "task_comm": "task_struct.comm",
    "task_mm": "task_struct.mm",
    "mm_ctx_id": "mm_struct.context.ctx_id",
    "cache_name": "kmem_cache.name",
    "mapping_host": "address_space.host",
    "inode_sb": "inode.i_sb",
    "sb_type": "super_block.s_type",
}

_FLUSHERS = {
    "flusher_user": (
        "flush_tlb_func",
        "flush_tlb_func_common",  # one function since 4c1ba3923e6c (5.13)
        "flush_tlb_func_local",
        "flush_tlb_func_remote",
        "flush_tlb_mm_range",
        "arch_tlbbatch_flush",
    ),
    "flusher_kernel": (
        "do_flush_tlb_all",
        "do_kernel_range_flush",
        "kernel_tlb_flush_all",
        "kernel_tlb_flush_range",
        "flush_tlb_all",
        "flush_tlb_kernel_range",
        "__cpa_flush_all",
        "__cpa_flush_tlb",
    ),
}
"""Functions that flush a CPU's TLB (arch/x86/mm/tlb.c, pat/set_memory.c), with all that the compiler may have inlined
others into."""


@dataclass(frozen=True, slots=True)
class KernelLayout:
    """What was found.

    :ivar symbols: The kernel's.
    :ivar lines: What the plugin is told: lines ``key index value``, hexadecimal.
    :ivar regions: First addresses of the regions of the address space.
    :ivar percpu: For each CPU the range of virtual addresses of its part of the first per-CPU chunk.
    :ivar gfp_flags: Names and bit masks of the allocation flags.
    :ivar syscalls: What the kernel calls the functions that serve each number.
    :ivar vectors: What the kernel calls the functions that serve each interrupt and exception vector.
    :ivar root_is_tmpfs: Whether the initramfs was unpacked into tmpfs; else it is ramfs.
    :ivar forms: In which form the kernel has what has had several, for people.
    :ivar missing: What the kernel does not have, and what is lost by that.
    """

    symbols: Symbols
    lines: str
    regions: tuple[tuple[int, Region], ...]
    percpu: tuple[tuple[int, int], ...]
    gfp_flags: dict[str, int]
    syscalls: dict[int, str]
    vectors: dict[int, str]
    root_is_tmpfs: bool
    forms: dict[str, str]
    missing: dict[str, str]


def read_layout(folder: Path, memory_file: Path, cpus: int) -> KernelLayout:
    """Work out the layout from what the guest handed over into ``folder`` and from its memory.

    :raises RecordError: The kernel lacks something that recording needs.
    """
    symbols = Symbols.read(folder / "guest-kallsyms")
    btf = Btf.read(folder / "guest-btf")
    alloc, free = (_text(folder / f"guest-{event}-format") for event in ("alloc", "free"))
    iomem = folder / "guest-iomem"
    pages = page_forms(btf)
    with memory_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        memory = GuestMemory(view, symbols, iomem.read_text(encoding="ascii") if iomem.exists() else "")
        check_slab(memory, symbols, btf, pages.values)
        check_table(memory, symbols, btf, pages.values, _loaded_mm(symbols, btf, memory, cpus))
        gates = dict(_gates(symbols, memory))
        switch_hook, areas = _switch(symbols), _areas(symbols, btf, memory)
        values = {
            **_image(symbols, memory),
            **{key: btf.offset(path) for key, path in _OFFSETS.items()},
            **pages.values,
            **_hooks(symbols),
            **switch_hook.values,
            **_bulk(symbols),
            **areas.values,
            **event_fields("alloc", alloc),
            **event_fields("free", free),
            **_percpu(symbols, btf),
        }
        lines = [
            *((key, 0, value) for key, value in values.items()),
            *(("gate", vector, address) for vector, address in gates.items()),
            *_per_cpu_lines(symbols, btf, memory, cpus),
            *_flushers(symbols),
        ]
        tmpfs = symbols.get("is_tmpfs")
        return KernelLayout(
            symbols=symbols,
            lines="".join(f"{key} {index:x} {value:x}\n" for key, index, value in lines),
            regions=regions(symbols, memory),
            percpu=first_chunk(symbols, btf, memory, cpus),
            gfp_flags=gfp_flags(alloc),
            syscalls=_syscalls(symbols, memory),
            vectors=_vector_names(symbols, gates),
            root_is_tmpfs=tmpfs is not None and memory.read(tmpfs, 1) != b"\0",
            forms={
                "page tables": f"{memory.levels} levels",
                **pages.forms,
                **switch_hook.forms,
                **areas.forms,
                "current task": _current(symbols, btf)[0],
            },
            missing={**pages.missing, **switch_hook.missing, **areas.missing},
        )


@dataclass(frozen=True, slots=True)
class _Found:
    """Something useful: what the plugin is told of it, its form, or what is lost without it."""

    values: dict[str, int]
    forms: dict[str, str]
    missing: dict[str, str]


def _text(path: Path) -> str:
    """Read a saved trace event format.

    :raises RecordError: The guest's kernel has none.
    """
    if not path.exists():
        raise RecordError("the guest has no trace events; record a kernel with CONFIG_FTRACE=y and CONFIG_TRACING=y")
    return path.read_text(encoding="ascii", errors="replace")


def _per_cpu_lines(symbols: Symbols, btf: Btf, memory: GuestMemory, cpus: int) -> Iterator[tuple[str, int, int]]:
    """Give each CPU's per-CPU offset, and the top of its interrupt stack."""
    irq_stack = _irq_stack_symbol(symbols, btf)
    for cpu, offset in enumerate(memory.words(symbols["__per_cpu_offset"], cpus)):
        yield "per_cpu", cpu, offset
        yield "irq_stack", cpu, memory.word((offset + irq_stack) % 2**64)


def _image(symbols: Symbols, memory: GuestMemory) -> dict[str, int]:
    return {
        "page_offset": memory.word(symbols["page_offset_base"]),
        "vmemmap": memory.word(symbols["vmemmap_base"]),
        "kernel_map": KERNEL_MAP,
        "phys_base": memory.phys_base % 2**64,
        "init_top_pgt": symbols["init_top_pgt"],
        "paging_levels": memory.levels,
        "init_mm": symbols["init_mm"],
        "syscall_entry": symbols["entry_SYSCALL_64"],
        "compat_entry": symbols.get("entry_SYSCALL_compat") or 0,
        "sysenter_entry": symbols.get("entry_SYSENTER_compat") or 0,
        "error_entry": symbols.get("error_entry") or 0,
        "paranoid_entry": symbols.get("paranoid_entry") or 0,
    }


def _current(symbols: Symbols, btf: Btf) -> tuple[str, int]:
    """Find the per-CPU pointer to the running task: in pcpu_hot from e57ef2ed97c1 (6.2) to a1e4cc0155ad (6.15)."""
    current = symbols.get("current_task")
    if current is not None:
        return "current_task", current
    return "pcpu_hot.current_task", symbols["pcpu_hot"] + btf.offset("pcpu_hot.current_task")


def _percpu(symbols: Symbols, btf: Btf) -> dict[str, int]:
    return {
        "current_task": _current(symbols, btf)[1],
        "loaded_mm": symbols["cpu_tlbstate"] + btf.offset("tlb_state.loaded_mm"),
    }


def _loaded_mm(symbols: Symbols, btf: Btf, memory: GuestMemory, cpus: int) -> int:
    """Give an mm that a CPU has loaded: that of the workload, which is about to begin."""
    at = _percpu(symbols, btf)["loaded_mm"]
    loaded = (memory.word((offset + at) % 2**64) for offset in memory.words(symbols["__per_cpu_offset"], cpus))
    return next((mm for mm in loaded if mm != symbols["init_mm"]), symbols["init_mm"])


def _irq_stack_symbol(symbols: Symbols, btf: Btf) -> int:
    found = symbols.get("hardirq_stack_ptr")
    return found if found is not None else symbols["pcpu_hot"] + btf.offset("pcpu_hot.hardirq_stack_ptr")


def _hooks(symbols: Symbols) -> dict[str, int]:
    ranges = {
        "mm_hook": "switch_mm_irqs_off",
        "schedule": "__schedule",
        "alloc": "trace_event_raw_event_mm_page_alloc",
        "alloc_iter": "__traceiter_mm_page_alloc",
        "free": "trace_event_raw_event_mm_page_free",
        "free_iter": "__traceiter_mm_page_free",
    }
    if symbols.get("preempt_schedule_notrace") is not None:
        ranges["preempt"] = "preempt_schedule_notrace"
    values = {"task_hook": symbols["finish_task_switch"]}
    for key, name in ranges.items():
        values |= _range(key, name, symbols)
    return values


def _range(key: str, name: str, symbols: Symbols) -> dict[str, int]:
    start, end = symbols.range(name)
    return {f"{key}_start": start, f"{key}_end": end}


def _switch(symbols: Symbols) -> _Found:
    """Find where a task's stack is left: __switch_to_asm() (arch/x86/entry/entry_64.S)."""
    hook = symbols.get("__switch_to_asm")
    if hook is None:
        return _Found({}, {}, {"__switch_to_asm": "a context switch shows the incoming task's stack"})
    return _Found({"switch_hook": hook}, {}, {})


def _bulk(symbols: Symbols) -> dict[str, int]:
    """Find what allocates many pages at once, without an event: alloc_pages_bulk(), since 387ba26fb1cb (5.13)."""
    names = ("alloc_pages_bulk_noprof", "__alloc_pages_bulk")
    return next((_range("bulk", name, symbols) for name in names if symbols.get(name) is not None), {})


def _areas(symbols: Symbols, btf: Btf, memory: GuestMemory) -> _Found:
    """Find the trees of vmalloc areas: several since d093602919ad (6.9), one before."""
    nodes, root = symbols.get("vmap_nodes"), symbols.get("vmap_area_root")
    if nodes is not None and btf.has("vmap_node.busy.root.rb_node"):
        form = "vmap_nodes"
        trees = {
            "vmap_roots": memory.word(nodes) + btf.offset("vmap_node.busy.root.rb_node"),
            "vmap_root_count": memory.number(symbols["nr_vmap_nodes"]),
            "vmap_root_stride": btf.size("vmap_node"),
        }
    elif root is not None:
        form = "vmap_area_root"
        trees = {"vmap_roots": root, "vmap_root_count": 1, "vmap_root_stride": 0}
    else:
        lost = "vmalloc memory is not told apart: kernel stacks only where a call was seen, BPF programs not"
        return _Found({}, {}, {"vmap_nodes or vmap_area_root": lost})
    members = {
        "vmap_rb_node": "vmap_area.rb_node",
        "vmap_start": "vmap_area.va_start",
        "vmap_end": "vmap_area.va_end",
        "vmap_vm": "vmap_area.vm",
        "vm_caller": "vm_struct.caller",
        "rb_left": "rb_node.rb_left",
        "rb_right": "rb_node.rb_right",
    }
    return _Found(trees | {key: btf.offset(path) for key, path in members.items()}, {"vmalloc areas": form}, {})


def _flushers(symbols: Symbols) -> Iterator[tuple[str, int, int]]:
    """List the functions of :data:`_FLUSHERS` that there are.

    :raises RecordError: None flushes user addresses: flushes, and their exits, would be missing.
    """
    number = 0
    for key, names in _FLUSHERS.items():
        for name in names:
            if symbols.get(name) is not None:
                start, end = symbols.range(name)
                yield key, number, start
                yield "flusher_end", number, end
                number += 1
        if not number:
            raise RecordError(
                f"this kernel has none of {', '.join(names)}, one of which recording needs; give another --kernel"
            )


def _gates(symbols: Symbols, memory: GuestMemory) -> Iterator[tuple[int, int]]:
    """Read the interrupt descriptor table (SDM volume 3, figure 6-8)."""
    words = memory.words(symbols["idt_table"], _GATES * 2)
    for vector in range(_GATES):
        low, high = words[2 * vector], words[2 * vector + 1]
        address = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
        if low >> 47 & 1:
            yield vector, address


def _syscalls(symbols: Symbols, memory: GuestMemory) -> dict[int, str]:
    """Read the names of the system calls from ``sys_call_table``: what its entries' functions are called."""
    prefix = "__x64_sys_"
    functions = symbols.starting(prefix)
    table = enumerate(memory.words(symbols["sys_call_table"], _MOST_SYSCALLS))
    served = itertools.takewhile(lambda entry: symbols.name_at(entry[1]) is not None, table)
    named = {number: functions[address].removeprefix(prefix) for number, address in served if address in functions}
    return {number: _RENAMED.get(name, name) for number, name in named.items() if name != "ni_syscall"}


def _vector_names(symbols: Symbols, gates: dict[int, int]) -> dict[int, str]:
    """Name the vectors whose handler has a name of its own, for example ``apic_timer_interrupt``."""
    names = {vector: symbols.name_at(address) or "" for vector, address in gates.items()}
    pattern = re.compile(r"asm_(?:exc_|sysvec_)(\w+)")
    return {vector: found[1] for vector, name in names.items() if (found := pattern.fullmatch(name))}
