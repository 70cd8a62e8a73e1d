"""``asi info``: what a trace holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from asikit.cli._output import show, write_json

if TYPE_CHECKING:
    from asikit.trace import Trace, TraceSummary


@click.command()
@click.argument("trace", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.info/1).")
@click.option("--verify", is_flag=True, help="Also check every id and clock in the trace.")
def command(trace: str, *, as_json: bool, verify: bool) -> None:
    """Say what a trace holds: kernel, machine, workload, counts, losses.

    TRACE is a folder NAME.asitrace that `asi record` wrote.
    """
    from asikit.trace import Trace, summarize

    opened = Trace.open(trace)
    if verify:
        opened.verify()
    summary = summarize(opened)
    if as_json:
        write_json("info", _document(opened, summary, verified=verify))
    else:
        from asikit.report import info_report

        show(info_report(opened, summary, verified=verify))


def _document(trace: Trace, summary: TraceSummary, *, verified: bool) -> dict[str, Any]:
    from asikit.trace import TABLES, VERSION

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
