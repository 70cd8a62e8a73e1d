"""The side tables of a trace, from the rows that the recorder has sent."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import polars as pl

from asikit.record._stream import RecordType
from asikit.record.errors import RecordError
from asikit.trace import NO_PAGE, PageKind, Region

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    from asikit.record._layout import KernelLayout
    from asikit.record._symbols import Symbols
    from asikit.trace import TraceWriter

    Records = npt.NDArray[np.void]
    Mask = npt.NDArray[np.bool_]

__all__ = ["Attribution", "write_tables"]

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
    PageKind.HUGETLB,
)
"""``enum page_kind`` of plugin/recorder.h."""

_NO_ALLOCATION: Final = 0xFFFF_FFFF
_NO_GFP: Final = 0xFFFF_FFFF_FFFF_FFFF

_TMPFS: Final = ("shmem", "devtmpfs")
"""File systems whose page cache is that of tmpfs (mm/shmem.c)."""

_PERCPU_MAKERS: Final = frozenset({"pcpu_get_vm_areas"})
_STACK_MAKERS: Final = frozenset(
    {"kernel_clone", "copy_process", "dup_task_struct", "alloc_thread_stack_node", "irq_init_percpu_irqstack"}
)
"""Who allocates kernel stacks, by what the compiler has inlined (kernel/fork.c, irq_64.c)."""

_BPF_MAKERS: Final = re.compile(r"bpf_\w+")
"""Who allocates the text of BPF programs (kernel/bpf/core.c)."""
_TEXT_MAKERS: Final = re.compile(r"\w*execmem_\w+|module_alloc")
"""Who allocates it for BPF and for modules alike (mm/execmem.c, since 12af2b83d0b1, 6.10)."""
_BPF_MODULE: Final = "bpf"
"""What kallsyms calls the module of BPF programs' symbols."""


@dataclass(frozen=True, slots=True)
class Attribution:
    """What tells regions and kinds of pages apart.

    :ivar layout: Of the kernel.
    :ivar symbols: As they were at the end, with the modules and BPF programs that the workload loaded.
    """

    layout: KernelLayout
    symbols: Symbols


def write_tables(writer: TraceWriter, rows: Callable[[RecordType], Records], known: Attribution) -> None:
    """Append the side tables to a trace.

    :param rows: Gives the recorder's rows of a type, in the order in which they were sent.
    :raises RecordError: Rows are missing.
    """
    places, pages = _last_of_each(rows(RecordType.PLACE)), _last_of_each(rows(RecordType.PAGE))
    region = _regions(places["addr"], known.layout.regions)
    table = _pages(pages, _cache_names(rows(RecordType.NAME)), known)
    makers = _Makers(rows(RecordType.AREA), places, known.symbols)
    region, kinds = _refined(places, region, table["kind"], makers, known)
    writer.append("places", pl.DataFrame({"vaddr": places["addr"], "region": _words(region), "page": places["x"]}))
    writer.append("pages", table.with_columns(kind=kinds))
    writer.append("allocations", _allocations(_last_of_each(rows(RecordType.ALLOCATION))))
    stacks = rows(RecordType.STACK)
    if not np.array_equal(stacks["arg"], np.arange(1, len(stacks) + 1)):
        raise RecordError("the recorder's stream has stacks out of order: a fault of the recorder")
    for name, frame in zip(("stacks", "symbols"), _stacks(stacks, known.symbols), strict=True):
        writer.append(name, frame)
    writer.append("tasks", _tasks(_last_of_each(rows(RecordType.TASK)), _last_of_each(rows(RecordType.TASK_MM))))


def _last_of_each(rows: Records) -> Records:
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


def _regions(address: npt.NDArray[np.uint64], regions: tuple[tuple[int, Region], ...]) -> npt.NDArray[Any]:
    starts = np.array([start for start, _ in regions], dtype=np.uint64)
    names = np.array([region.value for _, region in regions], dtype=object)
    return names[np.searchsorted(starts, address, side="right") - 1]


def _pages(rows: Records, cache_names: dict[int, str], known: Attribution) -> pl.DataFrame:
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


def _cache_names(rows: Records) -> dict[int, str]:
    """Put the names of slab caches together: 16 bytes come in each row."""
    text: dict[int, bytes] = {}
    for row in rows:  # a few dozen
        pointer = int(row["arg"]) | int(row["x"]) << 32
        text[pointer] = text.get(pointer, b"") + row["clock"].tobytes() + row["addr"].tobytes()
    return {pointer: _c_string(name) for pointer, name in text.items()}


class _Makers:
    """Who made the area of the vmalloc or the modules region that each place lies in."""

    def __init__(self, rows: Records, places: Records, symbols: Symbols) -> None:
        """Name the makers of the areas.

        :param rows: Areas, in the order of their ids, which begin at 1; a place has the id of its area, or 0.
        """
        makers = rows["x"].astype(np.uint64) | rows["stack"].astype(np.uint64) << np.uint64(32)
        names = [symbols.text.name[row].partition(".")[0] if row >= 0 else "" for row in symbols.find(makers)]
        ends = zip(rows["addr"].tolist(), rows["clock"].tolist(), strict=True)
        text = [symbols.module_of(start, end) for start, end in ends]
        self._area = places["stack"]
        self._names = np.array(["", *names], dtype=object)
        self._bpf = np.array(
            [False]
            + [
                module == _BPF_MODULE
                or bool(_BPF_MAKERS.fullmatch(name))
                or (module is None and bool(_TEXT_MAKERS.fullmatch(name)))
                for name, module in zip(names, text, strict=True)
            ]
        )

    def among(self, names: frozenset[str]) -> Mask:
        """Tell which places lie in an area that one of the functions made."""
        chosen: Mask = np.isin(self._names, list(names))[self._area]
        return chosen

    def of_bpf(self) -> Mask:
        """Tell which places lie in an area that holds BPF programs.

        BPF programs have symbols only if they are not classic ones and for as long as they are loaded. So an area of
        those that modules are loaded into, too, is BPF's if it has no symbols.
        """
        chosen: Mask = self._bpf[self._area]
        return chosen


def _refined(
    places: Records, region: npt.NDArray[Any], kinds: pl.Series, makers: _Makers, known: Attribution
) -> tuple[npt.NDArray[Any], pl.Series]:
    """Say which places are per-CPU or BPF's, and what the pages are that the kernel uses through another mapping.

    The first per-CPU chunk lies in the direct map; what its units leave over went back to memblock, so only what is
    still reserved is per-CPU data.
    """
    address, page = places["addr"], places["x"]
    kind = kinds.to_numpy().astype(object)
    at = np.where(page == NO_PAGE, len(kind), page)
    kind_here = np.append(kind, "")[at]
    first_chunk = _inside(address, known.layout.percpu) & (kind_here == PageKind.RESERVED.value)
    vmalloc, modules = region == Region.VMALLOC.value, region == Region.MODULES.value
    percpu = first_chunk | (vmalloc & makers.among(_PERCPU_MAKERS))
    stack = vmalloc & makers.among(_STACK_MAKERS)
    generic = np.isin(kind_here, (PageKind.KERNEL.value, PageKind.RESERVED.value))
    for mask, better in ((vmalloc | modules, PageKind.VMALLOC), (stack, PageKind.STACK), (percpu, PageKind.PERCPU)):
        kind[page[mask & generic]] = better.value
    region = np.where(modules & makers.of_bpf(), Region.BPF.value, region)
    return np.where(percpu, Region.PERCPU.value, region), _words(kind)


def _inside(address: npt.NDArray[np.uint64], ranges: tuple[tuple[int, int], ...]) -> Mask:
    inside: Mask = np.zeros(len(address), np.bool_)
    for start, end in ranges:  # one for each CPU
        inside |= (address >= start) & (address < end)
    return inside


def _allocations(rows: Records) -> pl.DataFrame:
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


def _stacks(rows: Records, symbols: Symbols) -> tuple[pl.DataFrame, pl.DataFrame]:
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


def _tasks(rows: Records, mms: Records) -> pl.DataFrame:
    comm = [_c_string(row["clock"].tobytes() + row["addr"].tobytes()) for row in rows]
    return pl.DataFrame(
        {"pid": rows["x"], "tgid": rows["stack"], "comm": pl.Series(comm, dtype=pl.String), "mm": mms["x"]}
    )


def _c_string(text: bytes) -> str:
    return text.split(b"\0")[0].decode("utf-8", "replace")


def _words(values: npt.NDArray[Any]) -> pl.Series:
    return pl.Series(values.tolist(), dtype=pl.String)


def _with_nulls(values: pl.Series, null: Mask) -> pl.Series:
    return values.to_frame("v").select(pl.when(pl.Series(~null)).then("v")).to_series()
