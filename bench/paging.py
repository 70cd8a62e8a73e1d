"""How fast the processor's loads and stores are, as ratios to reading bytes from a plain dict of frames.

    python bench/paging.py [--accesses 300000]

All figures are the best of several runs, the kinds of access alternating.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from asikit.machine.x86 import CR3_NOFLUSH, Core, Cr4, PhysicalMemory, Pte, load_cpu

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.x86 import Cpu

RUNS = 5
PAGES = 64
ROOT, BASE = 0x1000, 0x40_0000
OPEN = Pte.PRESENT | Pte.RW


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--accesses", type=int, default=300_000, help="accesses of each kind in a run")
    count = parser.parse_args().accesses
    cpu = _machine()
    kinds: dict[str, Callable[[], None]] = {
        "dict of frames": lambda: _plain(count),
        "loads, TLB hits": lambda: _loads(cpu, count),
        "stores, TLB hits": lambda: _stores(cpu, count),
        "loads, TLB misses": lambda: _misses(cpu, count // 10),
    }
    best = dict.fromkeys(kinds, float("inf"))
    for _ in range(RUNS):
        for name, work in kinds.items():
            best[name] = min(best[name], _time(work))
    best["loads, TLB misses"] *= 10
    plain = best["dict of frames"]
    for name, seconds in best.items():
        print(f"{name}: {count / seconds:,.0f} a second, {seconds / plain:.1f} times a read from a dict of frames")
    return 0


def _machine() -> Cpu:
    """Map pages of 4 KiB from BASE on to themselves."""
    core = Core(0, load_cpu("generic"), PhysicalMemory(64 << 20))
    (cpu,) = core.threads
    for table, entry in ((ROOT, 0x2000), (0x2000, 0x3000), (0x3000 + (BASE >> 21) * 8, 0x4000)):
        core.memory.write_u64(table, entry | OPEN)
    for page in range(PAGES):
        core.memory.write_u64(0x4000 + page * 8, BASE + page * 4096 | OPEN)
    cpu.write_cr3(ROOT)
    cpu.write_cr4(cpu.cr4 | Cr4.PCIDE)
    cpu.write_cr3(ROOT | CR3_NOFLUSH)
    return cpu


def _plain(count: int) -> None:
    frames = {page: bytearray(4096) for page in range(PAGES)}
    for number in range(count):
        vaddr = (number % PAGES) * 4096 + 8
        offset = vaddr & 4095
        bytes(frames[vaddr >> 12][offset : offset + 8])


def _loads(cpu: Cpu, count: int) -> None:
    for number in range(count):
        cpu.load(BASE + (number % PAGES) * 4096 + 8, 8)


def _stores(cpu: Cpu, count: int) -> None:
    data = bytes(8)
    for number in range(count):
        cpu.store(BASE + (number % PAGES) * 4096 + 8, data)


def _misses(cpu: Cpu, count: int) -> None:
    for number in range(count):
        if number % PAGES == 0:
            cpu.write_cr3(ROOT)
        cpu.load(BASE + (number % PAGES) * 4096 + 8, 8)


def _time(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
