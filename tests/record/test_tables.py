"""The plugin's stream and the side tables, from records made by hand."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asikit.record import RecordError
from asikit.record._layout import KernelLayout
from asikit.record._stream import RECORD, RecordType, StreamReader
from asikit.record._symbols import Symbols
from asikit.record._tables import Attribution, write_tables
from asikit.trace import EventKind, Region, Trace, TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

FREE, KERNEL, RESERVED, SLAB, PAGE_CACHE = 2, 1, 3, 4, 6
NONE = 0xFFFF_FFFF
DIRECT, VMALLOC, MODULES = 0xFFFF_8880_0000_0000, 0xFFFF_C900_0000_0000, 0xFFFF_FFFF_C000_0000
PERCPU = DIRECT + 0x100_0000
SHMEM, ROOTFS, CACHE = 0xFFFF_FFFF_8200_0000, 0xFFFF_FFFF_8200_0100, 0xFFFF_8880_0123_4000
SYMBOLS = Symbols(
    f"ffffffff81000000 T first\nffffffff81000100 T second\n{SHMEM:x} d shmem_fs_type\n{ROOTFS:x} d rootfs_fs_type\n"
)


def row(kind: int, arg: int = 0, **fields: int) -> np.void:
    """Make one record."""
    made = np.zeros(1, RECORD)
    made["type"], made["arg"] = kind, arg
    for name, value in fields.items():
        made[name] = value
    record: np.void = made[0]
    return record


def stream(*rows: np.void) -> bytes:
    """Give records as the plugin writes them."""
    return b"".join(record.tobytes() for record in rows)


REGIONS = (
    (0, Region.USER),
    (DIRECT, Region.DIRECT_MAP),
    (VMALLOC, Region.VMALLOC),
    (0xFFFF_FFFF_8000_0000, Region.KERNEL_IMAGE),
    (MODULES, Region.MODULES),
    (0xFFFF_FFFF_FF00_0000, Region.FIXMAP),
)


def known(*, symbols: Symbols = SYMBOLS, root_is_tmpfs: bool = True) -> Attribution:
    """Give what tells kinds of pages apart."""
    percpu = ((PERCPU, PERCPU + 0x3000), (PERCPU + 0x20_0000, PERCPU + 0x20_3000))
    return Attribution(KernelLayout(symbols, "", REGIONS, percpu, {}, {}, {}, root_is_tmpfs, {}, {}), symbols)


def area(number: int, start: int, end: int, maker: int) -> np.void:
    """Make the record of an area of the vmalloc or the modules region."""
    return row(RecordType.AREA, number, addr=start, clock=end, x=maker & NONE, stack=maker >> 32)


def read(folder: Path, data: bytes, attribution: Attribution | None = None) -> tuple[Trace, StreamReader]:
    """Write a trace of a stream."""
    with TraceWriter(folder / "t.asitrace", {"source": "linux"}) as writer:
        reader = StreamReader(io.BytesIO(data).read, writer, lambda: None)
        reader.run()
        write_tables(writer, reader.rows, attribution or known())
    return Trace.open(folder / "t.asitrace"), reader


def test_events_and_counts(tmp_path: Path) -> None:
    """Events keep their order and fields; counts, losses and the end are told."""
    data = stream(
        row(EventKind.ENTRY_SYSCALL, 17, cpu=1, clock=5, stack=0),
        row(RecordType.LOST, 1, clock=3),
        row(EventKind.RETURN_USER, 0, cpu=1, clock=9),
        row(RecordType.COUNTS, cpu=1, clock=100, addr=40),
        row(RecordType.END),
    )
    trace, reader = read(tmp_path, data)
    (events,) = trace.events()
    assert events.rows() == [(1, 5, EventKind.ENTRY_SYSCALL, 17, 0), (1, 9, EventKind.RETURN_USER, 0, 0)]
    assert (reader.ended, reader.events, reader.lost, reader.instructions) == (
        True,
        2,
        {"allocations": 3},
        {1: (100, 40)},
    )


def test_records_cut_by_the_pipe(tmp_path: Path) -> None:
    """A pipe may give any number of bytes at a time."""
    events = [row(EventKind.ENTRY_SYSCALL, number, clock=number) for number in range(50)]
    pipe = io.BytesIO(stream(*events))
    with TraceWriter(tmp_path / "t.asitrace", {"source": "linux"}) as writer:
        reader = StreamReader(lambda size: pipe.read(min(size, 7)), writer, lambda: None)
        reader.run()
    (frame,) = Trace.open(tmp_path / "t.asitrace").events()
    assert frame["arg"].to_list() == list(range(50))
    assert not reader.ended


def test_unknown_record(tmp_path: Path) -> None:
    """A stream of another version of the plugin is refused, and leaves no trace."""
    with pytest.raises(RecordError, match="a record of unknown type 99; remove asikit's compiled programs"):
        read(tmp_path, stream(row(99)))
    assert list(tmp_path.iterdir()) == []


def test_later_rows_replace_earlier_ones(tmp_path: Path) -> None:
    """What a page and a task have become counts; their ids stay."""
    data = stream(
        row(RecordType.PAGE, 1, x=7, aux=KERNEL, stack=NONE),
        row(RecordType.PAGE, 0, x=6, aux=FREE, stack=NONE),
        row(RecordType.PAGE, 1, x=7, aux=SLAB, stack=0, addr=CACHE),
        row(RecordType.ALLOCATION, 0, x=7, aux=2 | 1 << 8, addr=0xCC0, stack=0),
        row(RecordType.ALLOCATION, 1, x=9, aux=0xFF00, addr=2**64 - 1),
        row(RecordType.NAME, CACHE & NONE, x=CACHE >> 32, clock=int.from_bytes(b"kmalloc-", "little")),
        row(RecordType.TASK, 0, x=1, stack=1, clock=int.from_bytes(b"init", "little")),
        row(RecordType.TASK_MM, 0, x=1),
        row(RecordType.TASK, 0, x=1, stack=1, clock=int.from_bytes(b"fio", "little")),
        row(RecordType.TASK_MM, 0, x=2),
    )
    trace, _ = read(tmp_path, data)
    assert trace.table("pages").rows() == [(6, "free", None, None), (7, "slab", "kmalloc-", 0)]
    assert trace.table("allocations").rows() == [(7, 2, 0xCC0, 1, 0), (9, 0, None, None, 0)]
    assert trace.table("tasks").rows() == [(1, 1, "fio", 2)]


@pytest.mark.parametrize("kind", [RecordType.PAGE, RecordType.STACK])
def test_missing_rows(tmp_path: Path, kind: RecordType) -> None:
    """Rows that refer to what was never sent are the recorder's fault, and are said to be."""
    with pytest.raises(RecordError, match="a fault of the recorder"):
        read(tmp_path, stream(row(kind, 2)))


def test_stacks_and_symbols(tmp_path: Path) -> None:
    """Row 0 is the empty stack; only symbols that are used are listed, and an unknown address is symbol 0."""
    data = stream(
        row(RecordType.STACK, 1, stack=0, addr=0xFFFF_FFFF_8100_0110),
        row(RecordType.STACK, 2, stack=1, addr=0x1234),
    )
    trace, _ = read(tmp_path, data)
    assert trace.table("symbols").rows() == [("?", None, 0), ("second", None, 0xFFFF_FFFF_8100_0100)]
    assert trace.table("stacks").rows() == [(0, 0, 0), (0, 0xFFFF_FFFF_8100_0110, 1), (1, 0x1234, 0)]


@pytest.mark.parametrize(("tmpfs", "kind"), [(True, "shmem"), (False, "page_cache")])
def test_initramfs_is_what_the_kernel_unpacked_it_into(tmp_path: Path, kind: str, *, tmpfs: bool) -> None:
    """Page cache of rootfs is of tmpfs where the kernel uses tmpfs for it, and keeps its name."""
    data = stream(
        row(RecordType.PAGE, 0, x=1, aux=PAGE_CACHE, stack=NONE, addr=ROOTFS),
        row(RecordType.PAGE, 1, x=2, aux=PAGE_CACHE, stack=NONE, addr=SHMEM),
        row(RecordType.PAGE, 2, x=3, aux=PAGE_CACHE, stack=NONE, addr=0x1234),
    )
    trace, _ = read(tmp_path, data, known(root_is_tmpfs=tmpfs))
    assert trace.table("pages").select("kind", "cache").rows() == [
        (kind, "rootfs"),
        ("shmem", "shmem"),
        ("page_cache", None),
    ]


STACK_MAKER, CHUNK_MAKER, TEXT_MAKER, BPF_MAKER = (0xFFFF_FFFF_8300_0000 + 0x100 * number for number in range(4))


def test_regions_and_what_is_mapped_there(tmp_path: Path) -> None:
    """Places get their region, and generic pages the kind of the mapping that the kernel uses them through."""
    places = [
        (DIRECT, 0, 0),  # nothing finer is known of it
        (VMALLOC + 0x1000, 1, 1),  # in a stack
        (VMALLOC + 0x6000, 2, 0),  # in no area any more
        (VMALLOC + 0x8000, 3, 2),  # in a per-CPU chunk
        (VMALLOC + 0xA000, NONE, 0),  # a device
        (MODULES, 4, 3),
        (PERCPU + 0x1000, 5, 0),  # in the first chunk
        (PERCPU + 0x20_1000, 6, 0),  # the second CPU's
        (PERCPU + 0x3000, 7, 0),  # what the first chunk did not need and memblock gave away
        (PERCPU + 0x2000, 8, 0),
        (0x40_0000, 8, 0),
        (0xFFFF_FFFF_FF5F_D000, NONE, 0),
    ]
    kinds = [KERNEL, KERNEL, KERNEL, KERNEL, KERNEL, RESERVED, RESERVED, RESERVED, SLAB]
    symbols = Symbols(
        f"{STACK_MAKER:x} t dup_task_struct\n{CHUNK_MAKER:x} T pcpu_get_vm_areas\n{TEXT_MAKER:x} T module_alloc\n"
        f"{MODULES + 0x10:x} t in_module\t[overlay]\n"
    )
    data = stream(
        *(
            row(RecordType.PLACE, number, addr=address, x=page, stack=area)
            for number, (address, page, area) in enumerate(places)
        ),
        *(row(RecordType.PAGE, number, x=number, aux=kind, stack=NONE) for number, kind in enumerate(kinds)),
        area(1, VMALLOC, VMALLOC + 0x5000, STACK_MAKER + 0x40),
        area(2, VMALLOC + 0x8000, VMALLOC + 0x9000, CHUNK_MAKER + 0x40),
        area(3, MODULES, MODULES + 0x9000, TEXT_MAKER + 0x40),
    )
    trace, _ = read(tmp_path, data, known(symbols=symbols))
    assert trace.table("places")["region"].to_list() == [
        *("direct_map", "vmalloc", "vmalloc", "percpu", "vmalloc", "modules"),
        *("percpu", "percpu", "direct_map", "direct_map", "user", "fixmap"),
    ]
    assert trace.table("pages")["kind"].to_list() == [
        *("kernel", "stack", "vmalloc", "percpu", "vmalloc", "percpu", "percpu", "reserved", "slab"),
    ]


@pytest.mark.parametrize(
    ("maker", "symbol", "region"),
    [
        ("bpf_prog_pack_alloc", "", "bpf"),
        ("bpf_jit_binary_alloc", "", "bpf"),
        ("execmem_alloc", "", "bpf"),  # modules and BPF alike, but a module would have symbols
        ("execmem_alloc", f"{MODULES + 0x100:x} d data_of_module\t[overlay]\n", "modules"),
        ("execmem_alloc", f"{MODULES + 0x100:x} t bpf_prog_6deef7357e7b4530\t[bpf]\n", "bpf"),
        ("execmem_alloc", f"{MODULES + 0x9000:x} t in_the_next_area\t[overlay]\n", "bpf"),
        ("load_module", "", "modules"),
        ("module_alloc", f"{MODULES + 0x100:x} t in_module\t[overlay]\n", "modules"),
    ],
)
def test_bpf_programs(tmp_path: Path, maker: str, symbol: str, region: str) -> None:
    """Text that the BPF compiler made is told from modules by who allocated it, or by the symbols that modules have."""
    symbols = Symbols(f"{TEXT_MAKER:x} t {maker}\n{BPF_MAKER:x} t other\n{symbol}")
    data = stream(
        row(RecordType.PLACE, 0, addr=MODULES + 0x1000, x=0, stack=1),
        row(RecordType.PAGE, 0, x=0, aux=KERNEL, stack=NONE),
        area(1, MODULES, MODULES + 0x9000, TEXT_MAKER + 0x40),
    )
    trace, _ = read(tmp_path, data, known(symbols=symbols))
    assert trace.table("places")["region"].to_list() == [region]
    assert trace.table("pages")["kind"].to_list() == ["vmalloc"]
