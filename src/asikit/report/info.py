"""What a trace holds."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from asikit.report._words import size_text
from asikit.report.view import Column, Note, Report, Row, Section, Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asikit.trace import Trace, TraceSummary

__all__ = ["info_report"]

_EVENT_WORDS = {  # in the order in which they are shown
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


def info_report(trace: Trace, summary: TraceSummary, *, verified: bool) -> Report:
    """Return where a trace comes from, and how much of what is in it.

    :param verified: Every id and clock was checked, too.
    """
    facts = tuple(Row((f"  {label}", text)) for label, text in _facts(trace, summary, verified=verified))
    trips = "A round trip is one stay in the kernel: from an entry to the return to user mode or to a guest."
    sections = (
        Section((Note(trips, "  "),), f"Round trips: {summary.round_trips:,}"),
        *_phases(trace, summary),
        _events(summary),
        _touches(summary),
    )
    table = Table((Column(), Column(breaks=True)), facts, ruled=False)
    return Report((table, *sections), trace.path.absolute().name)


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


def _phases(trace: Trace, summary: TraceSummary) -> tuple[Section, ...]:
    strays = trace.recorder.marks.ends_without_begin
    if not summary.phases and not strays:
        return ()
    what = "What the workload marked: how often, and the events and instructions of all CPUs in it."
    parts: list[Note | Table] = [Note(what, "  ")]
    if summary.phases:
        rows = (
            Row((f"  {phase.name}", f"{phase.times:,}", f"{phase.events:,}", f"{phase.instructions:,}"))
            for phase in summary.phases
        )
        parts.append(
            Table(
                (Column("  phase", breaks=True, least=34), *_numbers(times=5, events=12, instructions=16)),
                tuple(rows),
                ruled=False,
            )
        )
    parts += [
        Note(f"{phase.name}: {phase.not_ended:,} not ended, so to the end of the recording", "  ")
        for phase in summary.phases
        if phase.not_ended
    ]
    parts += [
        Note(f"{name}: {_plural(count, 'end')} without a beginning", "  ") for name, count in sorted(strays.items())
    ]
    return (Section(tuple(parts), f"Phases: {len(summary.phases):,}"),)


def _events(summary: TraceSummary) -> Section:
    counts = {kind.name: count for kind, count in summary.events.items()}
    rows = [Row((f"  {words}", f"{counts[name]:,}")) for name, words in _EVENT_WORDS.items() if counts[name]]
    rows += [
        Row((f"    {_TLB_FLUSH_WORDS[flush.name]}", f"{count:,}"))
        for flush, count in summary.tlb_flushes.items()
        if count
    ]
    table = Table((Column(breaks=True, least=38), Column(number=True, least=12)), tuple(rows), ruled=False)
    return Section((table,), f"Events: {sum(counts.values()):,}")


def _touches(summary: TraceSummary) -> Section:
    what = Note("A touch is the first read, write or instruction fetch of a page in a round trip.", "  ")
    rows = tuple(
        Row((f"  {touch.region}", touch.kind, f"{touch.read:,}", f"{touch.write:,}", f"{touch.fetch:,}"))
        for touch in summary.touches
    )
    columns = (
        Column("  region", least=16),
        Column("kind of page", least=14),
        *_numbers(reads=12, writes=12, fetches=12),
    )
    table = Table(columns, rows, ruled=False, keys=2)
    title = f"Touches: {sum(touch.total for touch in summary.touches):,}"
    return Section((what, table) if rows else (what,), title)


def _numbers(**widths: int) -> tuple[Column, ...]:
    """Return columns of figures, by heading and width."""
    return tuple(Column(heading, number=True, least=width) for heading, width in widths.items())


def _status(exit_status: int | None) -> str:
    return "" if exit_status is None else f"exit status {exit_status}"


def _plural(count: int | None, noun: str) -> str:
    return "" if count is None else f"{count:,} {noun}{'' if count == 1 else 's'}"


def _joined(*texts: str) -> str:
    return ", ".join(text for text in texts if text)
