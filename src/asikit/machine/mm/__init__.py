"""Memory management of the modelled kernel: `mm/` of Linux, with sensitivity as "mm: ASI direct map management" has it.

`allocator` hands out page frames from per-CPU lists (`pcplists`) over buddy zones (`buddy`), with lists for each
migratetype and sensitivity (`freetype`); `pageblock` has the bit that says which a block is. `directmap` and `cpa` keep
the two direct maps, `pgtable` edits page tables, which are in modelled memory and reached through `access`. `layout`,
`gfp`, `page`, `text`, `context` and `errors` have what all share.

On top of it: address spaces (`mmstruct`, `vma`, `fault`, `fork`), files and their pages (`inode`, `pagecache`,
`ephmap`), and the kernel's own memory (`slab`, `vmalloc`, `stacks`, `percpu`). `services` is what they are all given.
"""

from __future__ import annotations

from asikit.machine.mm._observing import AllocatorCounters, AllocatorObserver
from asikit.machine.mm._requests import AllocationRequest
from asikit.machine.mm.access import BootMemory, FrameStore, KernelMemory
from asikit.machine.mm.allocator import PageAllocator
from asikit.machine.mm.context import BootContext, BootFlusher, Context, SpinLock, TlbFlusher
from asikit.machine.mm.directmap import DirectMap
from asikit.machine.mm.ephmap import Ephmap, EphmapError
from asikit.machine.mm.errors import (
    AtomicFlipError,
    BadPageError,
    DoubleFreeError,
    FlipAllocatesError,
    FlipError,
    FlipRangeError,
    FreelistError,
    MightSleepError,
    MmError,
    NotDirectMappedError,
    OutOfMemoryError,
    PageTableError,
    SplitError,
    StillInUseError,
    UnexpectedlyNonsensitiveError,
    UnexpectedlySensitiveError,
    UnmappedPageError,
    WrongOrderError,
)
from asikit.machine.mm.fault import SegvError, SigbusError, UserFaultError
from asikit.machine.mm.fork import dup_mm
from asikit.machine.mm.gfp import (
    GFP_ATOMIC,
    GFP_HIGHUSER,
    GFP_HIGHUSER_MOVABLE,
    GFP_KERNEL,
    GFP_KERNEL_ACCOUNT,
    GFP_NOFS,
    GFP_NOIO,
    GFP_NOWAIT,
    GFP_PGTABLE_KERNEL,
    GFP_PGTABLE_USER,
    GFP_USER,
    Gfp,
)
from asikit.machine.mm.inode import TMPFS, FileSystem, Inode, filesystem
from asikit.machine.mm.layout import PAGE_SHIFT, PAGE_SIZE, AddressRange, Layout, page_parts
from asikit.machine.mm.memblock import Memblock
from asikit.machine.mm.mmstruct import (
    DEFAULT_MAP_WINDOW,
    MapFlags,
    MappingExistsError,
    MmapError,
    MmStruct,
    NotMappedError,
    Prot,
)
from asikit.machine.mm.page import Page
from asikit.machine.mm.pageblock import PAGEBLOCK_ORDER, Migratetype, Pageblocks
from asikit.machine.mm.pagecache import CopyFromUser, CopyToUser, PageCache, UserCopyError
from asikit.machine.mm.percpu import PerCpu, PerCpuError
from asikit.machine.mm.pgtable import PageTables, WalkEnd
from asikit.machine.mm.services import BootLock, LockFactory, MmServices
from asikit.machine.mm.slab import BadObjectError, KmemCache, SlabAllocator
from asikit.machine.mm.stacks import THREAD_SIZE, KernelStacks, Stack
from asikit.machine.mm.text import Symbol, kernel_function
from asikit.machine.mm.vma import Vma, VmaList, VmFlags
from asikit.machine.mm.vmalloc import KernelTables, Vmalloc, VmallocError, VmStruct

__all__ = [
    "DEFAULT_MAP_WINDOW",
    "GFP_ATOMIC",
    "GFP_HIGHUSER",
    "GFP_HIGHUSER_MOVABLE",
    "GFP_KERNEL",
    "GFP_KERNEL_ACCOUNT",
    "GFP_NOFS",
    "GFP_NOIO",
    "GFP_NOWAIT",
    "GFP_PGTABLE_KERNEL",
    "GFP_PGTABLE_USER",
    "GFP_USER",
    "PAGEBLOCK_ORDER",
    "PAGE_SHIFT",
    "PAGE_SIZE",
    "THREAD_SIZE",
    "TMPFS",
    "AddressRange",
    "AllocationRequest",
    "AllocatorCounters",
    "AllocatorObserver",
    "AtomicFlipError",
    "BadObjectError",
    "BadPageError",
    "BootContext",
    "BootFlusher",
    "BootLock",
    "BootMemory",
    "Context",
    "CopyFromUser",
    "CopyToUser",
    "DirectMap",
    "DoubleFreeError",
    "Ephmap",
    "EphmapError",
    "FileSystem",
    "FlipAllocatesError",
    "FlipError",
    "FlipRangeError",
    "FrameStore",
    "FreelistError",
    "Gfp",
    "Inode",
    "KernelMemory",
    "KernelStacks",
    "KernelTables",
    "KmemCache",
    "Layout",
    "LockFactory",
    "MapFlags",
    "MappingExistsError",
    "Memblock",
    "MightSleepError",
    "Migratetype",
    "MmError",
    "MmServices",
    "MmStruct",
    "MmapError",
    "NotDirectMappedError",
    "NotMappedError",
    "OutOfMemoryError",
    "Page",
    "PageAllocator",
    "PageCache",
    "PageTableError",
    "PageTables",
    "Pageblocks",
    "PerCpu",
    "PerCpuError",
    "Prot",
    "SegvError",
    "SigbusError",
    "SlabAllocator",
    "SpinLock",
    "SplitError",
    "Stack",
    "StillInUseError",
    "Symbol",
    "TlbFlusher",
    "UnexpectedlyNonsensitiveError",
    "UnexpectedlySensitiveError",
    "UnmappedPageError",
    "UserCopyError",
    "UserFaultError",
    "VmFlags",
    "VmStruct",
    "Vma",
    "VmaList",
    "Vmalloc",
    "VmallocError",
    "WalkEnd",
    "WrongOrderError",
    "dup_mm",
    "filesystem",
    "kernel_function",
    "page_parts",
]
