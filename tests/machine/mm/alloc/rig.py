"""A small machine for the allocator alone: memory, both direct maps, a context to play with, a flusher with a log."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asikit.machine.mm import BootMemory, DirectMap, Layout, Memblock, PageAllocator
from asikit.machine.x86 import PhysicalMemory

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.machine.mm import Symbol

RESERVED_FRAMES = 8
"""Frames at the beginning that nobody gives away, besides the direct map's tables."""


@dataclass
class TestContext:
    """A CPU that is as the test says."""

    __test__ = False

    cpu_number: int = 0
    irqs_enabled: bool = True
    may_block: bool = True
    uncounted_depth: int = 0

    def cpu_relax(self) -> None:
        """Nobody else runs, so whoever spins would for ever."""
        raise AssertionError("a lock is taken twice")

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Note that the clock stands still."""
        self.uncounted_depth += 1
        yield
        self.uncounted_depth -= 1


@dataclass
class TestFlusher:
    """Remembers ranges that were flushed; `log` is shared with whoever else writes to it."""

    __test__ = False

    log: list[tuple[object, ...]] = field(default_factory=list)

    def flush_tlb_kernel_range(self, start: int, end: int) -> None:
        """Note a range."""
        self.log.append(("flush", start, end))

    def flush_tlb_mm_range(self, mm: int, start: int, end: int) -> None:
        """Nothing here flushes user addresses."""
        raise AssertionError(f"mm {mm}: a flush of user addresses {start:#x} to {end:#x}")

    def flush_tlb_all(self) -> None:
        """Note everything."""
        self.log.append(("flush", 0, 1 << 64))


class TracedMemory(BootMemory):
    """Boot-time memory that knows the call stack, and counts accesses."""

    def __init__(self, memory: PhysicalMemory, layout: Layout) -> None:
        super().__init__(memory, layout)
        self.stack: list[str] = []
        self.stores: list[tuple[int, int, str]] = []
        """Address, size and innermost function of the `store`s."""
        self.refuse_after = -1
        """Fail when that many more stores were made; -1: never."""

    def enter(self, symbol: Symbol) -> None:
        """Push."""
        self.stack.append(symbol.name)

    def leave(self) -> None:
        """Pop."""
        self.stack.pop()

    def store(self, vaddr: int, data: bytes) -> None:
        """Write, and note it."""
        if self.refuse_after == 0:
            raise RuntimeError("machine check")
        self.refuse_after -= 1
        self.stores.append((vaddr, len(data), self.stack[-1] if self.stack else ""))
        super().store(vaddr, data)


class Rig:
    """The parts, put together. `allocator_class` and `direct_map_class` are replaced to put a bug in."""

    def __init__(
        self,
        frames: int = 1024,
        *,
        asi: bool = True,
        cpus: int = 2,
        pageblock_order: int = 4,
        max_order: int | None = None,
        debug: bool = True,
        levels: int = 4,
        gigabyte_pages: bool = False,
        dma32_end: int | None = None,
        allocator_class: type[PageAllocator] = PageAllocator,
        direct_map_class: type[DirectMap] = DirectMap,
        **options: Any,  # noqa: ANN401 - PageAllocator's own
    ) -> None:
        self.memory = PhysicalMemory(frames << 12)
        self.layout = Layout(levels)
        self.access = TracedMemory(self.memory, self.layout)
        self.context = TestContext()
        self.flusher = TestFlusher()
        self.memblock = Memblock(frames)
        self.memblock.reserve(0, RESERVED_FRAMES)
        self.direct_map = direct_map_class(
            self.access,
            self.layout,
            frames,
            self.memblock.alloc,
            self.memory.read_u64,
            asi=asi,
            gigabyte_pages=gigabyte_pages,
            pageblock_order=pageblock_order,
            context=self.context,
            flusher=self.flusher,
        )
        self.direct_map.build()
        if dma32_end is not None:
            options["dma32_end"] = dma32_end
        self.allocator = allocator_class(
            self.access,
            self.direct_map,
            self.memblock.free_ranges(),
            self.context,
            cpus=cpus,
            debug=debug,
            max_order=pageblock_order + 1 if max_order is None else max_order,
            **options,
        )

    def fill(self, pfn: int, byte: int, order: int = 0) -> None:
        """Fill the frames of an allocation."""
        for frame in range(pfn, pfn + (1 << order)):
            self.memory.frame(frame)[:] = bytes([byte]) * 4096

    def present(self, root: int) -> set[int]:
        """The page frames that an address space maps in its direct map, read off the raw tables."""
        found: set[int] = set()
        start = self.layout.direct_map.start
        self._collect(root, self.layout.levels, 0, start, found)
        return found

    def restricted(self) -> set[int]:
        """The frames in the restricted direct map."""
        assert self.direct_map.nonsensitive_pgd is not None
        return self.present(self.direct_map.nonsensitive_pgd)

    def unrestricted(self) -> set[int]:
        """The frames in the unrestricted one."""
        return self.present(self.direct_map.pgd)

    def _collect(self, table: int, level: int, vaddr: int, start: int, found: set[int]) -> None:
        raw = memoryview(self.memory.read(table << 12, 4096)).cast("Q")
        span = 1 << (12 + 9 * (level - 1))
        for index, entry in enumerate(raw):
            if not entry & 1:
                continue
            here = vaddr + index * span
            address = entry & 0x000F_FFFF_FFFF_F000
            if level > 1 and not entry & 0x80:
                self._collect(address >> 12, level - 1, here, start, found)
                continue
            offset = here - (start & (1 << (12 + 9 * self.layout.levels)) - 1)
            assert address == offset, "a direct map maps the frame that its address says"
            found.update(range(address >> 12, (address + span) >> 12))
