"""The trace format: what a kernel did, as a folder ``NAME.asitrace`` of Parquet tables and a ``meta.json``.

``events`` holds, in the total order of the recording, every kernel entry and return, first touch of a page in a round
trip, switch, page allocation and free. The side tables say what the ids in it mean; there the row number is the id.

=============  ======================================================================================================
events         cpu | clock (that CPU's retired instructions since the recording began) | kind | arg | stack
places         vaddr | region | page: a page-sized piece of the kernel's virtual addresses and what was mapped there
pages          frame | kind | cache | allocation: one row per incarnation of a page frame
allocations    frame | order | gfp | migratetype | stack
stacks         parent | address | symbol: row 0 is the empty stack
symbols        name | module | address: row 0 is the unknown symbol
tasks          pid | tgid | comm | mm
phases         name | begin | end | task | ended: the events from begin on and before end
=============  ======================================================================================================
"""

from __future__ import annotations

from asikit.trace._errors import TraceError, TraceExistsError
from asikit.trace._kinds import (
    ENTRY_KINDS,
    FORMAT,
    NO_PAGE,
    NO_STACK,
    RETURN_KINDS,
    SVM_EXITS,
    TOUCH_KINDS,
    UNKNOWN_EXIT_CODE,
    VERSION,
    EventKind,
    PageKind,
    Region,
    TlbFlush,
)
from asikit.trace._reader import Trace
from asikit.trace._schema import CPUS, EVENT_SCHEMA, NULLABLE, PAGE_BYTES, ROW_ZERO, SIDE_TABLES, TABLES
from asikit.trace._scratch import ScratchFolder
from asikit.trace._stacks import StackFrame, Stacks
from asikit.trace._summary import CpuSummary, PhaseSummary, TouchCount, TraceSummary, summarize
from asikit.trace._time import Clocks, instructions_before, rows_at, total_instructions
from asikit.trace._writer import ROWS_PER_PART, TraceWriter

__all__ = [
    "CPUS",
    "ENTRY_KINDS",
    "EVENT_SCHEMA",
    "FORMAT",
    "NO_PAGE",
    "NO_STACK",
    "NULLABLE",
    "PAGE_BYTES",
    "RETURN_KINDS",
    "ROWS_PER_PART",
    "ROW_ZERO",
    "SIDE_TABLES",
    "SVM_EXITS",
    "TABLES",
    "TOUCH_KINDS",
    "UNKNOWN_EXIT_CODE",
    "VERSION",
    "Clocks",
    "CpuSummary",
    "EventKind",
    "PageKind",
    "PhaseSummary",
    "Region",
    "ScratchFolder",
    "StackFrame",
    "Stacks",
    "TlbFlush",
    "TouchCount",
    "Trace",
    "TraceError",
    "TraceExistsError",
    "TraceSummary",
    "TraceWriter",
    "instructions_before",
    "rows_at",
    "summarize",
    "total_instructions",
]
