"""``asi demo``: the sample recordings under three policies, and what that costs on two processors."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from asikit.cli._html import write_recordings
from asikit.cli._output import show, write_json
from asikit.cli._shipped import programs, samples, scenarios

SAMPLES = ("page-cache", "processes", "kvm-guest")
POLICIES = ("blanket", "denylist-2025", "ephmap")
CPUS = ("skylake-6600u", "zen2-7452")
MITIGATIONS = ("none", "linux", "blanket", "asi")
PRICED_POLICY = "ephmap"
_PAGE = "asi-demo.html"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.demo/1).")
@click.option(
    "--html",
    is_flag=False,
    flag_value=_PAGE,
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="[FILE]",
    help=f"Write the page of `asi report` about them [{_PAGE}], open it in a browser if there is a terminal, and stop.",
)
@click.option(
    "--copy",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Copy the sample recordings, their programs and the scenarios of asi run to DIR, a new folder, and stop.",
)
def command(*, as_json: bool, html: Path | None, copy: Path | None) -> None:
    """Replay the sample recordings under three policies, and price them on two processors.

    The samples come with the package: they were made with `asi record` from a stock Debian kernel (samples/record.sh).
    """
    if sum((as_json, html is not None, copy is not None)) > 1:
        raise click.UsageError("--json, --html and --copy each do another thing: give one", click.get_current_context())
    if copy is not None:
        _copy(copy)
        return
    if html is not None:
        _page(html)
        return
    from asikit.cost import price
    from asikit.machine.x86 import load_cpu
    from asikit.replay import load_policy, replay
    from asikit.report import overview
    from asikit.trace import Trace

    folders = {path.stem: path for path in samples()}
    policies = [load_policy(name) for name in POLICIES]
    traces = {name: Trace.open(folders[name]) for name in SAMPLES}
    results = {name: replay(trace, policies) for name, trace in traces.items()}
    cpus = [load_cpu(name) for name in CPUS]
    priced = [load_policy(PRICED_POLICY)]
    costs = {name: price(trace, cpus, policies=priced, mitigations=MITIGATIONS) for name, trace in traces.items()}
    if as_json:
        replays = {name: [result.to_dict(top=5) for result in rows] for name, rows in results.items()}
        shown = ("mitigation", "policy", "cpu", "overhead", "by_source", "break_even")
        rows = {name: [{key: row.to_dict()[key] for key in shown} for row in cost.rows] for name, cost in costs.items()}
        write_json("demo", {"recordings": replays, "costs": rows})
        return
    release = traces[SAMPLES[0]].recorder.kernel.release
    title = f"Three recordings of a stock Linux {release}, each replayed under three policies:"
    show(overview(title, results, costs))


def _page(path: Path) -> None:
    """Write what ``asi report`` says of the recordings, and show it to whoever sits there."""
    import webbrowser

    from asikit.machine.x86 import load_cpu
    from asikit.replay import load_policy
    from asikit.report.recording import Asked, look
    from asikit.trace import Trace

    folders = {each.stem: each for each in samples()}
    asked = Asked(tuple(map(load_policy, POLICIES)), tuple(map(load_cpu, CPUS)))
    write_recordings(path, look([Trace.open(folders[name]) for name in SAMPLES], asked))
    if sys.stdout.isatty():
        webbrowser.open(path.resolve().as_uri())


def _copy(folder: Path) -> None:
    """Copy what comes with the package, for commands that take a path."""
    folder.mkdir(parents=True)
    for sample in samples():
        shutil.copytree(sample, folder / sample.name, ignore=shutil.ignore_patterns("__pycache__"))
    for file in (*programs(), *scenarios()):
        shutil.copy(file, folder)
