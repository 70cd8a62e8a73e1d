"""How fast the page allocator is: allocations, each with its free, a second.

    python bench/allocator.py [--allocations 200000]

One CPU of a machine of 256 MiB, debug mode off, memory reached without paging. Seconds are of CPU time, and the best of
several runs counts, so that what else runs on the machine matters little.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import TYPE_CHECKING

from asikit.machine.mm import GFP_KERNEL, GFP_USER, BootContext, BootMemory, DirectMap, Layout, Memblock, PageAllocator
from asikit.machine.x86 import PhysicalMemory

if TYPE_CHECKING:
    from collections.abc import Callable

FRAMES = 1 << 16
RUNS = 5
HELD = 2000
"""Allocations that are held while others are made and freed."""

WANTED_PER_SECOND = 50_000


def main() -> int:
    """Measure and print; 1 if a figure is not what the project promises."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--allocations", type=int, default=200_000, help="how many in a run")
    count = parser.parse_args().allocations
    allocator = boot()
    return int(
        not all(
            [
                report("order 0, freed at once (per-CPU lists)", count, lambda: at_once(allocator, count)),
                report("order 0, freed in another order", count, lambda: shuffled(allocator, count, max_order=0)),
                report("orders 0 to 4, freed in another order", count, lambda: shuffled(allocator, count, max_order=4)),
            ]
        )
    )


def boot() -> PageAllocator:
    """Return the allocator of a machine that has just booted."""
    memory, layout, memblock = PhysicalMemory(FRAMES << 12), Layout(), Memblock(FRAMES)
    access = BootMemory(memory, layout)
    direct_map = DirectMap(access, layout, FRAMES, memblock.alloc, memory.read_u64)
    direct_map.build()
    return PageAllocator(access, direct_map, memblock.free_ranges(), BootContext())


def at_once(allocator: PageAllocator, count: int) -> None:
    """Allocate and free, a page at a time: the per-CPU lists' best case."""
    for _ in range(count // 2):
        allocator.free_pages(allocator.alloc_pages(GFP_KERNEL))
        allocator.free_pages(allocator.alloc_pages(GFP_USER))


def shuffled(allocator: PageAllocator, count: int, *, max_order: int) -> None:
    """Keep some thousand allocations of both sensitivities and replace any one of them each time."""
    dice = random.Random(1)
    held: list[tuple[int, int]] = []
    for _ in range(count):
        order = min(int(dice.expovariate(1.0)), max_order)
        gfp = GFP_USER if dice.random() < 0.5 else GFP_KERNEL  # noqa: PLR2004
        held.append((allocator.alloc_pages(gfp, order), order))
        if len(held) > HELD:
            index = dice.randrange(HELD)
            held[index], held[-1] = held[-1], held[index]
            allocator.free_pages(*held.pop())
    for pfn, order in held:
        allocator.free_pages(pfn, order)


def report(what: str, count: int, work: Callable[[], None]) -> bool:
    """Print one figure, and return whether it is as promised."""
    best = float("inf")
    for _ in range(RUNS):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    speed = count / best
    print(f"page allocator, {what}: {speed:,.0f} allocations and frees/s (promised: at least {WANTED_PER_SECOND:,})")
    return speed >= WANTED_PER_SECOND


if __name__ == "__main__":
    sys.exit(main())
