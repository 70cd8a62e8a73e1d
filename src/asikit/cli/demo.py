"""``asi demo``: the sample recordings under three policies, and what that costs on two processors."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from asikit.cli._output import show, write_json
from asikit.cli._shipped import samples, scenarios

SAMPLES = ("page-cache", "processes", "kvm-guest")
POLICIES = ("blanket", "denylist-2025", "ephmap")
CPUS = ("skylake-6600u", "zen2-7452")
MITIGATIONS = ("none", "linux", "blanket", "asi")
PRICED_POLICY = "ephmap"


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.demo/1).")
@click.option(
    "--copy",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Copy the sample recordings and the scenarios of asi run to DIR, a new folder, and stop.",
)
def command(*, as_json: bool, copy: Path | None) -> None:
    """Replay the sample recordings under three policies, and price them on two processors.

    The samples come with the package: they were made with `asi record` from a stock Debian kernel (samples/record.sh).
    """
    if copy is not None:
        _copy(copy)
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


def _copy(folder: Path) -> None:
    """Copy what comes with the package, for commands that take a path."""
    folder.mkdir(parents=True)
    for sample in samples():
        shutil.copytree(sample, folder / sample.name, ignore=shutil.ignore_patterns("__pycache__"))
    for scenario in scenarios():
        shutil.copy(scenario, folder)
