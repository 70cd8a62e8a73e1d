"""Symbols, the interrupt descriptor table, the functions that flush."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asikit.record import RecordError
from asikit.record._layout import _flushers, _gates, _text
from asikit.record._symbols import Symbols
from tests.record.made_memory import made_memory

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


def test_no_symbols(tmp_path: Path) -> None:
    """A kernel that shows no symbols is refused with the option that it lacks."""
    with pytest.raises(RecordError, match=r"kallsyms is empty; record a kernel with CONFIG_KALLSYMS_ALL=y$"):
        Symbols.read(tmp_path / "guest-kallsyms")


def test_symbols_again(tmp_path: Path) -> None:
    """At a recording's end the symbols are parsed again only if there are others: a module's, for example."""
    path = tmp_path / "guest-symbols-after"
    path.write_text(KALLSYMS)
    before = Symbols.read(path)
    assert Symbols.read(path, known=before) is before
    path.write_text(KALLSYMS.replace("overlay", "fuse"))
    after = Symbols.read(path, known=before)
    assert after.module_of(0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_C000_1000) == "fuse"


def test_no_events(tmp_path: Path) -> None:
    """A kernel without trace events is refused with the options that it lacks."""
    with pytest.raises(RecordError, match="no trace events; record a kernel with CONFIG_FTRACE=y"):
        _text(tmp_path / "guest-alloc-format")


def test_gates() -> None:
    """A descriptor's address is put together from its three pieces; one that is not present is left out."""
    table, handler = 0xFFFF_FFFF_8100_2000, 0xFFFF_FFFF_81A0_0B30
    gate = struct.pack("<HHBBHII", handler & 0xFFFF, 0x10, 0, 0x8E, handler >> 16 & 0xFFFF, handler >> 32, 0)
    with made_memory(image={table: bytes(16 * 14) + gate + bytes(16 * 241)}) as memory:
        assert dict(_gates(Symbols(f"{table:x} d idt_table\n"), memory)) == {14: handler}


def test_flushers() -> None:
    """Each function that flushes is told with its end, and whose addresses it flushes.

    Without one for user addresses the kernel is refused, as exits would be missing.
    """
    symbols = Symbols(
        "ffffffff81000000 t flush_tlb_func\nffffffff81000100 T do_flush_tlb_all\nffffffff81000180 T other\n"
    )
    assert list(_flushers(symbols)) == [
        ("flusher_user", 0, 0xFFFF_FFFF_8100_0000),
        ("flusher_end", 0, 0xFFFF_FFFF_8100_0100),
        ("flusher_kernel", 1, 0xFFFF_FFFF_8100_0100),
        ("flusher_end", 1, 0xFFFF_FFFF_8100_0180),
    ]
    with pytest.raises(RecordError, match=r"has none of flush_tlb_func, .*, one of which recording needs"):
        list(_flushers(Symbols("ffffffff81000100 T do_flush_tlb_all\n")))
