"""A machine for tests without processor and kernel: memory, page allocator, and CPUs with TLBs that forget nothing.

What it says about page tables it finds out itself, from physical memory and the manual, not through
asikit.machine.mm.pgtable.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from asikit.machine.mm.access import BootMemory
from asikit.machine.mm.allocator import PageAllocator
from asikit.machine.mm.directmap import DirectMap
from asikit.machine.mm.ephmap import Ephmap
from asikit.machine.mm.errors import OutOfMemoryError
from asikit.machine.mm.layout import Layout
from asikit.machine.mm.memblock import Memblock
from asikit.machine.mm.mmstruct import MmStruct
from asikit.machine.mm.pagecache import PageCache
from asikit.machine.mm.services import BootLock, LockFactory, MmServices
from asikit.machine.mm.slab import SlabAllocator
from asikit.machine.mm.stacks import KernelStacks
from asikit.machine.mm.vmalloc import Vmalloc
from asikit.machine.x86 import PhysicalMemory
from asikit.trace import PageKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.mm.gfp import Gfp
    from asikit.machine.mm.text import Symbol

PAGE = 4096
PRESENT, WRITABLE, USER, LARGE, NOT_EXECUTABLE = 1, 2, 4, 1 << 7, 1 << 63
FRAME_OF_ENTRY = 0x000F_FFFF_FFFF_F000


class NotMappedError(Exception):
    """A kernel access to nothing: an oops."""


@dataclass
class Tlb:
    """Every CPU's TLB in one, of unlimited size: a translation once used stays until it is flushed."""

    entries: dict[tuple[int, int], int] = field(default_factory=dict)
    flushes: list[tuple[int, int, int]] = field(default_factory=list)

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Space 0 is the kernel's."""
        self.flush_tlb_mm_range(0, start, end)

    def flush_tlb_mm_range(self, mm: int, start: int, end: int) -> None:
        """Forget a range."""
        self.flushes.append((mm, start, end))
        for space, page in list(self.entries):
            if space == mm and start <= page < end:
                del self.entries[space, page]

    def flush_tlb_all(self) -> None:
        """Forget everything."""
        self.entries.clear()

    def on_alloc(self, pfn: int, order: int, gfp: Gfp, migratetype: int) -> None:
        """Allocations may have been reachable by nobody before."""
        del gfp, migratetype
        self._check(pfn, order)

    def on_free(self, pfn: int, order: int) -> None:
        """What is freed is in no TLB any more."""
        self._check(pfn, order)

    def on_flip(self, pageblock: int, sensitive: bool) -> None:
        """Not this test's matter."""

    def _check(self, pfn: int, order: int) -> None:
        stale = [where for where, entry in self.entries.items() if pfn <= _frame(entry) < pfn + (1 << order)]
        assert not stale, f"frame {pfn:#x} changed hands while a TLB maps {stale}"


class WalkingMemory(BootMemory):
    """Kernel accesses through the tables of init_mm and the TLB; the call stack of each is kept."""

    def __init__(self, memory: PhysicalMemory, layout: Layout, tlb: Tlb) -> None:
        super().__init__(memory, layout)
        self.memory = memory
        self.layout = layout
        self.tlb = tlb
        self.root = 0
        self.stack: list[str] = []
        self.touched: list[tuple[str, int, tuple[str, ...]]] = []
        self.recording = False

    def load(self, vaddr: int, size: int) -> bytes:
        """Read bytes."""
        return b"".join(self.memory.read(*piece) for piece in self._pieces("read", vaddr, size))

    def store(self, vaddr: int, data: bytes) -> None:
        """Write bytes."""
        for paddr, size in self._pieces("write", vaddr, len(data)):
            self.memory.write(paddr, data[:size])
            data = data[size:]

    def load_u64(self, vaddr: int) -> int:
        """Read a number."""
        return int.from_bytes(self.load(vaddr, 8), "little")

    def store_u64(self, vaddr: int, value: int) -> None:
        """Write a number."""
        self.store(vaddr, value.to_bytes(8, "little"))

    def enter(self, symbol: Symbol) -> None:
        """Begin a function."""
        self.stack.append(symbol.name if symbol.module is None else f"{symbol.name} [{symbol.module}]")

    def leave(self) -> None:
        """End a function."""
        self.stack.pop()

    def _pieces(self, what: str, vaddr: int, size: int) -> list[tuple[int, int]]:
        if self.recording:
            self.touched.append((what, vaddr, tuple(self.stack)))
        pieces = []
        while size:
            part = min(size, PAGE - vaddr % PAGE)
            pieces.append((self._translate(what, vaddr), part))
            vaddr, size = vaddr + part, size - part
        return pieces

    def _translate(self, what: str, vaddr: int) -> int:
        if vaddr in self.layout.direct_map:
            return self.layout.phys(vaddr)
        page = vaddr & -PAGE
        entry = self.tlb.entries.get((0, page)) or walk(self.memory, self.root, vaddr, self.layout.levels)
        if not entry & PRESENT or (what == "write" and not entry & WRITABLE):
            raise NotMappedError(f"{what} of {vaddr:#x}")
        self.tlb.entries[0, page] = entry
        return (_frame(entry) << 12) + vaddr % PAGE


def walk(memory: PhysicalMemory, root: int, vaddr: int, levels: int = 4) -> int:
    """Return a 4 KiB page's entry, with what upper levels forbid taken out; 0 if there is none (SDM 4.5)."""
    table, allowed = root << 12, PRESENT | WRITABLE | USER
    for level in range(levels - 1, -1, -1):
        entry = int.from_bytes(memory.read(table + (vaddr >> 12 + 9 * level & 511) * 8, 8), "little")
        if not entry & PRESENT:
            return 0
        assert not (level and entry & LARGE)
        table = entry & FRAME_OF_ENTRY
        allowed &= entry
    return entry & ~(PRESENT | WRITABLE | USER) | allowed


def mapped_pages(memory: PhysicalMemory, root: int, levels: int = 4) -> dict[int, int]:
    """Return every user page's entry by its address."""
    found: dict[int, int] = {}

    def descend(table: int, base: int, level: int) -> None:
        content = memory.read(table << 12, PAGE)
        for index in range(256 if level == levels else 512):
            entry = int.from_bytes(content[8 * index : 8 * index + 8], "little")
            if not entry & PRESENT:
                continue
            vaddr = base + (index << 12 + 9 * (level - 1))
            if level == 1:
                found[vaddr] = entry
            else:
                descend(_frame(entry), vaddr, level - 1)

    descend(root, 0, levels)
    return found


def _frame(entry: int) -> int:
    return (entry & FRAME_OF_ENTRY) >> 12


@dataclass
class RunningCpu:
    """What runs."""

    cpu_number: int = 0
    irqs_enabled: bool = True
    may_block: bool = True
    own_doings: int = 0
    others: Callable[[], object] = bool

    def cpu_relax(self) -> None:
        """Let others run, if there are any."""
        self.others()

    def uncounted(self) -> AbstractContextManager[None]:
        """Count instead."""
        self.own_doings += 1
        return nullcontext()


class Rig:
    """The machine, with `frames` of memory; small pageblocks change sensitivity often."""

    def __init__(
        self,
        frames: int = 4096,
        *,
        levels: int = 4,
        asi: bool = False,
        pageblock_order: int = 9,
        ephmap_kinds: tuple[PageKind, ...] = (),
        kernel_areas: bool = False,
        new_lock: LockFactory = BootLock,
        cpus: int = 2,
    ) -> None:
        self.layout = Layout(levels)
        self.memory = PhysicalMemory(frames * PAGE)
        self.tlb = Tlb()
        self.cpu = RunningCpu()
        self.access = WalkingMemory(self.memory, self.layout, self.tlb)
        memblock = Memblock(frames)
        memblock.reserve(0, 1)
        direct_map = DirectMap(
            self.access,
            self.layout,
            frames,
            memblock.alloc,
            self.memory.read_u64,
            asi=asi,
            context=self.cpu,
            flusher=self.tlb,
            pageblock_order=pageblock_order,
        )
        direct_map.build()
        self.access.root = direct_map.pgd
        zero_page = memblock.alloc()
        self.allocator = PageAllocator(self.access, direct_map, memblock.free_ranges(), self.cpu, cpus=cpus, debug=asi)
        self.allocator.observers.append(self.tlb)
        self.services = MmServices(
            self.access, self.allocator, self.tlb, self.cpu, self.layout, direct_map.pgd, zero_page, new_lock
        )
        ephmap = None
        if ephmap_kinds:
            ephmap = Ephmap(
                self.services, cpus, read_kinds=ephmap_kinds, write_kinds=ephmap_kinds, flush_one=self.flush_one
            )
        self.cache = PageCache(self.services, ephmap)
        self.ephmap = ephmap
        self.slab = SlabAllocator(self.services)
        if kernel_areas:
            self.vmalloc = Vmalloc(self.services)
            self.stacks = KernelStacks(self.services, self.vmalloc)
        self._next_mm = 1

    def flush_one(self, vaddr: int) -> None:
        """INVLPG."""
        self.tlb.flush_tlb_kernel_range(vaddr, vaddr + PAGE)

    def new_mm(self) -> MmStruct:
        """Make an empty address space."""
        return MmStruct(self.services, self.cache, self.new_id())

    def new_id(self) -> int:
        """Return a fresh number."""
        self._next_mm += 1
        return self._next_mm

    # User accesses, as a processor makes them

    def load(self, mm: MmStruct, vaddr: int, size: int) -> bytes:
        """Read user memory."""
        data = b""
        while size:
            part = min(size, PAGE - vaddr % PAGE)
            data += self.memory.read(self._user(mm, vaddr, write=False), part)
            vaddr, size = vaddr + part, size - part
        return data

    def store(self, mm: MmStruct, vaddr: int, data: bytes) -> None:
        """Write user memory."""
        while data:
            part = min(len(data), PAGE - vaddr % PAGE)
            self.memory.write(self._user(mm, vaddr, write=True), data[:part])
            vaddr, data = vaddr + part, data[part:]

    def fetch(self, mm: MmStruct, vaddr: int) -> None:
        """Execute at an address."""
        self._user(mm, vaddr, write=False, fetch=True)

    def copy_to_user(self, mm: MmStruct) -> Callable[[int, bytes], int]:
        """Return the callable that read_iter wants."""

        def copy(uaddr: int, data: bytes) -> int:
            self.store(mm, uaddr, data)
            return 0

        return copy

    def copy_from_user(self, mm: MmStruct) -> Callable[[int, int], bytes]:
        """Return the callable that write_iter wants."""
        return lambda uaddr, size: self.load(mm, uaddr, size)

    def _user(self, mm: MmStruct, vaddr: int, *, write: bool, fetch: bool = False) -> int:
        page = vaddr & -PAGE
        for _ in range(3):
            entry = self.tlb.entries.get((mm.id, page)) or walk(self.memory, mm.pgd, vaddr, self.layout.levels)
            allowed = entry & PRESENT and (entry & WRITABLE or not write) and not (fetch and entry & NOT_EXECUTABLE)
            if allowed:
                assert entry & USER
                self.tlb.entries[mm.id, page] = entry
                return (_frame(entry) << 12) + vaddr % PAGE
            self.tlb.entries.pop((mm.id, page), None)  # a fault removes the entry (SDM 4.10.4.1)
            mm.handle_mm_fault(vaddr, write=write, fetch=fetch)
        raise AssertionError(f"access to {vaddr:#x} faults again and again")

    # Accounts

    def free_frames(self) -> int:
        """Return how many frames are free, once caches have given back what they keep."""
        for reclaim in self.allocator.reclaimers:
            reclaim(0)
        return self.allocator.free_frames

    def fail_at(self, number: int) -> Failing:
        """Return a block in which the allocation of this number (from 0) fails, and all after it."""
        return Failing(self.allocator, number)


class Failing:
    """Makes an allocator fail; `reached` says whether it did."""

    def __init__(self, allocator: PageAllocator, number: int) -> None:
        self._allocator = allocator
        self._left = number
        self.reached = False

    def __enter__(self) -> Self:
        alloc = self._allocator.alloc_pages

        def alloc_pages(gfp: Gfp, order: int = 0, *, kind: PageKind = PageKind.KERNEL, cache: str | None = None) -> int:
            if self._left == 0:
                self.reached = True
                raise OutOfMemoryError("made to fail")
            self._left -= 1
            return alloc(gfp, order, kind=kind, cache=cache)

        self._allocator.alloc_pages = alloc_pages  # type: ignore[method-assign]
        return self

    def __exit__(self, *_: object) -> None:
        del self._allocator.alloc_pages
