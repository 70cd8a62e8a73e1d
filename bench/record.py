"""What recording costs: the same boot and workload under QEMU with and without the recorder, in turn."""

import io
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.linux import Recording, record, run_unrecorded

if TYPE_CHECKING:
    from collections.abc import Callable

MiB = 1 << 20
WORKLOAD = (
    "fio",
    *[
        "--name=job",
        "--filename=/tmp/data",
        "--size=48m",
        "--io_size=96m",
        "--rw=randread",
        "--bs=4k",
        "--ioengine=psync",
        "--thread",
    ],
)
RUNS = 3
MEMORY = 512 * MiB
"""Little enough for the guest to use all of it: what lies beyond it is the recorder's."""

BOUND_RATIO = 2.5
BOUND_MIB = 1536


def main() -> int:
    """Print the ratio of times, and the recorder's memory beyond the guest's; 1 if a figure is beyond its bound."""
    recording = Recording(WORKLOAD, memory_bytes=MEMORY)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "bench.asitrace"
        record(Recording(("true",)), trace, say=_say, overwrite=True, out=io.BytesIO(), err=io.BytesIO())  # warm caches
        ratios = [_pair(recording, trace) for _ in range(RUNS)]
    ratio = statistics.median(ratios)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    qemu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    beyond = own + qemu - recording.memory_bytes // MiB
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"recording takes {ratio:.2f} times the unrecorded run (median of {each}; promised: at most {BOUND_RATIO})")
    print(f"and {beyond} MiB beyond the guest's memory (asi {own}, QEMU {qemu}; promised: at most {BOUND_MIB})")
    return int(ratio > BOUND_RATIO or beyond > BOUND_MIB)


def _pair(recording: Recording, trace: Path) -> float:
    plain = _seconds(lambda: run_unrecorded(recording, say=_say, out=io.BytesIO(), err=io.BytesIO()))
    recorded = _seconds(lambda: record(recording, trace, say=_say, overwrite=True, out=io.BytesIO(), err=io.BytesIO()))
    return recorded / plain


def _seconds(work: "Callable[[], object]") -> float:
    before = time.monotonic()
    work()
    return time.monotonic() - before


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
