"""How much of a processor's time short commands take, from the first instruction to the last: `asi replay` on a sample.

    python bench/start.py

A figure is the median of several runs after one that fills the caches. It is user and system time of the whole process,
which a machine that is busy with something else changes less than the time that passes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from statistics import median

RUNS = 7
WANTED_REPLAY_SECONDS = 0.6
WANTED_HELP_SECONDS = 0.15


def main() -> int:
    """Measure and print; 1 if a figure is not what the project promises."""
    asi = str(Path(sys.executable).with_name("asi"))
    bare = _seconds([sys.executable, "-c", ""])
    print(f"an empty Python: {bare:.3f} s of processor time")
    fine = _shown("asi --help", _seconds([asi, "--help"]), bare, WANTED_HELP_SECONDS)
    for sample in sorted(Path(str(files("asikit.data") / "samples")).glob("*.asitrace")):
        taken = _seconds([asi, "replay", str(sample)])
        fine &= _shown(f"asi replay {sample.name}", taken, bare, WANTED_REPLAY_SECONDS)
    return int(not fine)


def _shown(name: str, taken: float, bare: float, wanted: float) -> bool:
    print(f"{name}: {taken:.3f} s, {taken / bare:.0f} times an empty Python (promised: at most {wanted} s)")
    return taken <= wanted


def _seconds(words: list[str]) -> float:
    """Return the processor time of a command."""
    return median([_once(words) for _ in range(RUNS + 1)][1:])


def _once(words: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(words, stdout=subprocess.DEVNULL, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    sys.exit(main())
