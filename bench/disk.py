"""What the guest's disk changes: exits of the same workload on a disk made up as it is read, and on a real ext4.

`make distortion` runs it; a word after `python -m bench.disk` is the root to record in, which has python3, gcc and fio.
Without one it is the root of Debian 13 that tools/in-debian makes, which takes root. The real file system is an image
that mke2fs makes of the same root, mounted with its own defaults. Exit status 1 if a distance is not below the bound.

While a guest waits for its disk its time is this machine's: where that has other things to do, more timers expire in
one recording than in the other. So a pair that differs too much is recorded again, and the least distance counts.
"""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from asikit.record import Recording, Streams, record
from asikit.record._build import cache_folder
from asikit.record.disk import GuestDisk
from asikit.replay import load_policy, replay
from asikit.trace import Trace

TOP = Path(__file__).parents[1]
FOLDER = TOP / "build/disk"
SUITE, ROOT = "13", "debian/roots/trixie"
BLOCK_BYTES = 4096
FREE_MIB = 512
POLICY = "denylist-2025"
BOUND = 0.05
TRIES = 3

PYTHON = "python3 -c 'import json, re, os, subprocess, email, http.client; print(len(json.dumps(list(range(1000)))))'"
SOURCE = '#include <stdio.h>\\nint main(void) { puts("x"); }'
GCC = f"cd /tmp && printf '{SOURCE}' > a.c && gcc -O2 -o a a.c && ./a"
FIO = (
    "mkdir -p /var/w && fio --name=job --filename=/var/w/data --size=24m --rw=randrw --bs=4k --ioengine=psync --thread"
)
WORKLOADS = {"python": PYTHON, "gcc": GCC, "fio": FIO}


class ImageDisk(GuestDisk):
    """A file system that lies in a file; the file is not changed."""

    def __init__(self, image: Path) -> None:
        """Open it."""
        super().__init__(image.stat().st_size)
        self._image = image.open("rb", buffering=0)

    def close(self) -> None:
        """Close the file, and forget what was written."""
        self._image.close()
        super().close()

    def unwritten(self, first: int, count: int) -> bytes:
        """Read blocks of the file."""
        return os.pread(self._image.fileno(), count * BLOCK_BYTES, first * BLOCK_BYTES)


def main(chosen: list[str]) -> int:
    """Print the distance for each workload; 1 if one is beyond the bound."""
    root = Path(chosen[0]) if chosen else _debian()
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir(parents=True)
    try:
        image = _image(root)
        distances = [_distance(name, root, image) for name in WORKLOADS]
    finally:
        shutil.rmtree(FOLDER)
    return int(max(distances) >= BOUND)


def _debian() -> Path:
    """Give the root of Debian 13, with what the workloads need."""
    install = "command -v fio >/dev/null || { apt-get update && apt-get install --no-install-recommends fio; }"
    subprocess.run([TOP / "tools/in-debian", SUITE, "sh", "-c", install], check=True, stdout=sys.stderr)
    return cache_folder() / ROOT


def _image(root: Path) -> Path:
    """Make a real file system of a root's files."""
    image = FOLDER / "ext4"
    files = (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names)  # noqa: PTH118  (quick)
    mib = (sum(os.lstat(file).st_blocks for file in files) >> 11) * 5 // 4 + FREE_MIB
    mke2fs = shutil.which("mke2fs", path=f"{os.environ['PATH']}:/usr/sbin:/sbin") or sys.exit("mke2fs is missing")
    options = ("-q", "-F", "-t", "ext4", "-b", str(BLOCK_BYTES))
    subprocess.run([mke2fs, *options, "-d", root, image, f"{mib}M"], check=True, stdout=subprocess.DEVNULL)
    return image


def _distance(name: str, root: Path, image: Path) -> float:
    """Give the total variation distance of a workload's exits by cause: the part of them that is elsewhere."""
    distances: list[float] = []
    while len(distances) < TRIES and min(distances, default=BOUND) >= BOUND:
        made_up, real = _exits(name, root, None), _exits(name, root, image)
        shares = [(made_up[cause] / made_up.total(), real[cause] / real.total()) for cause in made_up | real]
        distances.append(sum(abs(one - other) for one, other in shares) / 2)
        counts = f"{made_up.total():,} exits, {real.total():,} on ext4"
        print(f"{name}: total variation distance {distances[-1]:.3f} ({counts}; promised: below {BOUND})", flush=True)
    return min(distances)


def _exits(name: str, root: Path, image: Path | None) -> Counter[tuple[object, ...]]:
    """Record and replay; give the exits of each cause."""
    trace = FOLDER / f"{name}.asitrace"
    out, err = io.BytesIO(), io.BytesIO()
    recording = Recording(("sh", "-c", WORKLOADS[name]), root=root)
    with ExitStack() as stack:
        disk = None if image is None else stack.enter_context(ImageDisk(image))
        done = record(recording, trace, say=_say, overwrite=True, streams=Streams.to(out, err), disk=disk)
    if done.exit_status:
        sys.exit(f"{name} ended with {done.exit_status} in {root}: {err.getvalue().decode(errors='replace')}")
    (result,) = replay(Trace.open(trace), [load_policy(POLICY)])
    exits: Counter[tuple[object, ...]] = Counter()
    for cause in result.causes:
        what = (cause.reason, cause.function, cause.caller, cause.access, cause.region, cause.kind, cause.cache)
        exits[what] += cause.exits
    return exits


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
