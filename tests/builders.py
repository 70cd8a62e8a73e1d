"""Small valid traces from readable events, for tests of every room that reads traces."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from asikit.trace import NO_PAGE, PAGE_BYTES, ROWS_PER_PART, SIDE_TABLES, EventKind, TlbFlush, Trace, TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

# Where the made-up addresses begin; as the kernel has them, so that a message shows a plausible address.
_TEXT = 0xFFFF_FFFF_8100_0000
_FUNCTION_BYTES = 0x1000
_INTO_FUNCTION = 0x10
_VADDR = 0xFFFF_8880_0000_0000
_FIRST_FRAME = 0x1000

_COLUMNS = ("cpu", "clock", "kind", "arg", "stack")
_DTYPES = (np.uint8, np.uint64, np.uint8, np.uint32, np.uint32)

META: dict[str, Any] = {
    "source": "machine",
    "kernel": {"release": "6.1.0-test", "version": "#1 SMP", "command_line": "console=ttyS0 nokaslr"},
    "machine": {"cpus": 2, "memory_bytes": 512 << 20, "threads_per_core": 1, "cpu_model": "max", "emulator": "none"},
    "workload": {"command": ["cat", "a file"], "exit_status": 0},
    "clock": {"unit": "instructions", "user_instructions": [0, 0], "note": ""},
    "lost": {"events": 0, "stacks": 0},
    "gfp_flags": {"__GFP_HARDWALL": 0x100000},
    "syscalls": {"0": "read", "16": "ioctl", "17": "pread64"},
}
"""The recorder's part of a built trace's ``meta.json``."""


@dataclass
class TraceBuilder:
    """Builds a trace event by event; each method appends one event and gives itself.

    >>> b = TraceBuilder()
    >>> b.entry_syscall(0)
    >>> b.touch_read(region="direct_map", kind="page_cache", cache="shmem", stack=("_copy_to_iter", "filemap_read"))
    >>> b.return_user()
    >>> trace = b.write(tmp_path / "t.asitrace")

    Stacks are function names, leaf first, as in ``Stacks.names``; ``module:function`` names a module's function. Ids
    (of places, pages, stacks ...) are given in the order of first use. A CPU's clock advances by ``step`` an event.
    """

    step: int = 10
    meta: dict[str, Any] = field(default_factory=lambda: dict(META))
    _events: list[tuple[int, int, int, int, int]] = field(default_factory=list)
    _clock: dict[int, int] = field(default_factory=dict)
    _rows: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {name: [] for name in SIDE_TABLES})
    _ids: dict[tuple[Any, ...], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Put in the reserved rows."""
        self._row("symbols", "?", name="?", module=None, address=0)
        self._row("stacks", (), parent=0, address=0, symbol=0)

    def event(self, kind: EventKind, arg: int = 0, *, stack: tuple[str, ...] = (), cpu: int = 0) -> TraceBuilder:
        """Append any event; ``arg`` as the format has it."""
        self._clock[cpu] = self._clock.get(cpu, 0) + self.step
        self._events.append((cpu, self._clock[cpu], int(kind), arg, self.stack(stack)))
        return self

    def entry_syscall(self, number: int = 0, *, cpu: int = 0) -> TraceBuilder:
        """Append a system call from user mode."""
        return self.event(EventKind.ENTRY_SYSCALL, number, cpu=cpu)

    def entry_exception(self, vector: int = 14, *, cpu: int = 0) -> TraceBuilder:
        """Append an exception from user mode, a page fault unless said otherwise."""
        return self.event(EventKind.ENTRY_EXCEPTION, vector, cpu=cpu)

    def entry_interrupt(self, vector: int = 236, *, cpu: int = 0) -> TraceBuilder:
        """Append an interrupt from user mode, the timer's unless said otherwise."""
        return self.event(EventKind.ENTRY_INTERRUPT, vector, cpu=cpu)

    def entry_nmi(self, *, cpu: int = 0) -> TraceBuilder:
        """Append an NMI from user mode."""
        return self.event(EventKind.ENTRY_NMI, 2, cpu=cpu)

    def vm_exit(self, code: int = 0x78, *, cpu: int = 0) -> TraceBuilder:
        """Append a VM exit, by HLT (SVM's code) unless said otherwise."""
        return self.event(EventKind.VM_EXIT, code, cpu=cpu)

    def vm_entry(self, *, cpu: int = 0) -> TraceBuilder:
        """Append a VM entry."""
        return self.event(EventKind.VM_ENTRY, cpu=cpu)

    def nested_exception(self, vector: int = 14, *, cpu: int = 0) -> TraceBuilder:
        """Append an exception in the kernel, a page fault unless said otherwise."""
        return self.event(EventKind.NESTED_EXCEPTION, vector, cpu=cpu)

    def nested_interrupt(self, vector: int = 236, *, cpu: int = 0) -> TraceBuilder:
        """Append an interrupt in the kernel, the timer's unless said otherwise."""
        return self.event(EventKind.NESTED_INTERRUPT, vector, cpu=cpu)

    def nested_nmi(self, *, cpu: int = 0) -> TraceBuilder:
        """Append an NMI in the kernel."""
        return self.event(EventKind.NESTED_NMI, 2, cpu=cpu)

    def nested_return(self, *, cpu: int = 0) -> TraceBuilder:
        """Append the return from the innermost nested entry."""
        return self.event(EventKind.NESTED_RETURN, cpu=cpu)

    def return_user(self, *, iret: bool = False, cpu: int = 0) -> TraceBuilder:
        """Append a return to user mode."""
        return self.event(EventKind.RETURN_USER, int(iret), cpu=cpu)

    def touch_read(self, *, stack: tuple[str, ...] = (), cpu: int = 0, **place: Any) -> TraceBuilder:  # noqa: ANN401
        """Append a first read; ``place`` as in :meth:`place`."""
        return self.event(EventKind.TOUCH_READ, self.place(**place), stack=stack, cpu=cpu)

    def touch_write(self, *, stack: tuple[str, ...] = (), cpu: int = 0, **place: Any) -> TraceBuilder:  # noqa: ANN401
        """Append a first write; ``place`` as in :meth:`place`."""
        return self.event(EventKind.TOUCH_WRITE, self.place(**place), stack=stack, cpu=cpu)

    def touch_fetch(self, *, stack: tuple[str, ...] = (), cpu: int = 0, **place: Any) -> TraceBuilder:  # noqa: ANN401
        """Append a first instruction fetch; ``place`` as in :meth:`place`."""
        return self.event(EventKind.TOUCH_FETCH, self.place(**place), stack=stack, cpu=cpu)

    def task_switch(
        self, comm: str, *, pid: int = 1, mm: int = 1, stack: tuple[str, ...] = (), cpu: int = 0
    ) -> TraceBuilder:
        """Append a switch to a task; the same three words are the same task."""
        task = self._row("tasks", (comm, pid, mm), pid=pid, tgid=pid, comm=comm, mm=mm)
        return self.event(EventKind.TASK_SWITCH, task, stack=stack, cpu=cpu)

    def mm_switch(self, mm: int, *, stack: tuple[str, ...] = (), cpu: int = 0) -> TraceBuilder:
        """Append a change of the loaded page tables."""
        return self.event(EventKind.MM_SWITCH, mm, stack=stack, cpu=cpu)

    def page_alloc(self, *, stack: tuple[str, ...] = (), cpu: int = 0, **allocation: Any) -> TraceBuilder:  # noqa: ANN401
        """Append a page allocation; ``allocation`` as in :meth:`allocation`."""
        row = self.allocation(stack=stack, **allocation)
        return self.event(EventKind.PAGE_ALLOC, row, stack=stack, cpu=cpu)

    def page_free(self, allocation: int, *, stack: tuple[str, ...] = (), cpu: int = 0) -> TraceBuilder:
        """Append the free of an allocation, given by its row."""
        return self.event(EventKind.PAGE_FREE, allocation, stack=stack, cpu=cpu)

    def tlb_flush(self, flush: TlbFlush = TlbFlush.USER, *, cpu: int = 0) -> TraceBuilder:
        """Append a TLB flush, a full one of user addresses unless said otherwise."""
        return self.event(EventKind.TLB_FLUSH, flush, cpu=cpu)

    def begin(self, name: str, *, task: int | None = None) -> TraceBuilder:
        """Begin a phase; it lasts to the end unless :meth:`end` ends it."""
        self._rows["phases"].append(
            {"name": name, "begin": len(self._events), "end": None, "task": task, "ended": False}
        )
        return self

    def end(self, name: str) -> TraceBuilder:
        """End the phase of this name that began last."""
        row = [row for row in self._rows["phases"] if row["name"] == name and not row["ended"]][-1]
        row |= {"end": len(self._events), "ended": True}
        return self

    def place(
        self,
        *,
        region: str = "direct_map",
        kind: str | None = "kernel",
        cache: str | None = None,
        gfp: int | None = None,
        allocated_by: tuple[str, ...] | None = None,
        label: str = "",
    ) -> int:
        """Give the id of a place; the same words are the same page, and another ``label`` another one.

        :param kind: The page's kind; None for a place that is not memory.
        :param gfp: Raw gfp bits of its allocation.
        :param allocated_by: The allocation's stack. With neither, the page was allocated before the recording.
        """
        key = (region, kind, cache, gfp, allocated_by, label)
        page = NO_PAGE
        if kind is not None:
            allocation = None
            if gfp is not None or allocated_by is not None:
                allocation = self.allocation(gfp=gfp, stack=allocated_by or (), label=repr(key))
            frame = _FIRST_FRAME + len(self._rows["pages"])
            page = self._row("pages", key, frame=frame, kind=kind, cache=cache, allocation=allocation)
        vaddr = _VADDR + PAGE_BYTES * len(self._rows["places"])
        return self._row("places", key, vaddr=vaddr, region=region, page=page)

    def allocation(
        self,
        *,
        gfp: int | None = None,
        order: int = 0,
        migratetype: int | None = None,
        stack: tuple[str, ...] = (),
        label: str = "",
    ) -> int:
        """Give the row of an allocation; the same words are the same one, and another ``label`` another one."""
        row = self.stack(stack)
        key = (gfp, order, migratetype, stack, label)
        frame = _FIRST_FRAME + len(self._rows["allocations"])
        return self._row("allocations", key, frame=frame, order=order, gfp=gfp, migratetype=migratetype, stack=row)

    def stack(self, names: tuple[str, ...]) -> int:
        """Give the id of a stack of functions, leaf first; 0 for (). An address is one of the unknown symbol."""
        if not names:
            return 0
        parent = self.stack(names[1:])
        if names[0].startswith("0x"):
            return self._row("stacks", names, parent=parent, address=int(names[0], 16), symbol=0)
        module, _, name = names[0].rpartition(":")
        known = len(self._rows["symbols"])
        symbol = self._row(
            "symbols", names[0], name=name, module=module or None, address=_TEXT + known * _FUNCTION_BYTES
        )
        address = self._rows["symbols"][symbol]["address"] + _INTO_FUNCTION
        return self._row("stacks", names, parent=parent, address=address, symbol=symbol)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """Give the events so far as the arrays that ``TraceWriter.append_events`` takes."""
        table = np.array(self._events, np.uint64).reshape(-1, len(_COLUMNS))
        return {name: table[:, i].astype(dtype) for i, (name, dtype) in enumerate(zip(_COLUMNS, _DTYPES, strict=True))}

    def table(self, name: str) -> pl.DataFrame:
        """Give a side table so far."""
        table = pl.DataFrame(self._rows[name], schema=SIDE_TABLES[name])
        return table.with_columns(pl.col("end").fill_null(len(self._events))) if name == "phases" else table

    def write(self, path: Path, *, rows_per_part: int = ROWS_PER_PART) -> Trace:
        """Write the trace and open it."""
        with TraceWriter(path, self.meta, rows_per_part=rows_per_part) as writer:
            writer.append_events(**self.columns())
            for name in SIDE_TABLES:
                writer.append(name, self.table(name))
        return Trace.open(path)

    def _row(self, table: str, key: object, /, **values: Any) -> int:  # noqa: ANN401  (a row's values)
        known = self._ids.setdefault((table, key), len(self._rows[table]))
        if known == len(self._rows[table]):
            self._rows[table].append(values)
        return known


def small_trace() -> TraceBuilder:
    """Give a trace with a bit of everything: two CPUs, each kind of event, every side table filled."""
    b = TraceBuilder()
    copy = ("_copy_to_iter", "copy_page_to_iter", "filemap_read", "ksys_read", "entry_SYSCALL_64")
    b.task_switch("cat", pid=7, mm=1).mm_switch(1)
    b.page_alloc(gfp=0x100CCA, order=0, migratetype=1, stack=("__alloc_pages", "shmem_alloc_folio"))
    b.begin("steady", task=0).entry_syscall(0)
    b.touch_read(
        kind="shmem", cache="shmem", gfp=0x100CCA, allocated_by=("__alloc_pages", "shmem_alloc_folio"), stack=copy
    )
    b.touch_write(region="user", kind="anon", stack=copy)
    b.nested_exception(14).touch_read(kind="page_table", stack=("handle_mm_fault",)).nested_return()
    b.touch_fetch(region="modules", kind="vmalloc", stack=("ext4:ext4_file_read_iter", "ksys_read"))
    b.touch_read(region="fixmap", kind=None)
    b.begin("inner").return_user().end("steady")
    b.entry_exception(14, cpu=1).nested_interrupt(cpu=1).nested_nmi(cpu=1).nested_return(cpu=1).nested_return(cpu=1)
    b.touch_write(kind="slab", cache="kmalloc-64", stack=("kmalloc_trace",), cpu=1).return_user(iret=True, cpu=1)
    b.entry_interrupt(cpu=1).tlb_flush(TlbFlush.KERNEL, cpu=1).page_free(0, stack=("__free_pages",), cpu=1)
    b.vm_entry(cpu=1).vm_exit(0x78, cpu=1).vm_entry(cpu=1)
    return b.entry_nmi().return_user(iret=True)
