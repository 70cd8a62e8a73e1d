"""All benchmarks, one after the other; exit status 1 if one falls short of what the project promises."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = ("start.py", "replay.py", "record.py", "machine.py", "allocator.py", "paging.py")


def main() -> int:
    """Run each in a process of its own, so that one's memory is not another's."""
    folder = Path(__file__).parent
    return max(subprocess.run([sys.executable, folder / name], check=False).returncode for name in BENCHMARKS)


if __name__ == "__main__":
    sys.exit(main())
