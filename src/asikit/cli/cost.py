"""``asi cost``: what mitigations cost on a recorded workload and a processor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from asikit.cli._html import html_option, write_html
from asikit.cli._output import show, warn, write_json
from asikit.cli._selecting import selected, selecting

if TYPE_CHECKING:
    from pathlib import Path

    from asikit.cost import CostResult, Range
    from asikit.report.view import Report

_DEFAULT_POLICY = "denylist-2025"
_DEFAULT_MITIGATIONS = "none,linux,blanket,asi"
_DEFAULT_TOP = 5


@click.command()
@click.argument("trace", type=click.Path(), required=False)
@click.option(
    "--cpu", "cpus", metavar="MODEL|FILE.toml", multiple=True, help="The processor; several, or a comma list."
)
@click.option(
    "--policy",
    "policies",
    metavar="NAME|FILE.toml",
    multiple=True,
    help=f"Which memory is sensitive under ASI; several, or a comma list. [default: {_DEFAULT_POLICY}]",
)
@click.option(
    "--mitigation",
    "mitigations",
    metavar="NAME|FILE.toml",
    multiple=True,
    help="What guards the kernel; several, or a comma list. linux:-retbleed:-mds is linux without these."
    f" [default: {_DEFAULT_MITIGATIONS}]",
)
@selecting(cpu_options=("--on-cpu",))
@click.option("--base-seconds", metavar="S", type=float, help="CPU seconds of the run without mitigations, measured.")
@click.option("--cpi", metavar="LOW[:MID]:HIGH", help="Cycles for an instruction, instead of the processor's range.")
@click.option("--smt", is_flag=True, help="The machine runs work on its sibling threads.")
@click.option("--each", is_flag=True, help="Print what each vulnerability's mitigation costs.")
@click.option("--why", is_flag=True, help="Print every term, and the source of every figure.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.cost/1).")
@html_option
@click.option("--top", type=click.IntRange(min=0), default=_DEFAULT_TOP, show_default=True, help="Parameters to show.")
@click.option("--list-cpus", is_flag=True, help="List the processors that come with asikit, and stop.")
def command(
    trace: str | None,
    *,
    cpus: tuple[str, ...],
    policies: tuple[str, ...],
    mitigations: tuple[str, ...],
    base_seconds: float | None,
    cpi: str | None,
    smt: bool,
    each: bool,
    why: bool,
    as_json: bool,
    html: Path | None,
    top: int,
    list_cpus: bool,
    **part: Any,  # noqa: ANN401  (the options of _selecting)
) -> None:
    """Say what mitigations cost: time added, and where it comes from.

    TRACE is a folder NAME.asitrace that `asi record` wrote. MODEL is one of `asi cost --list-cpus`, or a TOML file of
    yours (docs/cpu-models.md), for example one that `asi calibrate` wrote.
    """
    if list_cpus:
        _list_cpus()
        return
    context = click.get_current_context()
    if trace is None:
        raise click.UsageError("missing argument 'TRACE'", context)
    if not cpus:
        raise click.UsageError("missing option '--cpu': one of `asi cost --list-cpus`", context)
    if base_seconds is not None and not 0 < base_seconds < float("inf"):
        raise click.BadParameter("must be greater than 0", param_hint="'--base-seconds'")
    if base_seconds is not None and cpi is not None:
        raise click.UsageError("--base-seconds and --cpi are alternatives", context)
    # Whatever reads a trace is slow to import.
    from asikit.cost import BaseTime, price
    from asikit.machine.x86 import load_cpu
    from asikit.replay import load_policy
    from asikit.trace import Trace

    selection, by = selected(**part)
    result = price(
        Trace.open(trace),
        [load_cpu(name) for name in _names(cpus)],
        policies=[load_policy(name) for name in _names(policies or (_DEFAULT_POLICY,))],
        mitigations=_names(mitigations or (_DEFAULT_MITIGATIONS,)),
        base_time=BaseTime(base_seconds, None if cpi is None else _range(cpi)),
        smt=smt,
        selection=selection,
        by=by,
        each=each,
    )
    warn(result.warnings)
    identity = {name: str(result.trace[key]) for name, key in (("trace", "content_hash"), ("kernel", "kernel"))}
    write_html(html, lambda: _with_sources(result, top), **identity)
    if as_json:
        _write_json(result)
    else:
        _print(result, top=top, why=why)


def _names(items: tuple[str, ...]) -> list[str]:
    names = [name.strip() for item in items for name in item.split(",")]
    return list(dict.fromkeys(name for name in names if name))


def _range(text: str) -> Range:
    from asikit.cost import Range

    try:
        figures = [float(part) for part in text.split(":")]
    except ValueError:
        figures = []
    if len(figures) == 1:
        figures *= 3
    if len(figures) == 2:  # noqa: PLR2004
        figures.insert(1, sum(figures) / 2)
    if len(figures) != 3 or figures != sorted(figures) or not 0 < figures[0] <= figures[2] < float("inf"):  # noqa: PLR2004
        raise click.BadParameter(f"{text!r} is not LOW:HIGH or LOW:MID:HIGH", param_hint="'--cpi'")
    return Range(*figures)


def _list_cpus() -> None:
    from asikit.machine.x86 import cpu_names, load_cpu
    from asikit.report.view import Report, choices

    models = {name: load_cpu(name) for name in cpu_names()}
    titles = {name: f"{model.title} ({model.microarchitecture})" for name, model in models.items()}
    show(Report((choices(titles),)))


def _write_json(result: CostResult) -> None:
    document = result.to_dict()
    del document["schema"]  # the envelope has it
    write_json("cost", document)


def _print(result: CostResult, *, top: int, why: bool) -> None:
    from asikit.report import cost_report, cost_sources

    show(cost_report(result, top=top))
    if why:
        show(cost_sources(result))


def _with_sources(result: CostResult, top: int) -> Report:
    """Return what a page says: the sources too, as it has room."""
    from asikit.report import cost_report, cost_sources
    from asikit.report.view import Report

    return Report((*cost_report(result, top=top).parts, *cost_sources(result).parts), "What mitigations cost")
