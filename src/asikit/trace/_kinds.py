"""The closed lists of the format: kinds of event, regions of the kernel's address space, kinds of page."""

from __future__ import annotations

from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

FORMAT: Final = "asitrace"
"""The value of ``format`` in every ``meta.json``."""

VERSION: Final = 3
"""The version of the format that this package writes, and the newest that it reads. It reads all older ones."""

NO_PAGE: Final = 0xFFFF_FFFF
"""``places.page`` of a place that is not memory, for example a device's registers."""

NO_STACK: Final = 0
"""``stack`` of an event or allocation whose kernel stack was not recorded."""

UNKNOWN_EXIT_CODE: Final = 0xFFFF_FFFF
"""``arg`` of a VM exit whose hardware exit code is not known."""


# AMD manual volume 2, appendix C, with the kernel's abbreviations (arch/x86/include/uapi/asm/svm.h).
SVM_EXITS: Mapping[int, str] = MappingProxyType(
    {
        0x60: "intr",
        0x61: "nmi",
        0x64: "vintr",
        0x72: "cpuid",
        0x77: "pause",
        0x78: "hlt",
        0x79: "invlpg",
        0x7B: "ioio",
        0x7C: "msr",
        0x7F: "shutdown",
        0x81: "vmmcall",
        0x400: "npf",
    }
)
"""Names of SVM's exit codes, for the ``vm_exits`` of a trace that was recorded on it."""


class EventKind(IntEnum):
    """What happened; the comment says what ``arg`` means."""

    ENTRY_SYSCALL = 1  # a system call from user mode: its number
    ENTRY_EXCEPTION = 2  # an exception from user mode: its vector
    ENTRY_INTERRUPT = 3  # an interrupt from user mode: its vector
    ENTRY_NMI = 4  # an NMI from user mode: 2
    VM_EXIT = 5  # guest to host kernel: the hardware's exit code, or UNKNOWN_EXIT_CODE
    NESTED_EXCEPTION = 6  # kernel to kernel: its vector (14 is a kernel-mode page fault)
    NESTED_INTERRUPT = 7  # kernel to kernel: its vector
    NESTED_NMI = 8  # kernel to kernel: 2
    NESTED_RETURN = 9  # from the innermost nested entry: 0
    RETURN_USER = 10  # to user mode: 0 by SYSRET, 1 by IRET
    VM_ENTRY = 11  # host kernel to guest (VMRUN, VMLAUNCH, VMRESUME): 0
    TOUCH_READ = 12  # first read of the page in this round trip: row of places
    TOUCH_WRITE = 13  # first write: row of places
    TOUCH_FETCH = 14  # first instruction fetch: row of places
    TASK_SWITCH = 15  # row of tasks: the task that this CPU switches to; in a context switch it comes first
    MM_SWITCH = 16  # id of the mm whose page tables are now loaded; 0 is init_mm. Lazy TLB mode is no event
    PAGE_ALLOC = 17  # row of allocations
    PAGE_FREE = 18  # row of allocations
    TLB_FLUSH = 19  # a TlbFlush


class TlbFlush(IntEnum):
    """What a TLB_FLUSH discards, and how: bit 0 for kernel addresses, bit 1 for page by page.

    What the kernel leaves undone is no event: a request that another flush has met already, and one to a CPU in lazy
    TLB mode, which loads init_mm instead (MM_SWITCH). Version 1 calls each flush full.
    """

    USER = 0  # all user addresses of the loaded mm, by writing CR3
    KERNEL = 1  # all kernel addresses, or everything, by CR4 or INVPCID
    USER_RANGE = 2  # some pages at user addresses, each by INVLPG
    KERNEL_RANGE = 3  # some pages at kernel addresses, each by INVLPG

    @property
    def word(self) -> str:
        """What policies and documents call it."""
        return self.name.lower()


ENTRY_KINDS: Final = frozenset(
    {
        EventKind.ENTRY_SYSCALL,
        EventKind.ENTRY_EXCEPTION,
        EventKind.ENTRY_INTERRUPT,
        EventKind.ENTRY_NMI,
        EventKind.VM_EXIT,
    }
)
"""The kinds that begin a round trip: from an untrusted domain into the kernel."""

RETURN_KINDS: Final = frozenset({EventKind.RETURN_USER, EventKind.VM_ENTRY})
"""The kinds that end a round trip: from the kernel back to an untrusted domain."""

TOUCH_KINDS: Final = frozenset({EventKind.TOUCH_READ, EventKind.TOUCH_WRITE, EventKind.TOUCH_FETCH})
"""The kinds whose ``arg`` is a place."""


class Region(StrEnum):
    """Part of the kernel's virtual address space (kernel: ``Documentation/arch/x86/x86_64/mm.rst``)."""

    USER = "user"
    DIRECT_MAP = "direct_map"
    VMALLOC = "vmalloc"
    VMEMMAP = "vmemmap"
    PERCPU = "percpu"
    KERNEL_IMAGE = "kernel_image"
    MODULES = "modules"  # in version 1 also BPF programs
    BPF = "bpf"  # the text of BPF programs that the kernel compiled (JIT)
    FIXMAP = "fixmap"
    CPU_ENTRY_AREA = "cpu_entry_area"
    ESPFIX = "espfix"
    LDT = "ldt"
    OTHER = "other"


class PageKind(StrEnum):
    """What a page frame is used for."""

    ANON = "anon"
    PAGE_CACHE = "page_cache"
    SHMEM = "shmem"  # page cache of tmpfs
    PAGE_TABLE = "page_table"
    SLAB = "slab"
    STACK = "stack"
    HUGETLB = "hugetlb"  # of hugetlbfs, in use or in a pool
    RESERVED = "reserved"  # never the page allocator's: memblock's allocations, the kernel image, firmware
    KERNEL = "kernel"  # allocated by the kernel for itself, no finer kind known
    VMALLOC = "vmalloc"
    PERCPU = "percpu"
    FREE = "free"
    MMIO = "mmio"
    UNKNOWN = "unknown"
