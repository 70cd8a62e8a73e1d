"""A machine's run."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from asikit.replay.machine import entry_name
from asikit.report import view
from asikit.report._words import FLUSH_WORDS, REASON_WORDS

if TYPE_CHECKING:
    from asikit.machine.kernel import Machine, MachineReport
    from asikit.machine.kernel.objects.process import Process

__all__ = ["run_report"]

_FAULT_WORDS = {
    "asi": "happen only because of ASI",
    "user": "in user mode",
    "kernel": "in kernel mode, with or without ASI",
    "spurious": "spurious: another CPU was faster",
    "double": "double faults",
}


def run_report(title: str, machine: Machine, report: MachineReport) -> view.Report:
    """Return what happened, in one screen.

    :param title: The scenario's.
    """
    config = machine.config
    cpus = "1 CPU" if config.cpus == 1 else f"{config.cpus} CPUs"
    threads = ", hyperthreads" if config.smt else ""
    head = f"asi={'on' if report.mechanism == 'asi' else report.mechanism}, {cpus}{threads}, seed {config.seed}"
    parts: list[view.Note | view.Section] = [view.Note(head), view.Section((_facts(report),))]
    if report.by_entry:
        parts.append(view.Section((_entries(report),), "How the kernel was entered"))
    if machine.console:
        written = machine.console.decode(errors="backslashreplace").rstrip("\n")
        parts.append(view.Section((view.Verbatim(written),), "What was written to the console"))
    killed = [process for process in machine.processes if (process.exit_code or 0) < 0]
    parts += [
        view.Note(f"{process.name!r} was killed: {_signal(process)}", style=view.Style.WARNING) for process in killed
    ]
    return view.Report(tuple(parts), title)


def _signal(process: Process) -> str:
    return signal.Signals(-(process.exit_code or 0)).name


def _facts(report: MachineReport) -> view.Table:
    rows: list[tuple[str, int, str]] = [("round trips", report.round_trips, "kernel entry to return")]
    if report.mechanism == "asi":
        rows.append(("  without an exit", report.round_trips_without_exit, "ran restricted to the end, no flush"))
        rows.append(("exits", report.exits, "changes to the unrestricted address space"))
    reasons = sorted(report.exits_by_reason.items(), key=lambda item: (-item[1], item[0]))
    rows += [(f"  {name.replace('_', ' ')}", count, REASON_WORDS[name]) for name, count in reasons if count]
    rows += [(name.replace("_", " "), count, FLUSH_WORDS[name]) for name, count in report.flushes.items()]
    if report.mechanism != "off":
        kept = f", {report.cr3_writes_noflush:,} kept the TLB" if report.cr3_writes_noflush else ""
        rows.append(("CR3 writes", report.cr3_writes, f"of {report.hw_cr3_writes:,} in all{kept}"))
    if report.stuns:
        rows.append(("stuns", report.stuns, "the sibling hyperthread was stopped"))
    rows += [("page faults", count, _FAULT_WORDS[name]) for name, count in sorted(report.faults.items()) if count]
    rows += [(f"{name} interrupts", count, "") for name, count in sorted(report.interrupts.items()) if count]
    tlb = report.tlb
    rows.append(("TLB misses", tlb.misses, f"of {tlb.hits + tlb.misses:,} lookups; {tlb.flushes:,} flushes"))
    if tlb.shootdowns:
        rows.append(("shootdowns", tlb.shootdowns, f"flushes that interrupted other CPUs, {tlb.ipis:,} times"))
    if report.allocations.get("flips"):
        rows.append(("pageblock flips", report.allocations["flips"], "changes of sensitivity"))
    columns = (view.Column(), view.Column(number=True), view.Column(breaks=True))
    return view.Table(columns, tuple(view.Row((name, f"{count:,}", words)) for name, count, words in rows), ruled=False)


def _entries(report: MachineReport) -> view.Table:
    asi = report.mechanism == "asi"
    rows = []
    for (kind, number), (trips, exits, without) in sorted(report.by_entry.items(), key=lambda row: (-row[1][0], row)):
        counts = (f"{without:,}", f"{exits:,}") if asi else ("-", "-")
        rows.append(view.Row((entry_name(kind, number), f"{trips:,}", *counts)))
    numbers = (view.Column(heading, number=True) for heading in ("round trips", "without exit", "exits"))
    return view.Table((view.Column("entry", breaks=True), *numbers), tuple(rows), ruled=False)
