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
"""``PAGE_TYPE_BASE``, ``PG_buddy``, ``PG_table`` of 5.x and 6.x up to 6.10 (include/linux/page-flags.h); macros, so not in BTF."""

_GATES = 256
_MOST_SYSCALLS = 512

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
    """What was found: the plugin's lines, and the address ranges that tell the regions apart.

    ``percpu`` is the first chunk's range of virtual addresses; ``gfp_flags`` are names and bit masks; ``syscalls`` and
    ``vectors`` are what the kernel calls the functions that serve each number.
    """

    lines: str
    page_offset: int
    vmemmap: int
    percpu: tuple[int, int]
    gfp_flags: dict[str, int]
    syscalls: dict[int, str]
    vectors: dict[int, str]


class _Memory:
    """The guest's memory, read at kernel-image addresses: with ``nokaslr`` the image lies where it was linked."""

    def __init__(self, view: mmap.mmap) -> None:
        self._view = view

    def word(self, address: int) -> int:
        at = address - _KERNEL_MAP
        return int(struct.unpack_from("<Q", self._view, at)[0])

    def words(self, address: int, count: int) -> tuple[int, ...]:
        return struct.unpack_from(f"<{count}Q", self._view, address - _KERNEL_MAP)

    def at_physical(self, address: int) -> int:
        return int(struct.unpack_from("<Q", self._view, address)[0])

    def bytes(self, address: int, count: int) -> bytes:
        return self._view[address - _KERNEL_MAP : address - _KERNEL_MAP + count]


def read_layout(folder: "Path", memory_file: "Path", cpus: int) -> Layout:
    """Work out the layout from what the guest handed over into ``folder`` and from its memory.

    :raises RecordError: The kernel lacks something that recording needs.
    """
    symbols = Symbols.read(folder / "guest-kallsyms")
    btf = Btf.read(folder / "guest-btf")
    with memory_file.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view:
        memory = _Memory(view)
        if memory.bytes(symbols["linux_banner"], 13) != b"Linux version":
            raise RecordError("the guest's kernel is not where its symbols say; it must honour nokaslr")
        page_offset = memory.word(symbols["page_offset_base"])
        per_cpu = memory.words(symbols["__per_cpu_offset"], cpus)
        base = memory.word(symbols["pcpu_base_addr"])
        unit = memory.word(symbols["pcpu_unit_size"]) & 0xFFFF_FFFF
        values = {
            **_image(symbols, memory, page_offset),
            **_members(btf),
            **_hooks(symbols),
            **_event("alloc", (folder / "guest-alloc-format").read_text(), {"pfn": "pfn", "order": "order", "gfp": "gfp_flags", "migratetype": "migratetype"}),
            **_event("free", (folder / "guest-free-format").read_text(), {"pfn": "pfn", "order": "order"}),
            **_percpu(symbols, btf),
        }
        lines = [f"{key} 0 {value:x}" for key, value in values.items()]
        gates = dict(_gates(symbols, memory))
        lines += [f"gate {vector:x} {address:x}" for vector, address in gates.items()]
        syscalls = _syscalls(symbols, memory)
        lines += [f"per_cpu {cpu:x} {offset:x}" for cpu, offset in enumerate(per_cpu)]
        irq_stack = _irq_stack_symbol(symbols, btf)
        lines += [f"irq_stack {cpu:x} {memory.at_physical(offset + irq_stack - page_offset & 2**64 - 1):x}" for cpu, offset in enumerate(per_cpu)]
        lines += [f"{key} 0 {address:x}" for key, address in _tlb_functions(symbols)]
    return Layout(
        "\n".join(lines) + "\n",
        page_offset,
        values["vmemmap"],
        (base, base + unit * cpus),
        gfp_flags((folder / "guest-alloc-format").read_text()),
        syscalls,
        _vector_names(symbols, gates),
    )


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
    }


def _members(btf: Btf) -> dict[str, int]:
    slab = "slab.slab_cache" if btf.has("slab.slab_cache") else "page.slab_cache"
    flags = {name: btf.enumerator("pageflags", name) for name in ("PG_slab", "PG_reserved")}
    if flags["PG_slab"] is None or flags["PG_reserved"] is None:
        raise RecordError("this kernel's page flags are not known here; use a 5.15 to 6.10 kernel")
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
    # stat, fstat, lstat and uname are called sys_newstat ... in the kernel.
    return {number: name.removeprefix("new") for number, name in named.items() if name != "ni_syscall"}


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
            raise RecordError(f"the guest's trace event mm_page_{prefix} has no field {field!r}; it must have tracefs")
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
        token = tokens[position]
        position += 1
        if token == "~":
            return ~primary()
        if token == "(":
            value = either()
            position += 1
            return value
        return int(token, 0)

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

