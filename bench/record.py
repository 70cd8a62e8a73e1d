"""What recording costs: the same boot and workload under QEMU with and without the recorder, on one CPU and on two.

And what it costs to see this machine's files: `asi record -- true`, against the boot of a guest with nothing in it.

The runs take turns, and the least of each counts: the others were disturbed. The QEMU is the one that PATH finds first.
"""

from __future__ import annotations

import io
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.record import Recording, Streams, record, run_unrecorded

if TYPE_CHECKING:
    from collections.abc import Callable

MiB = 1 << 20
FIO = "--name=job --filename=/tmp/data --size=48m --rw=randread --bs=4k --ioengine=psync --thread"
READ_MIB = 96
CPUS = (1, 2)
RUNS = 3
MEMORY = 512 * MiB
"""Little enough for the guest to use all of it: what lies beyond it is the recorder's."""

BOUND_RATIO = 1.5
BOUND_MIB = 1536


def main() -> int:
    """Print the ratios of times, and the recorder's memory beyond the guest's; 1 if a figure is beyond its bound."""
    qemu = shutil.which("qemu-system-x86_64") or sys.exit("qemu-system-x86_64 is missing")
    print(subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "bench.asitrace"
        record(Recording(("true",), bare=True), trace, say=_say, overwrite=True, streams=_dropped())  # warm caches
        worst = max(_shortest(trace), *(_ratio(cpus, trace) for cpus in CPUS))
    return int(worst > BOUND_RATIO) | int(_memory() > BOUND_MIB)


def _shortest(trace: Path) -> float:
    bare = Recording(("true",), bare=True)
    whole = Recording(("true",))
    plain, recorded = map(min, zip(*(_pair(bare, trace, whole) for _ in range(RUNS)), strict=True))
    seconds = f"{recorded:.1f} s by {plain:.1f} s, each the least of {RUNS}; promised: at most {BOUND_RATIO}"
    print(f"asi record -- true takes {recorded / plain:.2f} times the unrecorded bare boot ({seconds})", flush=True)
    return recorded / plain


def _ratio(cpus: int, trace: Path) -> float:
    job = (*FIO.split(), f"--numjobs={cpus}", f"--io_size={READ_MIB // cpus}m")
    recording = Recording(("fio", *job), memory_bytes=MEMORY, cpus=cpus, bare=True)
    plain, recorded = map(min, zip(*(_pair(recording, trace) for _ in range(RUNS)), strict=True))
    ratio = recorded / plain
    seconds = f"{recorded:.1f} s by {plain:.1f} s, each the least of {RUNS}"
    promise = f"promised: at most {BOUND_RATIO}"
    print(f"recording takes {ratio:.2f} times the unrecorded run with --cpus {cpus} ({seconds}; {promise})", flush=True)
    return ratio


def _memory() -> int:
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    qemu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    beyond = own + qemu - MEMORY // MiB
    print(f"and {beyond} MiB beyond the guest's memory (asi {own}, QEMU {qemu}; promised: at most {BOUND_MIB})")
    return beyond


def _pair(plainly: Recording, trace: Path, recording: Recording | None = None) -> tuple[float, float]:
    """Give the seconds of one run without the recorder, and of one with it, of another guest if one is given."""
    plain = _seconds(lambda: run_unrecorded(plainly, say=_say, streams=_dropped()))
    recorded = _seconds(lambda: record(recording or plainly, trace, say=_say, overwrite=True, streams=_dropped()))
    return plain, recorded


def _dropped() -> Streams:
    return Streams.to(io.BytesIO(), io.BytesIO())


def _seconds(work: Callable[[], object]) -> float:
    before = time.monotonic()
    work()
    return time.monotonic() - before


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
