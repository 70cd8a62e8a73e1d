"""``asi info``: what a trace holds."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from asikit.cli._output import console, size_text, write_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

    from asikit.trace import Trace, TraceSummary

# What each kind of event is called in the text, in the order in which it is shown.
_EVENT_WORDS = {
    "ENTRY_SYSCALL": "system calls from user mode",
    "ENTRY_EXCEPTION": "exceptions from user mode",
    "ENTRY_INTERRUPT": "interrupts from user mode",
    "ENTRY_NMI": "NMIs from user mode",
    "VM_EXIT": "VM exits (guest to kernel)",
    "RETURN_USER": "returns to user mode",
    "VM_ENTRY": "VM entries (kernel to guest)",
    "NESTED_EXCEPTION": "nested exceptions (in the kernel)",
    "NESTED_INTERRUPT": "nested interrupts",
    "NESTED_NMI": "nested NMIs",
    "NESTED_RETURN": "returns from nested entries",
    "TOUCH_READ": "first reads of a page",
    "TOUCH_WRITE": "first writes of a page",
    "TOUCH_FETCH": "first instruction fetches of a page",
    "TASK_SWITCH": "task switches",
    "MM_SWITCH": "address space (mm) switches",
    "PAGE_ALLOC": "page allocations",
    "PAGE_FREE": "page frees",
    "TLB_FLUSH": "TLB flushes",
}
_TLB_FLUSH_WORDS = {
    "USER": "of all user addresses",
    "KERNEL": "of all kernel addresses",
    "USER_RANGE": "of pages at user addresses",
    "KERNEL_RANGE": "of pages at kernel addresses",
}


@click.command()
@click.argument("trace", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.info/1).")
@click.option("--verify", is_flag=True, help="Also check every id and clock in the trace.")
def command(trace: str, *, as_json: bool, verify: bool) -> None:
    """Say what a trace holds: kernel, machine, workload, counts, losses.

    TRACE is a folder NAME.asitrace that `asi record` wrote.
    """
    from asikit.trace import Trace, summarize  # noqa: PLC0415  (polars is slow to import)

    opened = Trace.open(trace)
    if verify:
        opened.verify()
    summary = summarize(opened)
    if as_json:
        write_json("info", _document(opened, summary, verified=verify))
    else:
        _print(console(), opened, summary, verified=verify)


def _document(trace: Trace, summary: TraceSummary, *, verified: bool) -> dict[str, Any]:
    from asikit.trace import TABLES, VERSION  # noqa: PLC0415

    shown = ("source", "kernel", "machine", "workload", "clock", "lost", "marks")
    return {
        "trace": trace.path.absolute().name,
        "version": trace.meta.get("version", VERSION),
        **{key: trace.meta.get(key) for key in shown},
        "bytes": trace.size,
        "content_hash": trace.content_hash,
        "verified": verified,
        "rows": {table: trace.rows(table) for table in TABLES},
        "cpus": [asdict(cpu) for cpu in summary.cpus],
        "round_trips": summary.round_trips,
        "events": {kind.name.lower(): count for kind, count in summary.events.items()},
        "tlb_flushes": {flush.word: count for flush, count in summary.tlb_flushes.items()},
        "phases": [asdict(phase) for phase in summary.phases],
        "touches": [asdict(touch) for touch in summary.touches],
    }


def _print(out: Console, trace: Trace, summary: TraceSummary, *, verified: bool) -> None:
    out.print(_printable(trace.path.absolute().name), style="bold")
    for label, text in _facts(trace, summary, verified=verified):
        out.print(f"  {label:<14}{_printable(text)}")
    out.print()
    out.print(f"Round trips: {summary.round_trips:,}", style="bold")
    out.print("  A round trip is one stay in the kernel: from an entry to the return to user mode or to a guest.")
    _print_phases(out, trace, summary)
    _print_events(out, summary)
    _print_touches(out, summary)


def _facts(trace: Trace, summary: TraceSummary, *, verified: bool) -> Iterator[tuple[str, str]]:
    recorder = trace.recorder
    kernel, machine, workload = recorder.kernel, recorder.machine, recorder.workload
    yield "source", recorder.source
    yield "workload", _joined(shlex.join(workload.command), _status(workload.exit_status)) or "unknown"
    yield "kernel", kernel.release or kernel.version or "unknown"
    for what, without in kernel.missing.items():
        yield "kernel lacks", f"{what}: {without}"
    yield "command line", kernel.command_line or "unknown"
    yield (
        "machine",
        _joined(
            _plural(machine.cpus, "CPU"),
            size_text(machine.memory_bytes) if machine.memory_bytes is not None else "",
            machine.cpu_model or "",
            machine.emulator or "",
        )
        or "unknown",
    )
    for cpu in summary.cpus:
        yield "clock", f"CPU {cpu.cpu}: {cpu.clock:,} instructions, {cpu.events:,} events"
    lost = [f"{count:,} {what}" for what, count in sorted(recorder.lost.items()) if count]
    yield "lost", ", ".join(lost) or "nothing"
    parts = len(trace.files("events"))
    yield "size", f"{size_text(trace.size)} on disk, {trace.rows('events'):,} events in {_plural(parts, 'part')}"
    yield "content hash", trace.content_hash
    yield "checked", "every hash, id and clock" if verified else "every hash (--verify also checks ids and clocks)"


def _print_phases(out: Console, trace: Trace, summary: TraceSummary) -> None:
    strays = trace.recorder.marks.ends_without_begin
    if not summary.phases and not strays:
        return
    out.print()
    out.print(f"Phases: {len(summary.phases):,}", style="bold")
    out.print("  What the workload marked: how often, and the events and instructions of all CPUs in it.")
    if summary.phases:
        out.print(f"  {'phase':<32}{'times':>7}{'events':>14}{'instructions':>18}")
    for phase in summary.phases:
        out.print(f"  {_printable(phase.name):<32}{phase.times:>7,}{phase.events:>14,}{phase.instructions:>18,}")
    for phase in summary.phases:
        if phase.not_ended:
            out.print(f"  {_printable(phase.name)}: {phase.not_ended:,} not ended, so to the end of the recording")
    for name, count in sorted(strays.items()):
        out.print(f"  {_printable(name)}: {_plural(count, 'end')} without a beginning")


def _print_events(out: Console, summary: TraceSummary) -> None:
    out.print()
    out.print(f"Events: {sum(summary.events.values()):,}", style="bold")
    counts = {kind.name: count for kind, count in summary.events.items()}
    for name, words in _EVENT_WORDS.items():
        if counts[name]:
            out.print(f"  {words:<36}{counts[name]:>14,}")
    for flush, count in summary.tlb_flushes.items():
        if count:
            out.print(f"    {_TLB_FLUSH_WORDS[flush.name]:<34}{count:>14,}")


def _print_touches(out: Console, summary: TraceSummary) -> None:
    touches = summary.touches
    out.print()
    out.print(f"Touches: {sum(touch.total for touch in touches):,}", style="bold")
    out.print("  A touch is the first read, write or instruction fetch of a page in a round trip.")
    if not touches:
        return
    out.print(f"  {'region':<16}{'kind of page':<14}{'reads':>14}{'writes':>14}{'fetches':>14}")
    for touch in touches:
        out.print(f"  {touch.region:<16}{touch.kind:<14}{touch.read:>14,}{touch.write:>14,}{touch.fetch:>14,}")


def _printable(text: str) -> str:
    """Escape what would move a terminal's cursor: a trace may come from somebody else."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _status(exit_status: int | None) -> str:
    return "" if exit_status is None else f"exit status {exit_status}"


def _plural(count: int | None, noun: str) -> str:
    return "" if count is None else f"{count:,} {noun}{'' if count == 1 else 's'}"


def _joined(*texts: str) -> str:
    return ", ".join(text for text in texts if text)
