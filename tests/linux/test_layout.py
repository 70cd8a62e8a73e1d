"""Symbols, trace event formats, allocation flags and the interrupt descriptor table."""

import mmap
import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asikit.linux import RecordError
from asikit.linux._layout import _KERNEL_MAP, _event, _format, _gates, _Memory, gfp_flags
from asikit.linux._symbols import Symbols

if TYPE_CHECKING:
    from pathlib import Path

KALLSYMS = """\
0000000000013f40 A current_task
ffffffff81000000 T startup_64
ffffffff81000100 t finish_task_switch.isra.0
ffffffff81000200 T __alloc_pages
ffffffff81000200 t same_place
ffffffff82000000 D shmem_fs_type
ffffffff82000100 d internal_fs_type
ffffffff82001000 D idt_table
ffffffffc0000000 t ovl_read_iter\t[overlay]
ffffffffc0001000 d ovl_fs_type\t[overlay]
ffffffffc0002000 t bpf_prog_6deef7357e7b4530\t[bpf]
ffffffffc00"""


def test_symbols_by_name() -> None:
    """A function is found by the name in the source, also if GCC has changed it; a module's does not stand for it."""
    symbols = Symbols(KALLSYMS)
    assert symbols["finish_task_switch"] == 0xFFFF_FFFF_8100_0100
    assert symbols["current_task"] == 0x13F40
    assert symbols.get("ovl_read_iter") is None
    assert symbols.range("finish_task_switch") == (0xFFFF_FFFF_8100_0100, 0xFFFF_FFFF_8100_0200)
    assert symbols.name_at(0xFFFF_FFFF_8100_0200) == "__alloc_pages"
    assert symbols.name_at(0xFFFF_FFFF_8100_0201) is None
    with pytest.raises(RecordError, match="has no symbol 'nothing', which recording needs; give another with --kernel"):
        symbols["nothing"]


def test_symbols_by_address() -> None:
    """An address belongs to the function before it, of modules and BPF programs too; data is no function."""
    symbols = Symbols(KALLSYMS)
    addresses = np.array(
        [0xFFFF_FFFF_8100_01FF, 0xFFFF_FFFF_8100_0200, 0xFFFF_FFFF_C000_0010, 0xFFFF_FFFF_C000_2010, 0x1000, 2**64 - 1],
        dtype=np.uint64,
    )
    found = symbols.find(addresses)
    names = [symbols.text.name[row] if row >= 0 else None for row in found]
    assert names == [
        "finish_task_switch.isra.0",
        "__alloc_pages",
        "ovl_read_iter",
        "bpf_prog_6deef7357e7b4530",
        None,
        None,
    ]
    assert [symbols.text.module[row] for row in found[:4]] == [None, None, "overlay", "bpf"]


def test_file_systems() -> None:
    """File systems go by the names that users know them by, those of modules too."""
    assert set(Symbols(KALLSYMS).file_systems.values()) == {"shmem", "devtmpfs", "ovl"}


def test_no_symbols(tmp_path: "Path") -> None:
    """A kernel that shows no symbols is refused with the option that it lacks."""
    with pytest.raises(RecordError, match=r"kallsyms is empty; record a kernel with CONFIG_KALLSYMS_ALL=y$"):
        Symbols.read(tmp_path / "guest-kallsyms")


FORMAT = """\
name: mm_page_alloc
ID: 564
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;

\tfield:unsigned long pfn;\toffset:8;\tsize:8;\tsigned:0;
\tfield:unsigned int order;\toffset:16;\tsize:4;\tsigned:0;
\tfield:gfp_t gfp_flags;\toffset:20;\tsize:4;\tsigned:0;

print fmt: "gfp_flags=%s", (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", {( unsigned long)((((( gfp_t)\
(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u) | (( gfp_t)0x100000u)) | (( gfp_t)0x02u)) & ~(( gfp_t)0x400u)), \
"GFP_ODD"}, {( unsigned long)((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u)), "GFP_KERNEL"}, \
{( unsigned long)(( gfp_t)0x100000u), "__GFP_HARDWALL"}, {(unsigned long)sizeof(long), "NOT_A_NUMBER"}) : "none"
"""


def test_event_fields() -> None:
    """The plugin is told the offsets of the fields, and how wide the flags are."""
    fields = {"pfn": "pfn", "order": "order", "gfp": "gfp_flags"}
    expected = {"alloc_pfn": 8, "alloc_order": 16, "alloc_gfp": 20, "alloc_gfp_bytes": 4}
    assert _event("alloc", FORMAT, fields) == expected
    with pytest.raises(RecordError, match="mm_page_alloc has no field 'migratetype'"):
        _event("alloc", FORMAT, {"migratetype": "migratetype"})


def test_no_events(tmp_path: "Path") -> None:
    """A kernel without trace events is refused with the options that it lacks."""
    with pytest.raises(RecordError, match="no trace events; record a kernel with CONFIG_FTRACE=y"):
        _format(tmp_path / "guest-alloc-format")


def test_gfp_flags() -> None:
    """The C expressions of the kernel are evaluated as C does; what is none is left out."""
    assert gfp_flags(FORMAT) == {"GFP_ODD": 0x1008C2, "GFP_KERNEL": 0xCC0, "__GFP_HARDWALL": 0x100000}


def test_gates() -> None:
    """A descriptor's address is put together from its three pieces; one that is not present is left out."""
    table, handler = 0xFFFF_FFFF_8000_1000, 0xFFFF_FFFF_81A0_0B30
    gate = struct.pack("<HHBBHII", handler & 0xFFFF, 0x10, 0, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0)
    with mmap.mmap(-1, 1 << 16) as view:
        at = table - _KERNEL_MAP
        view[at + 16 * 14 : at + 16 * 15] = gate
        symbols = Symbols(f"{table:x} d idt_table\n")
        assert dict(_gates(symbols, _Memory(view))) == {14: handler}


def test_addresses_outside_of_memory_are_refused() -> None:
    """A kernel that is not where its symbols say does not make the reader fail."""
    with mmap.mmap(-1, 1 << 12) as view, pytest.raises(RecordError, match="where it has no memory"):
        _Memory(view).word(0xFFFF_FFFF_8100_0000)
