"""The table of docs/workloads.md: each of the workloads recorded as it is typed on a shell, and replayed.

`make workloads` prints it (Markdown) and keeps the recordings in build/workloads; words after
`python -m bench.workloads` choose workloads: redis git. Exit status 1 if one did not do what it is there for.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from typing import TYPE_CHECKING

from tests.record.workloads import TOP, WORKLOADS, Outcome, Workload, record_as_typed

from asikit.replay import ReplayResult, load_policy, replay
from asikit.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

FOLDER = TOP / "build/workloads"
POLICIES = ("denylist-2025", "ephmap")
PATIENCE_SECONDS = 1800
HEAD = (
    *("workload", "status", "did it", "seconds", "CPU seconds", "G instructions", "events", "MiB", "round trips"),
    *(f"exits a round trip, {name}" for name in POLICIES),
    "most frequent causes (denylist-2025)",
)


def main(chosen: list[str]) -> int:
    """Record and replay, and print a row for each."""
    unknown = [name for name in chosen if name not in WORKLOADS]
    if unknown:
        print(f"error: no workload {unknown[0]!r}; there are {' '.join(WORKLOADS)}", file=sys.stderr)
        return 2
    FOLDER.mkdir(parents=True, exist_ok=True)
    print(_row(HEAD))
    print(_row("---" for _ in HEAD), flush=True)
    worked = [_run(WORKLOADS[name]) for name in chosen or WORKLOADS]
    return int(not all(worked))


def _run(workload: Workload) -> bool:
    if workload.as_root and os.geteuid() != 0:
        print(_row((workload.name, "left out: needs root", *[""] * (len(HEAD) - 2))), flush=True)
        return True
    subprocess.run([TOP / "tools/debian-packages", *workload.packages], check=True)
    trace = FOLDER / f"{workload.name}.asitrace"
    outcome = record_as_typed(workload, trace, ("--timeout", str(PATIENCE_SECONDS)))
    worked = outcome.status == 0 and outcome.shows(workload)
    if not worked:
        print(f"{workload.command}\n{outcome.out}{outcome.err}", file=sys.stderr)
    print(_row((*_recorded(workload, outcome, trace), *_replayed(trace))), flush=True)
    return worked


def _recorded(workload: Workload, outcome: Outcome, trace: Path) -> Iterable[object]:
    yield from (workload.name, outcome.status, "yes" if outcome.shows(workload) else "NO")
    yield from (f"{outcome.seconds:.0f}", f"{outcome.cpu_seconds:.0f}")
    if not trace.exists():
        return
    recording = Trace.open(trace)
    yield f"{sum(recording.meta['clock']['instructions']) / 1e9:.2f}"
    yield f"{recording.rows('events'):,}"
    yield f"{recording.size / (1 << 20):.1f}"


def _replayed(trace: Path) -> Iterable[object]:
    if not trace.exists():
        return
    results = replay(Trace.open(trace), [load_policy(name) for name in POLICIES])
    yield f"{results[0].round_trips:,}"
    for result in results:
        yield f"{result.exits / result.round_trips:.3f}"
    yield _causes(results[0])


def _causes(result: ReplayResult) -> str:
    """Give the functions with the most exits, whoever called them."""
    exits: Counter[str] = Counter()
    for cause in result.causes:
        exits[cause.function] += cause.exits
    return "; ".join(f"{count / result.exits:.0%} {function}" for function, count in exits.most_common(3))


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
