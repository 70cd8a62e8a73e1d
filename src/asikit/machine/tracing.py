"""The model machine's own recorder: what its kernel did, in the format of a recorded Linux.

ASI is transparent to the kernel, so nothing of ASI's own is in it: no micro-operations, no page faults that only ASI
makes, no stun interrupts. A replay of the trace under the machine's configuration gives the machine's exits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import polars as pl

from asikit import __version__
from asikit.machine.kernel import Observer
from asikit.machine.kernel.core.interrupts import VECTOR_NAMES
from asikit.machine.kernel.core.observer import NOT_MAPPED
from asikit.machine.mm import Gfp, Symbol
from asikit.machine.uapi.numbers import Nr
from asikit.trace import (
    NO_PAGE,
    NO_STACK,
    PAGE_BYTES,
    ROW_ZERO,
    SIDE_TABLES,
    SVM_EXITS,
    UNKNOWN_EXIT_CODE,
    EventKind,
    PageKind,
    Region,
    TlbFlush,
    TraceWriter,
)

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from types import TracebackType

    from asikit.machine.kernel import Machine, Task
    from asikit.machine.x86 import Access

__all__ = ["MachineTrace"]

_ROWS_AT_ONCE: Final = 1 << 16

_ENTRIES: Final = {
    "syscall": EventKind.ENTRY_SYSCALL,
    "exception": EventKind.ENTRY_EXCEPTION,
    "interrupt": EventKind.ENTRY_INTERRUPT,
    "nmi": EventKind.ENTRY_NMI,
}
_NESTED: Final = {
    "exception": EventKind.NESTED_EXCEPTION,
    "interrupt": EventKind.NESTED_INTERRUPT,
    "nmi": EventKind.NESTED_NMI,
}
_FLUSHES: Final = {  # kernel addresses, page by page
    (False, False): TlbFlush.USER,
    (True, False): TlbFlush.KERNEL,
    (False, True): TlbFlush.USER_RANGE,
    (True, True): TlbFlush.KERNEL_RANGE,
}
_ARG: Final = 0xFFFF_FFFF


class _Rows:
    """A side table that grows: a key's row is made when the key is first met."""

    def __init__(self, table: str) -> None:
        self.table = table
        self.rows: list[tuple[Any, ...]] = [tuple(ROW_ZERO[table].values())] if table in ROW_ZERO else []
        self._known: dict[object, int] = {}

    def find(self, key: object) -> int | None:
        return self._known.get(key)

    def add(self, key: object, *row: object) -> int:
        self._known[key] = len(self.rows)
        self.rows.append(row)
        return len(self.rows) - 1

    def forget(self, key: object) -> None:
        self._known.pop(key, None)

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame(self.rows, schema=SIDE_TABLES[self.table], orient="row")


class MachineTrace(Observer):
    """Writes a trace of a machine; a context manager around `Machine.run`.

    >>> machine = Machine(seed=1)  # doctest: +SKIP
    >>> with MachineTrace(machine, "run.asitrace"):  # doctest: +SKIP
    ...     machine.run()

    The trace is there when the block has ended without an exception, and not before. Memory: the side tables and
    65,536 events.

    :raises TraceError: As :class:`TraceWriter`.
    """

    def __init__(
        self,
        machine: Machine,
        path: str | os.PathLike[str],
        *,
        command: Sequence[str] = (),
        overwrite: bool = False,
    ) -> None:
        """Prepare; nothing is created before the block begins.

        :param command: What ran, for ``meta.json``.
        :param overwrite: Replace a trace that is at ``path``.
        """
        self._machine = machine
        self._kernel = machine.kernel
        self._writer = TraceWriter(path, _meta(machine, command), overwrite=overwrite)
        self._events: list[tuple[int, int, int, int, int]] = []
        self._places, self._pages = _Rows("places"), _Rows("pages")
        self._allocations, self._tasks = _Rows("allocations"), _Rows("tasks")
        self._stacks, self._symbols = _Rows("stacks"), _Rows("symbols")
        self._places_of: dict[int, set[tuple[int, int]]] = {}

    def __enter__(self) -> Self:
        """Begin to watch."""
        self._writer.__enter__()
        self._machine.observe(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Complete the trace, or leave nothing after an exception."""
        self._machine.observers.remove(self)
        if kind is None:
            self._flush()
            for rows in (self._places, self._pages, self._allocations, self._stacks, self._symbols, self._tasks):
                self._writer.append(rows.table, rows.frame())
        self._writer.__exit__(kind, error, traceback)

    # Entries and returns.

    def entry(self, cpu: int, kind: str, number: int) -> None:
        """User mode was left."""
        self._event(cpu, _ENTRIES[kind], number)

    def nested_entry(self, cpu: int, kind: str, number: int) -> None:
        """Kernel mode was interrupted."""
        self._event(cpu, _NESTED[kind], number)

    def nested_return(self, cpu: int) -> None:
        """The innermost nested entry returns."""
        self._event(cpu, EventKind.NESTED_RETURN)

    def return_user(self, cpu: int, *, by_iret: bool) -> None:
        """The CPU goes back to user mode."""
        self._event(cpu, EventKind.RETURN_USER, int(by_iret))

    def vm_entry(self, cpu: int) -> None:
        """The CPU goes into a guest."""
        self._event(cpu, EventKind.VM_ENTRY)

    def vm_exit(self, cpu: int, code: int) -> None:
        """A guest was left."""
        self._event(cpu, EventKind.VM_EXIT, code if 0 <= code < UNKNOWN_EXIT_CODE else UNKNOWN_EXIT_CODE)

    # What the kernel does.

    def touch(self, cpu: int, access: Access, vaddr: int, paddr: int) -> None:
        """Kernel code touches a page, for the first time since the last crossing."""
        pfn = None if paddr == NOT_MAPPED else paddr // PAGE_BYTES
        if pfn is not None and self._kernel.layout.region_of(vaddr) is Region.FIXMAP:
            # Through an ephemeral mapping; a kernel without ASI would have used the direct map.
            vaddr = self._kernel.layout.virt(paddr)
        place = self._place(vaddr & -PAGE_BYTES, pfn)
        self._event(cpu, EventKind(EventKind.TOUCH_READ + access), place, self._stack())

    def task_switch(self, cpu: int, task: Task) -> None:
        """The CPU leaves a task, whose stack it is, for another one."""
        row = self._tasks.find(task)
        if row is None:
            mm = 0 if task.mm is None else task.mm.id
            row = self._tasks.add(task, task.pid, task.tgid, task.comm, mm)
        self._event(cpu, EventKind.TASK_SWITCH, row, self._stack())

    def mm_switch(self, cpu: int, mm: int) -> None:
        """Other page tables are loaded."""
        self._event(cpu, EventKind.MM_SWITCH, mm, self._stack())

    def page_alloc(self, cpu: int, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
        """Frames were allocated: what is known of them begins anew."""
        stack = self._stack()
        row = self._allocations.add(pfn, pfn, order, int(gfp), migratetype, stack)
        self._forget(pfn, order)
        self._event(cpu, EventKind.PAGE_ALLOC, row, stack)

    def page_free(self, cpu: int, pfn: int, order: int) -> None:
        """Frames were freed."""
        row = self._allocations.find(pfn)
        if row is not None:  # else it was allocated before the recording
            self._event(cpu, EventKind.PAGE_FREE, row, self._stack())
            self._allocations.forget(pfn)
        self._forget(pfn, order)

    def tlb_flush(self, cpu: int, *, kernel: bool, pages: int | None) -> None:
        """This CPU flushes its TLB."""
        self._event(cpu, EventKind.TLB_FLUSH, _FLUSHES[kernel, pages is not None], self._stack())

    # Rows.

    def _event(self, cpu: int, kind: EventKind, arg: int = 0, stack: int = NO_STACK) -> None:
        self._events.append((cpu, self._kernel.cpus[cpu].clock, kind, arg & _ARG, stack))
        if len(self._events) == _ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        columns = np.array(self._events, np.uint64).reshape(-1, 5)
        self._events.clear()
        self._writer.append_events(
            cpu=columns[:, 0].astype(np.uint8),
            clock=columns[:, 1].copy(),
            kind=columns[:, 2].astype(np.uint8),
            arg=columns[:, 3].astype(np.uint32),
            stack=columns[:, 4].astype(np.uint32),
        )

    def _place(self, vaddr: int, pfn: int | None) -> int:
        row = self._places.find((vaddr, pfn))
        if row is None:
            region = self._kernel.layout.region_of(vaddr)
            row = self._places.add((vaddr, pfn), vaddr, region, NO_PAGE if pfn is None else self._page(pfn))
            if pfn is not None:
                self._places_of.setdefault(pfn, set()).add((vaddr, pfn))
        return row

    def _page(self, pfn: int) -> int:
        row = self._pages.find(pfn)
        if row is None:
            if pfn * PAGE_BYTES >= self._kernel.physical.size:
                return NO_PAGE
            page = self._kernel.allocator.page(pfn)
            allocation = self._allocations.find(page.pfn)
            if allocation is None and page.kind not in {PageKind.FREE, PageKind.RESERVED}:
                # From before the recording: what its allocation was is still known, but not by whom.
                allocation = self._allocations.add(page.pfn, page.pfn, page.order, int(page.gfp), None, NO_STACK)
            row = self._pages.add(pfn, pfn, page.kind, page.cache, allocation)
        return row

    def _forget(self, pfn: int, order: int) -> None:
        for frame in range(pfn, pfn + (1 << order)):
            self._pages.forget(frame)
            for key in self._places_of.pop(frame, ()):
                self._places.forget(key)

    def _stack(self) -> int:
        """Return the row of the kernel stack of what runs now."""
        row = NO_STACK
        for symbol in self._kernel.cpu.task.calls:
            key = row, symbol
            found = self._stacks.find(key)
            if found is None:
                found = self._stacks.add(key, row, self._kernel.text.address(symbol), self._symbol(symbol))
            row = found
        return row

    def _symbol(self, symbol: Symbol) -> int:
        row = self._symbols.find(symbol)
        if row is None:
            row = self._symbols.add(symbol, symbol.name, symbol.module, self._kernel.text.address(symbol))
        return row


def _meta(machine: Machine, command: Sequence[str]) -> dict[str, Any]:
    config = machine.config
    mechanism = "on" if machine.kernel.protocol.config.asi else "off"
    return {
        "source": "machine",
        "kernel": {"release": f"asikit-{__version__}", "command_line": f"asi={mechanism}"},
        "machine": {
            "cpus": config.cpus,
            "memory_bytes": config.memory,
            "threads_per_core": 2 if config.smt else 1,
            "cpu_model": config.cpu,
        },
        "workload": {"command": list(command)},
        "clock": {"unit": "points: accesses, instructions and system calls"},
        "lost": {},
        "gfp_flags": {f"__GFP_{flag.name}": int(flag) for flag in Gfp},
        "syscalls": {str(int(number)): number.label for number in Nr},
        "vectors": {str(vector): name for vector, name in VECTOR_NAMES.items()},
        "vm_exits": {str(code): name for code, name in SVM_EXITS.items()},
    }
