"""Where things are in the guest's kernel: what the plugin must know before it can record.

From the guest's symbols, BTF, trace event formats, and its memory, which the host shares.
"""

import itertools
import mmap
import re
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from asikit.linux._btf import Btf
from asikit.linux._symbols import Symbols
from asikit.linux.errors import RecordError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Layout", "read_layout"]

_KERNEL_MAP = 0xFFFF_FFFF_8000_0000
"""``__START_KERNEL_map`` (arch/x86/include/asm/page_64_types.h)."""

_PAGE_TYPE_BASE, _PG_BUDDY, _PG_TABLE = 0xF000_0000, 0x80, 0x200
"""``PAGE_TYPE_BASE``, ``PG_buddy``, ``PG_table`` of the kernels that :func:`asikit.linux.kernel.find_kernel` accepts.

Macros of include/linux/page-flags.h, so not in BTF.
"""

_BANNER = b"Linux version"
_ADDRESS_MASK = 2**64 - 1
_RENAMED = {"newstat": "stat", "newfstat": "fstat", "newlstat": "lstat", "newuname": "uname", "umount": "umount2"}
"""System calls whose function is not called as user space calls them (arch/x86/entry/syscalls/syscall_64.tbl)."""

_GATES = 256
_MOST_SYSCALLS = 512

_ALLOC_FIELDS = {"pfn": "pfn", "order": "order", "gfp": "gfp_flags", "migratetype": "migratetype"}
_FREE_FIELDS = {"pfn": "pfn", "order": "order"}

_OFFSETS = {
    "orig_ax_offset": "pt_regs.orig_ax",
    "task_pid": "task_struct.pid",
    "task_tgid": "task_struct.tgid",
    "task_comm": "task_struct.comm",
    "task_mm": "task_struct.mm",
    "mm_ctx_id": "mm_struct.context.ctx_id",
    "page_flags": "page.flags",
    "page_mapping": "page.mapping",
    "page_compound_head": "page.compound_head",
    "page_type": "page.page_type",
    "cache_name": "kmem_cache.name",
    "mapping_host": "address_space.host",
    "inode_sb": "inode.i_sb",
    "sb_type": "super_block.s_type",
}


@dataclass(frozen=True, slots=True)
class Layout:
    """What was found.

    :ivar lines: What the plugin is told: lines ``key index value``, hexadecimal.
    :ivar percpu: The first per-CPU chunk's range of virtual addresses, which has ordinary pages between its units.
    :ivar gfp_flags: Names and bit masks of the allocation flags.
    :ivar syscalls: What the kernel calls the functions that serve each number.
    :ivar vectors: The same of interrupt and exception vectors.
    :ivar root_is_tmpfs: Whether the initramfs was unpacked into tmpfs; else it is ramfs.
    """

    lines: str
    percpu: tuple[int, int]
    gfp_flags: dict[str, int]
    syscalls: dict[int, str]
    vectors: dict[int, str]
    root_is_tmpfs: bool


class _Memory:
    """The guest's memory, read at kernel-image addresses: with ``nokaslr`` the image lies where it was linked."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view = view

    def word(self, address: int) -> int:
        return self.words(address, 1)[0]

    def words(self, address: int, count: int) -> tuple[int, ...]:
        return self._words_at_physical(address - _KERNEL_MAP, count)

    def at_physical(self, address: int) -> int:
        return self._words_at_physical(address, 1)[0]

    def bytes(self, address: int, count: int) -> bytes:
        return self._view[address - _KERNEL_MAP : address - _KERNEL_MAP + count]

    def _words_at_physical(self, address: int, count: int) -> tuple[int, ...]:
        if not 0 <= address <= len(self._view) - 8 * count:
            raise RecordError(f"the guest's kernel refers to physical address {address:#x}, where it has no memory")
        return struct.unpack_from(f"<{count}Q", self._view, address)


def read_layout(folder: "Path", memory_file: "Path", cpus: int) -> Layout:
    """Work out the layout from what the guest handed over into ``folder`` and from its memory.

    :raises RecordError: The kernel lacks something that recording needs.
    """
    symbols = Symbols.read(folder / "guest-kallsyms")
    btf = Btf.read(folder / "guest-btf")
    alloc, free = (_format(folder / f"guest-{event}-format") for event in ("alloc", "free"))
    with memory_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        memory = _Memory(view)
        if memory.bytes(symbols["linux_banner"], len(_BANNER)) != _BANNER:
            raise RecordError("the guest's kernel is not where its symbols say; it must honour nokaslr")
        page_offset = memory.word(symbols["page_offset_base"])
        gates = dict(_gates(symbols, memory))
        values = {
            **_image(symbols, memory, page_offset),
            **_members(btf),
            **_hooks(symbols),
            **_event("alloc", alloc, _ALLOC_FIELDS),
            **_event("free", free, _FREE_FIELDS),
            **_percpu(symbols, btf),
        }
        lines = [
            *((key, 0, value) for key, value in values.items()),
            *(("gate", vector, address) for vector, address in gates.items()),
            *_per_cpu_lines(symbols, btf, memory, cpus, page_offset),
            *((key, 0, address) for key, address in _tlb_functions(symbols)),
        ]
        tmpfs = symbols.get("is_tmpfs")
        return Layout(
            lines="".join(f"{key} {index:x} {value:x}\n" for key, index, value in lines),
            percpu=_first_chunk(symbols, memory, cpus),
            gfp_flags=gfp_flags(alloc),
            syscalls=_syscalls(symbols, memory),
            vectors=_vector_names(symbols, gates),
            root_is_tmpfs=tmpfs is not None and memory.bytes(tmpfs, 1) != b"\0",
        )


def _format(path: "Path") -> str:
    """Read a saved trace event format.

    :raises RecordError: The guest's kernel has none.
    """
    if not path.exists():
        raise RecordError("the guest has no trace events; record a kernel with CONFIG_FTRACE=y and CONFIG_TRACING=y")
    return path.read_text(encoding="ascii", errors="replace")


def _per_cpu_lines(
    symbols: Symbols, btf: Btf, memory: _Memory, cpus: int, page_offset: int
) -> "Iterator[tuple[str, int, int]]":
    """Give each CPU's per-CPU offset, and the top of its interrupt stack."""
    irq_stack = _irq_stack_symbol(symbols, btf)
    for cpu, offset in enumerate(memory.words(symbols["__per_cpu_offset"], cpus)):
        yield "per_cpu", cpu, offset
        yield "irq_stack", cpu, memory.at_physical((offset + irq_stack - page_offset) & _ADDRESS_MASK)


def _first_chunk(symbols: Symbols, memory: _Memory, cpus: int) -> tuple[int, int]:
    """Give the range of the first per-CPU chunk (mm/percpu.c)."""
    base = memory.word(symbols["pcpu_base_addr"])
    unit = memory.word(symbols["pcpu_unit_size"]) & 0xFFFF_FFFF
    return base, base + unit * cpus


def _image(symbols: Symbols, memory: _Memory, page_offset: int) -> dict[str, int]:
    return {
        "page_offset": page_offset,
        "vmemmap": memory.word(symbols["vmemmap_base"]),
        "kernel_map": _KERNEL_MAP,
        "phys_base": memory.word(symbols["phys_base"]),
        "init_top_pgt": symbols["init_top_pgt"],
        "init_mm": symbols["init_mm"],
        "syscall_entry": symbols["entry_SYSCALL_64"],
        "compat_entry": symbols.get("entry_SYSCALL_compat") or 0,
        "sysenter_entry": symbols.get("entry_SYSENTER_compat") or 0,
        "error_entry": symbols.get("error_entry") or 0,
        "paranoid_entry": symbols.get("paranoid_entry") or 0,
    }


def _members(btf: Btf) -> dict[str, int]:
    slab = "slab.slab_cache" if btf.has("slab.slab_cache") else "page.slab_cache"
    flags = {name: btf.enumerator("pageflags", name) for name in ("PG_slab", "PG_reserved")}
    if flags["PG_slab"] is None or flags["PG_reserved"] is None:
        raise RecordError("this kernel's BTF lacks the page flags PG_slab and PG_reserved; give another with --kernel")
    return {
        **{key: btf.offset(path) for key, path in _OFFSETS.items()},
        "page_size": btf.size("page"),
        "page_slab_cache": btf.offset(slab),
        "flag_slab": flags["PG_slab"],
        "flag_reserved": flags["PG_reserved"],
        "type_base": _PAGE_TYPE_BASE,
        "type_buddy": _PG_BUDDY,
        "type_table": _PG_TABLE,
    }


def _percpu(symbols: Symbols, btf: Btf) -> dict[str, int]:
    current = symbols.get("current_task")
    if current is None:  # since 6.2 it is the first member of pcpu_hot
        current = symbols["pcpu_hot"] + btf.offset("pcpu_hot.current_task")
    return {"current_task": current, "loaded_mm": symbols["cpu_tlbstate"] + btf.offset("tlb_state.loaded_mm")}


def _irq_stack_symbol(symbols: Symbols, btf: Btf) -> int:
    found = symbols.get("hardirq_stack_ptr")
    return found if found is not None else symbols["pcpu_hot"] + btf.offset("pcpu_hot.hardirq_stack_ptr")


def _hooks(symbols: Symbols) -> dict[str, int]:
    ranges = {
        "mm_hook": "switch_mm_irqs_off",
        "alloc": "trace_event_raw_event_mm_page_alloc",
        "alloc_iter": "__traceiter_mm_page_alloc",
        "free": "trace_event_raw_event_mm_page_free",
        "free_iter": "__traceiter_mm_page_free",
    }
    values = {"task_hook": symbols["finish_task_switch"]}
    for key, name in ranges.items():
        values[f"{key}_start"], values[f"{key}_end"] = symbols.range(name)
    return values


def _tlb_functions(symbols: Symbols) -> "Iterator[tuple[str, int]]":
    """List the functions that run on a CPU to flush its TLB (arch/x86/mm/tlb.c)."""
    for key, names in (("tlb_user", ["flush_tlb_func"]), ("tlb_kernel", ["do_flush_tlb_all", "do_kernel_range_flush"])):
        for name in names:
            address = symbols.get(name)
            if address is not None:
                yield key, address


def _gates(symbols: Symbols, memory: _Memory) -> "Iterator[tuple[int, int]]":
    """Read the interrupt descriptor table (SDM volume 3, figure 6-8)."""
    words = memory.words(symbols["idt_table"], _GATES * 2)
    for vector in range(_GATES):
        low, high = words[2 * vector], words[2 * vector + 1]
        address = low & 0xFFFF | low >> 32 & 0xFFFF_0000 | (high & 0xFFFF_FFFF) << 32
        if low >> 47 & 1:
            yield vector, address


def _syscalls(symbols: Symbols, memory: _Memory) -> dict[int, str]:
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


def _event(prefix: str, text: str, fields: dict[str, str]) -> dict[str, int]:
    """Find a trace event's fields in its tracefs ``format`` file."""
    values = {}
    for key, field in fields.items():
        found = re.search(rf"\b{field};\s*offset:(\d+);\s*size:(\d+);", text)
        if found is None:
            raise RecordError(f"the guest's trace event mm_page_{prefix} has no field {field!r}; give another --kernel")
        values[f"{prefix}_{key}"] = int(found[1])
        if key == "gfp":
            values[f"{prefix}_gfp_bytes"] = int(found[2])
    return values


def gfp_flags(text: str) -> dict[str, int]:
    """Read the names of the gfp flags and their bits from the ``print fmt`` of ``mm_page_alloc``.

    Single-bit ``__GFP_*`` flags and the combinations alike: everything that is spelt out there.
    """
    flags: dict[str, int] = {}
    for expression, name in re.findall(r"\{([^{}\"]*), \"(\w+)\"\}", text):
        plain = re.sub(r"\(\s*(?:unsigned long|gfp_t)\s*\)", "", expression)
        value = _evaluate(re.findall(r"0x[0-9a-fA-F]+|\d+|[()|&~]", plain.replace("u", "")))
        if value is not None:
            flags[name] = value & 0xFFFF_FFFF
    return flags


def _evaluate(tokens: list[str]) -> int | None:
    """Evaluate a C expression of numbers, ``|``, ``&``, ``~`` and parentheses; None if it is not one."""
    position = 0

    def primary() -> int:
        nonlocal position
        word = tokens[position]
        position += 1
        if word == "~":
            return ~primary()
        if word == "(":
            value = either()
            position += 1
            return value
        return int(word, 0)

    def both() -> int:
        nonlocal position
        value = primary()
        while position < len(tokens) and tokens[position] == "&":
            position += 1
            value &= primary()
        return value

    def either() -> int:
        nonlocal position
        value = both()
        while position < len(tokens) and tokens[position] == "|":
            position += 1
            value |= both()
        return value

    try:
        value = either()
    except (IndexError, ValueError):
        return None
    return value if position == len(tokens) else None
