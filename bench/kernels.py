"""The table of docs/kernels.md: what was found in each kernel, and its own counts beside the recording's.

`make kernels` prints it (Markdown); words after `python -m bench.kernels` choose guests: 7.3 6.12-rt.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tests.record.asked import Asked, ask
from tests.record.counts import (
    all_switches,
    kinds_of_frames,
    page_faults,
    pages_allocated,
    pages_freed,
    timer_interrupts,
    wrong_kinds,
)
from tests.record.guests import GUESTS, Guest

from asikit.record import Recording, Streams, record
from asikit.replay import load_policy, replay
from asikit.trace import EventKind, Trace

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

TRUTH = Path(__file__).parents[1] / "tests/record/truth.c"
FIO = "--name=job --filename=/tmp/data --size=4m --io_size=8m --rw=randread --bs=4k --ioengine=psync --thread"
COUNTS = (page_faults, all_switches, pages_allocated, pages_freed, timer_interrupts)
HEAD = (
    *("kernel", "CPUs", "system calls", "page faults", "context switches", "pages allocated", "pages freed"),
    *("timer interrupts", "frames of the wrong kind", "exits a read, denylist-2025", "ephmap"),
)


def main(chosen: list[str]) -> int:
    """Print both tables; 1 if something does not agree."""
    guests = [guest for guest in GUESTS if not chosen or guest.kernel in chosen]
    forms: dict[str, dict[str, str]] = {}
    agree = True
    with tempfile.TemporaryDirectory() as folder:
        truth = Path(folder) / "truth"
        subprocess.run([shutil.which("cc") or "cc", "-O1", "-static", "-o", truth, TRUTH], check=True)
        print(_row(HEAD))
        print(_row("---" for _ in HEAD))
        for guest in guests:
            asked = _asked(guest.recording(str(truth)), Path(folder))
            kernel = asked.events.trace.meta["kernel"]
            name = " ".join(word for word in (kernel["release"], guest.append, guest.cpu) if word)
            forms[name] = kernel["forms"] | {f"no {what}": lost for what, lost in kernel["missing"].items()}
            counts = [count(asked) for count in COUNTS]
            kinds = kinds_of_frames(asked)
            wrong = wrong_kinds(asked, kinds)
            print(
                _row((name, guest.cpus, _calls(asked), *counts, f"{len(wrong)} of {len(kinds)}", *_fio(guest, folder)))
            )
            agree &= all(count.agrees for count in counts) and not wrong
    print()
    _print_forms(forms)
    return int(not agree)


def _asked(recording: Recording, folder: Path) -> Asked:
    out = io.BytesIO()
    trace = folder / "truth.asitrace"
    record(recording, trace, say=_say, overwrite=True, streams=Streams.to(out, io.BytesIO()))
    return ask(trace, out.getvalue().decode())


def _calls(asked: Asked) -> str:
    (question,) = asked.named("calls")
    calls = (asked.mine & asked.events.is_kind(EventKind.ENTRY_SYSCALL))[question.begin + 1 : question.end]
    return f"{int(calls.sum())} of 1000"


def _fio(guest: Guest, folder: str) -> Iterator[str]:
    """Give the exits of a read of a file on tmpfs under two policies."""
    out = io.BytesIO()
    trace = Path(folder) / "fio.asitrace"
    fio = guest.recording("fio", *FIO.split(), "--output-format=json")
    record(fio, trace, say=_say, overwrite=True, streams=Streams.to(out, io.BytesIO()))
    issued = json.loads(out.getvalue())["jobs"][0]["read"]["total_ios"]
    for result in replay(Trace.open(trace), [load_policy(name) for name in ("denylist-2025", "ephmap")]):
        (row,) = [row for row in result.by_entry if row.entry == "syscall pread64"]
        yield f"{row.exits / issued:.3f}"


def _print_forms(forms: dict[str, dict[str, str]]) -> None:
    facts = list(dict.fromkeys(fact for found in forms.values() for fact in found))
    print(_row(["kernel", *facts]))
    print(_row("---" for _ in [0, *facts]))
    for release, found in forms.items():
        print(_row([release, *(found.get(fact, "") for fact in facts)]))


def _row(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
