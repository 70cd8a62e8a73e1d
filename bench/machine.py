"""How fast the model machine is: kernel accesses a second, and whether a run's time grows linearly with its length.

    python bench/machine.py [--accesses 400000]

The accesses are those of modelled kernel code (`Kernel.access`) in a running task, debug mode and observers off. Each
figure is the best of several runs.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from asikit.machine.kernel import Kernel, Machine, TaskExit

if TYPE_CHECKING:
    from collections.abc import Callable

RUNS = 5
WANTED_ACCESSES_PER_SECOND = 200_000
ROUND_TRIPS = 400
MOST_GROWTH = 1.3
"""A run four times as long may take up to this times four times as long."""


def main() -> int:
    """Measure and print; 1 if a figure is not what the project promises."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--accesses", type=int, default=400_000, help="accesses in one run")
    options = parser.parse_args()
    return int(not all([_accesses(options.accesses), _growth()]))


def _run(body: Callable[[Kernel], object]) -> float:
    """Return the seconds that a task's body takes in kernel mode, in a system call of its own."""
    machine = Machine()
    kernel = machine.kernel
    took = 0.0

    def run() -> None:
        nonlocal took
        began = time.perf_counter()
        body(kernel)
        took = time.perf_counter() - began
        kernel.entry.syscall(60, "exit", _exit)

    kernel.start(kernel.new_task(run, comm="bench", mm=kernel.contexts.new()))
    machine.run()
    return took


def _exit() -> int:
    raise TaskExit(0)


def _accesses(count: int) -> bool:
    """Loads and stores of numbers, a page of them: all of them in the TLB, as most of the kernel's are."""

    def body(kernel: Kernel) -> None:
        def handler() -> int:
            base = kernel.slab.kmalloc(4096)
            addresses = [base + offset * 8 for offset in range(256)]
            load, store = kernel.access.load_u64, kernel.access.store_u64
            for _ in range(count // 512):
                for address in addresses:
                    store(address, load(address) + 1)
            return 0

        kernel.entry.syscall(0, "accesses", handler)

    rate = count / min(_run(body) for _ in range(RUNS))
    met = rate >= WANTED_ACCESSES_PER_SECOND
    print(f"kernel accesses: {rate:,.0f} a second (at least {WANTED_ACCESSES_PER_SECOND:,}) {_verdict(met=met)}")
    return met


def _growth() -> bool:
    """System calls that each touch sensitive memory: entry, fault, exit, return with all flushes."""

    def round_trips(count: int) -> float:
        def body(kernel: Kernel) -> None:
            page = kernel.layout.virt(kernel.direct_map.frames - 1 << 12)
            for _ in range(count):
                kernel.entry.syscall(0, "touch", lambda: kernel.access.load_u64(page))

        return min(_run(body) for _ in range(RUNS))

    short, long = round_trips(ROUND_TRIPS), round_trips(4 * ROUND_TRIPS)
    growth = long / short / 4
    met = growth <= MOST_GROWTH
    print(
        f"{ROUND_TRIPS} and {4 * ROUND_TRIPS} round trips: {short:.3f} and {long:.3f} s,"
        f" {growth:.2f} times linear (at most {MOST_GROWTH}) {_verdict(met=met)}"
    )
    return met


def _verdict(*, met: bool) -> str:
    return "" if met else "MISSED"


if __name__ == "__main__":
    sys.exit(main())
