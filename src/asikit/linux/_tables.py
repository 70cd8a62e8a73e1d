"""The side tables of a trace, from the rows that the recorder has sent."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from asikit.linux._stream import RecordType
from asikit.linux.errors import RecordError
from asikit.trace import NO_PAGE, PageKind, Region

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from asikit.linux._layout import Layout
    from asikit.linux._symbols import Symbols
    from asikit.trace import TraceWriter

    Records = npt.NDArray[np.void]
    Mask = npt.NDArray[np.bool_]

__all__ = ["Area", "Attribution", "vmalloc_areas", "write_tables"]

_KINDS: Final = (
    PageKind.UNKNOWN,
    PageKind.KERNEL,
    PageKind.FREE,
    PageKind.RESERVED,
    PageKind.SLAB,
    PageKind.ANON,
    PageKind.PAGE_CACHE,
    PageKind.PAGE_TABLE,
    PageKind.STACK,
)
"""``enum page_kind`` of plugin/recorder.h."""

_NO_ALLOCATION: Final = 0xFFFF_FFFF
_NO_GFP: Final = 0xFFFF_FFFF_FFFF_FFFF

_REGIONS: Final = (
    (0x0000_0000_0000_0000, Region.USER),
    (0x0000_8000_0000_0000, Region.OTHER),
    (0xFFFF_8800_0000_0000, Region.LDT),
    (0xFFFF_8880_0000_0000, Region.DIRECT_MAP),
    (0xFFFF_C880_0000_0000, Region.OTHER),
    (0xFFFF_C900_0000_0000, Region.VMALLOC),
    (0xFFFF_E900_0000_0000, Region.OTHER),
    (0xFFFF_EA00_0000_0000, Region.VMEMMAP),
    (0xFFFF_EB00_0000_0000, Region.OTHER),
    (0xFFFF_FE00_0000_0000, Region.CPU_ENTRY_AREA),
    (0xFFFF_FE80_0000_0000, Region.OTHER),
    (0xFFFF_FF00_0000_0000, Region.ESPFIX),
    (0xFFFF_FF80_0000_0000, Region.OTHER),
    (0xFFFF_FFFF_8000_0000, Region.KERNEL_IMAGE),
    (0xFFFF_FFFF_A000_0000, Region.MODULES),
    (0xFFFF_FFFF_FF00_0000, Region.FIXMAP),
)
"""Where each region begins with four-level paging and ``nokaslr`` (Documentation/x86/x86_64/mm.rst)."""

_TMPFS: Final = ("shmem", "devtmpfs")
"""File systems whose page cache is that of tmpfs (mm/shmem.c)."""

_PERCPU_MAKER: Final = "pcpu_get_vm_areas"
_STACK_MAKERS: Final = frozenset(
    {"kernel_clone", "copy_process", "dup_task_struct", "alloc_thread_stack_node", "irq_init_percpu_irqstack"}
)
"""Whom /proc/vmallocinfo may name for a kernel stack, by what the compiler has inlined (kernel/fork.c, irq_64.c)."""


@dataclass(frozen=True, slots=True)
class Area:
    """An area of the vmalloc region, a line of /proc/vmallocinfo: first address, address past the end, its maker."""

    start: int
    end: int
    maker: str


@dataclass(frozen=True, slots=True)
class Attribution:
    """What tells regions and kinds of pages apart.

    :ivar layout: Of the kernel.
    :ivar symbols: As they were at the end, with the modules and BPF programs that the workload loaded.
    :ivar areas: Of the vmalloc region, at the end.
    """

    layout: "Layout"
    symbols: "Symbols"
    areas: tuple[Area, ...]


def vmalloc_areas(text: str) -> tuple[Area, ...]:
    """Parse /proc/vmallocinfo: lines ``0xSTART-0xEND SIZE MAKER+0xOFFSET/0xLENGTH ...``."""
    found = re.finditer(r"^0x([0-9a-f]+)-0x([0-9a-f]+) +\d+ ([\w.]+)", text, re.MULTILINE)
    return tuple(Area(int(area[1], 16), int(area[2], 16), area[3]) for area in found)


def write_tables(writer: "TraceWriter", rows: "Callable[[RecordType], Records]", known: Attribution) -> None:
    """Append the side tables to a trace.

    :param rows: Gives the recorder's rows of a type, in the order in which they were sent.
    :raises RecordError: Rows are missing.
    """
    places, pages = _last_of_each(rows(RecordType.PLACE)), _last_of_each(rows(RecordType.PAGE))
    region = _regions(places["addr"])
    table = _pages(pages, _cache_names(rows(RecordType.NAME)), known)
    region, kinds = _refined(places, region, table["kind"], known)
    writer.append("places", pl.DataFrame({"vaddr": places["addr"], "region": _words(region), "page": places["x"]}))
    writer.append("pages", table.with_columns(kind=kinds))
    writer.append("allocations", _allocations(_last_of_each(rows(RecordType.ALLOCATION))))
    stacks = rows(RecordType.STACK)
    if not np.array_equal(stacks["arg"], np.arange(1, len(stacks) + 1)):
        raise RecordError("the recorder's stream has stacks out of order: a fault of the recorder")
    for name, frame in zip(("stacks", "symbols"), _stacks(stacks, known.symbols), strict=True):
        writer.append(name, frame)
    writer.append("tasks", _tasks(_last_of_each(rows(RecordType.TASK)), _last_of_each(rows(RecordType.TASK_MM))))


def _last_of_each(rows: "Records") -> "Records":
    """Order rows by their id; a later row of the same id replaces an earlier one.

    :raises RecordError: An id is missing.
    """
    last = np.full(int(rows["arg"].max()) + 1 if len(rows) else 0, -1)
    last[rows["arg"]] = np.arange(len(rows))  # assignment in order leaves the last
    if (last < 0).any():
        kind = RecordType(int(rows["type"][0])).name.lower()
        raise RecordError(f"the recorder's stream lacks {kind} {int(np.argmin(last))}: a fault of the recorder")
    chosen: Records = rows[last]
    return chosen


def _regions(address: "npt.NDArray[np.uint64]") -> "npt.NDArray[Any]":
    starts = np.array([start for start, _ in _REGIONS], dtype=np.uint64)
    names = np.array([region.value for _, region in _REGIONS], dtype=object)
    return names[np.searchsorted(starts, address, side="right") - 1]


def _pages(rows: "Records", cache_names: dict[int, str], known: Attribution) -> pl.DataFrame:
    pointers, index = np.unique(rows["addr"], return_inverse=True)
    names = {**known.symbols.file_systems, **cache_names}
    named = np.array([names.get(int(pointer)) for pointer in pointers], dtype=object)[index]
    kind = np.array([kind.value for kind in _KINDS], dtype=object)[rows["aux"]]
    of_tmpfs = (*_TMPFS, "rootfs") if known.layout.root_is_tmpfs else _TMPFS
    kind[(kind == PageKind.PAGE_CACHE.value) & np.isin(named, of_tmpfs)] = PageKind.SHMEM.value
    return pl.DataFrame(
        {
            "frame": rows["x"].astype(np.uint64),
            "kind": _words(kind),
            "cache": _words(named),
            "allocation": _with_nulls(pl.Series(rows["stack"]), rows["stack"] == _NO_ALLOCATION),
        }
    )


def _cache_names(rows: "Records") -> dict[int, str]:
    """Put the names of slab caches together: 16 bytes come in each row."""
    text: dict[int, bytes] = {}
    for row in rows:  # a few dozen
        pointer = int(row["arg"]) | int(row["x"]) << 32
        text[pointer] = text.get(pointer, b"") + row["clock"].tobytes() + row["addr"].tobytes()
    return {pointer: _c_string(name) for pointer, name in text.items()}


def _refined(
    places: "Records", region: "npt.NDArray[Any]", kinds: pl.Series, known: Attribution
) -> tuple["npt.NDArray[Any]", pl.Series]:
    """Say which places are per-CPU, and what the pages are that the kernel uses through another mapping.

    The first per-CPU chunk lies in the direct map; what its units leave over went to the page allocator, so only what
    is still reserved is per-CPU data.
    """
    address, page = places["addr"], places["x"]
    kind = kinds.to_numpy().astype(object)
    at = np.where(page == NO_PAGE, len(kind), page)
    kind_here = np.append(kind, "")[at]
    start, end = known.layout.percpu
    first_chunk = (address >= start) & (address < end) & (kind_here == PageKind.RESERVED.value)
    vmalloc = region == Region.VMALLOC.value
    percpu = first_chunk | (vmalloc & _made_by(address, known.areas, frozenset({_PERCPU_MAKER})))
    stack = vmalloc & _made_by(address, known.areas, _STACK_MAKERS)
    generic = np.isin(kind_here, (PageKind.KERNEL.value, PageKind.RESERVED.value))
    mapped = vmalloc | (region == Region.MODULES.value)
    for mask, better in ((mapped, PageKind.VMALLOC), (stack, PageKind.STACK), (percpu, PageKind.PERCPU)):
        kind[page[mask & generic]] = better.value
    return np.where(percpu, Region.PERCPU.value, region), _words(kind)


def _made_by(address: "npt.NDArray[np.uint64]", areas: tuple[Area, ...], makers: frozenset[str]) -> "Mask":
    """Tell which addresses lie in an area that one of the functions made."""
    chosen = sorted((area.start, area.end) for area in areas if area.maker in makers)
    if not chosen:
        return np.zeros(len(address), np.bool_)
    starts, ends = np.array(chosen, dtype=np.uint64).T
    row = np.searchsorted(starts, address, side="right") - 1
    inside: Mask = (row >= 0) & (address < ends[np.maximum(row, 0)])
    return inside


def _allocations(rows: "Records") -> pl.DataFrame:
    unknown = rows["addr"] == _NO_GFP
    return pl.DataFrame(
        {
            "frame": rows["x"].astype(np.uint64),
            "order": (rows["aux"] & 0xFF).astype(np.uint8),
            "gfp": _with_nulls(pl.Series(rows["addr"].astype(np.uint32)), unknown),
            "migratetype": _with_nulls(pl.Series((rows["aux"] >> 8).astype(np.uint8)), unknown),
            "stack": rows["stack"],
        }
    )


def _stacks(rows: "Records", symbols: "Symbols") -> tuple[pl.DataFrame, pl.DataFrame]:
    """Make the tables of stacks and of those symbols that are in one."""
    used, index = np.unique(symbols.find(rows["addr"]), return_inverse=True)
    known = used >= 0  # -1 is no function
    number = np.where(known, np.cumsum(known), 0).astype(np.uint32)
    text = [int(row) for row in used[known]]
    names = pl.DataFrame(
        {
            "name": ["?", *(symbols.text.name[row] for row in text)],
            "module": pl.Series([None, *(symbols.text.module[row] for row in text)], dtype=pl.String),
            "address": pl.Series([0, *(int(symbols.text.address[row]) for row in text)], dtype=pl.UInt64),
        }
    )
    zero = np.zeros(1, np.uint32)
    stacks = pl.DataFrame(
        {
            "parent": np.concatenate([zero, rows["stack"]]),
            "address": np.concatenate([zero.astype(np.uint64), rows["addr"]]),
            "symbol": np.concatenate([zero, number[index.reshape(-1)]]),
        }
    )
    return stacks, names


def _tasks(rows: "Records", mms: "Records") -> pl.DataFrame:
    comm = [_c_string(row["clock"].tobytes() + row["addr"].tobytes()) for row in rows]
    return pl.DataFrame(
        {"pid": rows["x"], "tgid": rows["stack"], "comm": pl.Series(comm, dtype=pl.String), "mm": mms["x"]}
    )


def _c_string(text: bytes) -> str:
    return text.split(b"\0")[0].decode("utf-8", "replace")


def _words(values: "npt.NDArray[Any]") -> pl.Series:
    return pl.Series(values.tolist(), dtype=pl.String)


def _with_nulls(values: pl.Series, null: "Mask") -> pl.Series:
    return values.to_frame("v").select(pl.when(pl.Series(~null)).then("v")).to_series()
