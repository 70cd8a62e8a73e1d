"""A made-up recording of any length, with the proportions of a real one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from asikit.trace import SIDE_TABLES, EventKind, PageKind, Region, Trace, TraceWriter

if TYPE_CHECKING:
    from pathlib import Path

    import numpy.typing as npt

PLACES = 200_000
STACKS = 20_000
USER_DATA_STACKS = 400
USER_DATA_ALLOCATORS = 12
SHARE_NESTED = 0.1
SHARE_SWITCHING = 0.04
SHARE_DIRECT_MAP = 0.5
SHARE_NEW = 0.1
PATHS = 4_000
SYMBOLS = 5_000
TASKS = 50
TOUCHES_PER_ROUND_TRIP = 62
"""As measured on recordings of a stock kernel under file I/O."""

_HARDWALL = 0x100000
_META = {
    "source": "machine",
    "kernel": {"release": "6.1.0-synthetic", "version": "", "command_line": ""},
    "machine": {"cpus": 2},
    "workload": {"command": ["synthetic"], "exit_status": 0},
    "lost": {"events": 0},
    "gfp_flags": {"__GFP_HARDWALL": _HARDWALL},
}


def write_synthetic(path: Path, events: int, *, seed: int = 1) -> Trace:
    """Write a trace of about ``events`` events; the same arguments give the same trace."""
    random = np.random.default_rng(seed)
    with TraceWriter(path, _META) as writer:
        for name, frame in _side_tables(random).items():
            writer.append(name, frame)
        clock = np.zeros(2, np.uint64)
        written = 0
        while written < events:
            columns = _round_trips(random, min(60_000, 1 + (events - written) // (TOUCHES_PER_ROUND_TRIP + 2)))
            columns["clock"] = _clock(columns["cpu"], clock)
            writer.append_events(**columns)
            written += columns["cpu"].size
    return Trace.open(path)


def _clock(cpu: npt.NDArray[np.uint8], clock: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    ticks = np.zeros(cpu.size, np.uint64)
    for number in range(clock.size):
        here = np.flatnonzero(cpu == number)
        ticks[here] = clock[number] + np.arange(1, here.size + 1, dtype=np.uint64) * np.uint64(37)
        clock[number] += np.uint64(37 * here.size)
    return ticks


def _round_trips(random: np.random.Generator, trips: int) -> dict[str, npt.NDArray[Any]]:
    """Round trips one after the other: the same few thousand paths through the kernel again and again, each a bit new.

    Four in a hundred switch tasks, one in ten has a nested interrupt.
    """
    length = TOUCHES_PER_ROUND_TRIP + 2
    paths = np.random.default_rng(0)  # the same paths in every part of the trace
    kind = np.empty((PATHS, length), np.uint8)
    kind[:, 1:-1] = paths.choice(
        np.array([EventKind.TOUCH_READ, EventKind.TOUCH_WRITE, EventKind.TOUCH_FETCH], np.uint8),
        (PATHS, TOUCHES_PER_ROUND_TRIP),
        p=[0.45, 0.2, 0.35],
    )
    kind[:, 0] = paths.choice(
        np.array([EventKind.ENTRY_SYSCALL, EventKind.ENTRY_EXCEPTION, EventKind.ENTRY_INTERRUPT], np.uint8),
        PATHS,
        p=[0.8, 0.15, 0.05],
    )
    kind[:, -1] = EventKind.RETURN_USER
    arg = _some(paths, PLACES, (PATHS, length))
    # What touches user data is a small part of the kernel, and so are its stacks.
    few = 1 + _some(paths, USER_DATA_STACKS, arg.shape)
    stack = np.where(_is_user_data(arg.astype(np.uint64)), few, _some(paths, STACKS, arg.shape))
    arg[:, 0] = np.where(kind[:, 0] == EventKind.ENTRY_SYSCALL, paths.integers(0, 60, PATHS), 14)
    arg[:, -1] = 0
    stack[:, 0] = stack[:, -1] = 0
    nested = paths.random(PATHS) < SHARE_NESTED
    kind[nested, 20], kind[nested, 25] = EventKind.NESTED_INTERRUPT, EventKind.NESTED_RETURN
    switch = paths.random(PATHS) < SHARE_SWITCHING
    kind[switch, 40], kind[switch, 41] = EventKind.MM_SWITCH, EventKind.TASK_SWITCH
    arg[switch, 40] = paths.integers(1, 30, int(switch.sum()))
    arg[switch, 41] = paths.integers(0, TASKS, int(switch.sum()))

    taken = np.minimum(PATHS - 1, np.floor(PATHS ** random.random(trips)).astype(np.int64))
    kind, arg, stack = kind[taken], arg[taken], stack[taken]
    new = (random.random(arg.shape) < SHARE_NEW) & (kind >= EventKind.TOUCH_READ) & (kind <= EventKind.TOUCH_FETCH)
    arg[new] = _some(random, PLACES, (int(new.sum()),))
    cpu = np.repeat(random.integers(0, 2, trips).astype(np.uint8), length)
    return {"cpu": cpu, "kind": kind.ravel(), "arg": arg.ravel(), "stack": stack.ravel()}


def _is_user_data(place: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell which places hold user data: three in a hundred."""
    spread: npt.NDArray[np.bool_] = place * np.uint64(11_400_714_819_323_198_485) >> np.uint64(32) < 0.03 * 2**32
    return spread


def _some(random: np.random.Generator, rows: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint32]:
    """Rows of a table, few of them often and many of them seldom, spread over the table."""
    rank = np.floor(rows ** random.random(shape)).astype(np.uint64)  # log-uniform: as many below 100 as above 100²
    return (rank * np.uint64(2_654_435_761) % np.uint64(rows)).astype(np.uint32)


def _side_tables(random: np.random.Generator) -> dict[str, pl.DataFrame]:
    region = np.where(
        random.random(PLACES) < SHARE_DIRECT_MAP,
        Region.DIRECT_MAP.value,
        random.choice([region.value for region in Region if region is not Region.DIRECT_MAP], PLACES),
    )
    rows = np.arange(PLACES)
    sensitive = _is_user_data(rows.astype(np.uint64))
    kinds = [PageKind.SLAB.value, PageKind.PAGE_TABLE.value, PageKind.KERNEL.value]
    columns: dict[str, dict[str, Any]] = {
        "places": {"vaddr": 0xFFFF_8880_0000_0000 + rows.astype(np.uint64) * 4096, "region": region, "page": rows},
        "pages": {
            "frame": rows,
            "kind": np.where(sensitive, PageKind.PAGE_CACHE.value, random.choice(kinds, PLACES)),
            "cache": None,
            "allocation": rows,
        },
        "allocations": {
            "frame": rows,
            "order": 0,
            "gfp": np.where(sensitive, _HARDWALL, 0xCC0),
            "migratetype": 0,
            "stack": np.where(sensitive, 1 + rows % USER_DATA_ALLOCATORS, random.integers(1, STACKS, PLACES)),
        },
        "stacks": {
            "parent": np.maximum(0, np.arange(STACKS) - random.integers(1, 200, STACKS)),
            "address": np.append(0, 0xFFFF_FFFF_8100_0000 + np.arange(1, STACKS, dtype=np.uint64) * 16),
            "symbol": np.append(0, random.integers(1, SYMBOLS, STACKS - 1)),
        },
        "symbols": {
            "name": ["?", *(f"function_{row}" for row in range(1, SYMBOLS))],
            "module": None,
            "address": np.append(0, 0xFFFF_FFFF_8100_0000 + np.arange(1, SYMBOLS, dtype=np.uint64) * 4096),
        },
        "tasks": {"pid": np.arange(TASKS), "tgid": np.arange(TASKS), "comm": "task", "mm": np.arange(TASKS) % 30},
    }
    return {name: pl.DataFrame(table).cast(dict(SIDE_TABLES[name])) for name, table in columns.items()}
