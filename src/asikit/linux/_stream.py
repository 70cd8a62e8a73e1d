"""The plugin's stream of records, turned into a trace while it comes."""

from typing import TYPE_CHECKING, Final

import numpy as np
import polars as pl

from asikit.linux._symbols import Symbols
from asikit.linux.errors import RecordError
from asikit.trace import NO_PAGE, PageKind, Region

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import BinaryIO

    import numpy.typing as npt

    from asikit.linux._layout import Layout
    from asikit.trace import TraceWriter

    Records = npt.NDArray[np.void]

__all__ = ["RECORD", "StreamReader"]

RECORD: Final = np.dtype(
    [
        ("type", "u1"),
        ("cpu", "u1"),
        ("aux", "<u2"),
        ("arg", "<u4"),
        ("stack", "<u4"),
        ("x", "<u4"),
        ("clock", "<u8"),
        ("addr", "<u8"),
    ]
)
"""``struct record`` of plugin/recorder.h."""

_FIRST_ROW = 64
_STACK, _PLACE, _PAGE, _ALLOCATION, _TASK, _TASK_MM, _NAME, _CONFIGURE, _LOST, _COUNTS, _END = range(64, 75)
"""``enum record_type`` of plugin/recorder.h."""

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

_LOST_NAMES: Final = ("entries_of_unknown_kind", "allocations", "stacks", "places")
"""``enum lost`` of plugin/recorder.h."""

_NO_ID = 0xFFFF_FFFF
_NO_GFP = 0xFFFF_FFFF_FFFF_FFFF
_CHUNK_RECORDS = 1 << 17

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


class _Rows:
    """The rows of one side table as they come, column by column."""

    def __init__(self) -> None:
        self._parts: list[Records] = []

    def add(self, records: "Records") -> None:
        if len(records):
            self._parts.append(records.copy())

    def all(self) -> "Records":
        return np.concatenate(self._parts) if self._parts else np.empty(0, RECORD)


class StreamReader:
    """Reads the stream until its end, appends the events to the trace as they come, and then its side tables.

    :param source: The read end of the stream.
    :param writer: The trace.
    :param configure: Called when the guest is ready to be recorded and waits for its layout.
    """

    def __init__(self, source: "BinaryIO", writer: "TraceWriter", configure: "Callable[[], None]") -> None:
        self._source = source
        self._writer = writer
        self._configure = configure
        self._rows = {kind: _Rows() for kind in range(_STACK, _NAME + 1)}
        self._ended = False
        self.events = 0
        self.lost: dict[str, int] = {}
        self.instructions: dict[int, tuple[int, int]] = {}

    def run(self) -> bool:
        """Read to the end of the stream; tell whether the recording was brought to its end there."""
        rest = b""
        while True:
            data = self._source.read1(_CHUNK_RECORDS * RECORD.itemsize)  # type: ignore[attr-defined]
            if not data:
                return self._ended
            data = rest + data
            whole = len(data) - len(data) % RECORD.itemsize
            rest = data[whole:]
            self._take(np.frombuffer(data[:whole], RECORD))

    def _take(self, records: "Records") -> None:
        kinds = records["type"]
        events = records[kinds < _FIRST_ROW]
        if len(events):
            self.events += len(events)
            self._writer.append_events(
                cpu=events["cpu"],
                clock=events["clock"],
                kind=events["type"],
                arg=events["arg"],
                stack=events["stack"],
            )
        if len(events) == len(records):
            return
        for kind, rows in self._rows.items():
            rows.add(records[kinds == kind])
        for record in records[kinds > _NAME]:
            self._control(record)

    def _control(self, record: np.void) -> None:
        kind = int(record["type"])
        if kind == _CONFIGURE:
            self._configure()
        elif kind == _LOST:
            self.lost[_LOST_NAMES[int(record["arg"])]] = int(record["clock"])
        elif kind == _COUNTS:
            self.instructions[int(record["cpu"])] = (int(record["clock"]), int(record["addr"]))
        elif kind == _END:
            self._ended = True
        else:
            raise RecordError(f"the recorder's stream has a record of unknown type {kind}; rebuild the plugin: asi record --rebuild")

    def write_tables(self, layout: "Layout", symbols: Symbols, vmalloc: "Iterable[tuple[int, int, str]]") -> None:
        """Append the side tables to the trace.

        :param symbols: As they were at the end, with the modules and BPF programs that the workload loaded.
        :param vmalloc: Areas of the vmalloc region: first address, address past the end, the function that made them.
        """
        pages, kinds = self._pages(symbols)
        places = self._places(layout, list(vmalloc), kinds)
        self._writer.append("places", places)
        self._writer.append("pages", pages.with_columns(kind=kinds))
        self._writer.append("allocations", self._allocations())
        for name, table in zip(("stacks", "symbols"), self._stacks(symbols), strict=True):
            self._writer.append(name, table)
        self._writer.append("tasks", self._tasks())

    def _pages(self, symbols: Symbols) -> tuple[pl.DataFrame, pl.Series]:
        rows = self._rows[_PAGE].all()
        # A later row of a page replaces an earlier one: assignment in order leaves the last.
        last = np.zeros(int(rows["arg"].max()) + 1 if len(rows) else 0, dtype=np.int64)
        last[rows["arg"]] = np.arange(len(rows))
        rows = rows[last]
        names = {**symbols.file_systems, **self._cache_names()}
        cache = [names.get(int(address)) if address else None for address in rows["addr"]]
        kinds = [_KINDS[kind] for kind in rows["aux"]]
        kinds = [PageKind.SHMEM if kind == PageKind.PAGE_CACHE and name == "shmem" else kind for kind, name in zip(kinds, cache, strict=True)]
        frame = pl.DataFrame(
            {
                "frame": rows["x"].astype(np.uint64),
                "kind": kinds,
                "cache": pl.Series(cache, dtype=pl.String),
                "allocation": _with_nulls(rows["stack"], rows["stack"] == _NO_ID, pl.UInt32()),
            }
        )
        return frame, pl.Series("kind", kinds, dtype=pl.String)

    def _cache_names(self) -> dict[int, str]:
        rows = self._rows[_NAME].all()
        text: dict[int, bytes] = {}
        for row in rows:  # a few dozen
            pointer = int(row["arg"]) | int(row["x"]) << 32
            text[pointer] = text.get(pointer, b"") + row["clock"].tobytes() + row["addr"].tobytes()
        return {pointer: name.split(b"\0")[0].decode("ascii", "replace") for pointer, name in text.items()}

    def _places(self, layout: "Layout", vmalloc: list[tuple[int, int, str]], kinds: pl.Series) -> pl.DataFrame:
        rows = self._rows[_PLACE].all()
        address, page = rows["addr"], rows["x"]
        starts = np.array([start for start, _ in _REGIONS], dtype=np.uint64)
        names = np.array([name.value for _, name in _REGIONS], dtype=object)
        region = names[np.searchsorted(starts, address, side="right") - 1]
        region[(address >= layout.percpu[0]) & (address < layout.percpu[1])] = Region.PERCPU.value
        del vmalloc, kinds
        return pl.DataFrame({"vaddr": address, "region": pl.Series(region, dtype=pl.String), "page": page.astype(np.uint32)})

    def _allocations(self) -> pl.DataFrame:
        rows = self._rows[_ALLOCATION].all()
        unknown = rows["addr"] == _NO_GFP
        return pl.DataFrame(
            {
                "frame": rows["x"].astype(np.uint64),
                "order": (rows["aux"] & 0xFF).astype(np.uint8),
                "gfp": _with_nulls(rows["addr"].astype(np.uint32), unknown, pl.UInt32()),
                "migratetype": _with_nulls((rows["aux"] >> 8).astype(np.uint8), unknown, pl.UInt8()),
                "stack": rows["stack"],
            }
        )

    def _stacks(self, symbols: Symbols) -> tuple[pl.DataFrame, pl.DataFrame]:
        rows = self._rows[_STACK].all()
        found = symbols.find(rows["addr"])
        used, index = np.unique(found, return_inverse=True)
        known = used >= 0
        number = np.where(known, np.cumsum(known), 0).astype(np.uint32)
        text = [int(row) for row in used[known]]
        names = pl.DataFrame(
            {
                "name": ["?", *(symbols.text.name[row] for row in text)],
                "module": pl.Series([None, *(symbols.text.module[row] for row in text)], dtype=pl.String),
                "address": pl.Series([0, *(int(symbols.text.address[row]) for row in text)], dtype=pl.UInt64),
            }
        )
        stacks = pl.DataFrame(
            {
                "parent": np.concatenate([np.zeros(1, np.uint32), rows["stack"]]),
                "address": np.concatenate([np.zeros(1, np.uint64), rows["addr"]]),
                "symbol": np.concatenate([np.zeros(1, np.uint32), number[index.ravel()] if len(rows) else np.empty(0, np.uint32)]),
            }
        )
        return stacks, names

    def _tasks(self) -> pl.DataFrame:
        rows, mms = self._rows[_TASK].all(), self._rows[_TASK_MM].all()
        comm = [(row["clock"].tobytes() + row["addr"].tobytes()).split(b"\0")[0].decode("utf-8", "replace") for row in rows]
        return pl.DataFrame({"pid": rows["x"], "tgid": rows["stack"], "comm": pl.Series(comm, dtype=pl.String), "mm": mms["x"]})


def _with_nulls(values: "npt.NDArray[np.generic]", null: "npt.NDArray[np.bool_]", dtype: "pl.DataType") -> pl.Series:
    return pl.Series(values, dtype=dtype).to_frame("v").with_columns(n=pl.Series(null)).select(pl.when("n").then(None).otherwise("v")).to_series()
