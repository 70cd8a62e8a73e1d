"""A measurement as a mailing list wants it: plain text of 75 columns, and how to make it again.

Documentation/process/submitting-patches.rst of the kernel: text is wrapped at 75 columns.
"""

from __future__ import annotations

import shlex
from textwrap import wrap
from typing import TYPE_CHECKING, Final

from asikit import __version__
from asikit.report import compare_replays, replay_report
from asikit.report.view.text import text

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from asikit.replay import ReplayResult
    from asikit.trace import Trace

__all__ = ["lkml"]

_COLUMNS: Final = 75
_INDENT: Final = "  "
_LABEL: Final = 10
_CAUSES: Final = 5


def lkml(trace: Trace, results: Sequence[ReplayResult], where: str | None) -> Iterator[bytes]:
    """Give the text.

    :param where: What of the recording was counted, as it was given.
    """
    for paragraph in (_head(), _facts(trace), _table(results), _again(trace, results, where)):
        yield f"{paragraph}\n".encode()


def _head() -> str:
    says = (
        "The workload below was recorded on a stock kernel, and the recording was run through the protocol of Address "
        "Space Isolation: what follows is predicted, not measured on a kernel with ASI."
    )
    return "".join(f"{line}\n" for line in wrap(says, _COLUMNS))


def _facts(trace: Trace) -> str:
    recorder = trace.recorder
    machine = recorder.machine
    cpus = "1 CPU" if machine.cpus == 1 else f"{machine.cpus} CPUs"
    facts = {
        "Kernel:": recorder.kernel.release,
        "Booted:": recorder.kernel.command_line,
        "Machine:": f"{machine.cpu_model}, {cpus}, {_memory(machine.memory_bytes)}; {machine.emulator}",
        "Workload:": shlex.join(recorder.workload.command),
        "Recorder:": f"asikit {__version__}; trace {trace.content_hash[:16]}",
    }
    lines = []
    for label, value in facts.items():
        if value:
            broken = wrap(value, _COLUMNS - _LABEL, break_on_hyphens=False) or [value]
            lines += [f"{label:{_LABEL}}{broken[0]}", *(" " * _LABEL + line for line in broken[1:])]
    return "".join(f"{line}\n" for line in lines)


def _memory(size: int | None) -> str:
    return "memory unknown" if size is None else f"{size >> 20} MiB"


def _table(results: Sequence[ReplayResult]) -> str:
    width = _COLUMNS - len(_INDENT)
    report = replay_report(results[0], top=_CAUSES) if len(results) == 1 else compare_replays(results)
    plain = text(report, width).replace("─", "-")  # a patch's mail is ASCII
    return "".join(f"{_INDENT}{line}".rstrip() + "\n" for line in plain.splitlines())


def _again(trace: Trace, results: Sequence[ReplayResult], where: str | None) -> str:
    name = trace.path.name
    record = ["asi", "record", "-o", name, "--", *trace.recorder.workload.command]
    policies = ",".join(result.policy for result in results)
    replay = ["asi", "replay", name, "--policy", policies, *(["--where", where] if where else [])]
    return "To reproduce:\n\n" + "".join(_command(words) for words in (record, replay))


def _command(words: Sequence[str]) -> str:
    """Return a command that can be pasted, continued on further lines where it is long."""
    lines, line = [], _INDENT
    for word in map(shlex.quote, words):
        if line.strip() and len(line) + len(word) + 3 > _COLUMNS:
            lines.append(f"{line.rstrip()} \\")
            line = _INDENT * 3
        line += f"{word} "
    return "\n".join([*lines, line.rstrip()]) + "\n"
