"""What recording costs: the same boot and workload under QEMU with and without the recorder, in turn."""

import io
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

from asikit.linux import Recording, record, run_unrecorded

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


def main() -> None:
    """Print the ratio of times, and the recorder's memory beyond the guest's."""
    recording = Recording(WORKLOAD)
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "bench.asitrace"
        record(Recording(("true",)), trace, say=_say, overwrite=True, out=io.BytesIO(), err=io.BytesIO())  # warm caches
        ratios = [_pair(recording, trace) for _ in range(RUNS)]
    ratio = statistics.median(ratios)
    print(
        f"record: {ratio:.2f} times the unrecorded run (median of {RUNS}: {', '.join(f'{r:.2f}' for r in ratios)}; bound 2.5)"
    )
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    qemu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
    guest = recording.memory_bytes // MiB
    print(
        f"record: {own + qemu - guest} MiB of host memory beyond the guest's {guest} (asi {own}, QEMU {qemu}; bound 1536)"
    )


def _pair(recording: Recording, trace: Path) -> float:
    plain = _seconds(lambda: run_unrecorded(recording, say=_say, out=io.BytesIO(), err=io.BytesIO()))
    recorded = _seconds(lambda: record(recording, trace, say=_say, overwrite=True, out=io.BytesIO(), err=io.BytesIO()))
    return recorded / plain


def _seconds(work: "object") -> float:
    before = time.monotonic()
    work()  # type: ignore[operator]
    return time.monotonic() - before


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    main()
