"""Workloads that people mean, and recording one as it is typed on a shell."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["TOP", "WORKLOADS", "Outcome", "Workload", "record_as_typed"]

TOP = Path(__file__).parents[3]
"""The checkout: workloads run there."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A line of table.toml, which says what its fields mean."""

    name: str
    packages: tuple[str, ...]
    command: str
    shows: str
    as_root: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """How recording a workload ended.

    :ivar status: The shell's exit status, which is the workload's.
    :ivar seconds: How long it took, from typing to the prompt.
    :ivar cpu_seconds: For how long it had a processor.
    """

    status: int
    out: str
    err: str
    seconds: float
    cpu_seconds: float

    def shows(self, workload: Workload) -> bool:
        """Tell whether the output says that the workload did what it is there for."""
        return re.search(workload.shows, self.out + self.err, re.MULTILINE) is not None


def _load() -> dict[str, Workload]:
    table = tomllib.loads((Path(__file__).with_name("table.toml")).read_text(encoding="utf-8"))
    return {
        name: Workload(name, tuple(row.pop("packages")), row.pop("command").strip(), **row)
        for name, row in table.items()
    }


WORKLOADS = _load()


def record_as_typed(workload: Workload, trace: Path, more: Iterable[str] = ()) -> Outcome:
    """Have a shell run the command, in which ``asi record`` also has ``-o TRACE`` and more options."""
    asi = [sys.executable, "-c", "from asikit.cli import main; main()"]
    options = ["--overwrite", "-o", str(trace), *more]
    shell = f'asi() {{ shift; {shlex.join(asi)} record {shlex.join(options)} "$@"; }}\n{workload.command}'
    begun, before = time.monotonic(), os.times()
    done = subprocess.run(["/bin/sh", "-c", shell], cwd=TOP, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    seconds, after = time.monotonic() - begun, os.times()
    return Outcome(
        done.returncode,
        done.stdout.decode(errors="replace"),
        done.stderr.decode(errors="replace"),
        seconds,
        after.children_user + after.children_system - before.children_user - before.children_system,
    )
