"""``asi report``: what a recording says, as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from asikit.cli._html import write_recordings
from asikit.cli._opening import open_trace
from asikit.cli._output import warn
from asikit.cli._selecting import selected, selecting

_DEFAULT_POLICY = "denylist-2025"
_DEFAULT_CPUS = "skylake-6600u,zen2-7452"


@click.command()
@click.argument("traces", metavar="TRACE...", type=click.Path(), nargs=-1, required=True)
@click.option(
    "--policy",
    "policies",
    metavar="NAME|FILE.toml",
    multiple=True,
    help=f"Which memory is sensitive; several, or a comma list, are compared. [default: {_DEFAULT_POLICY}]",
)
@click.option(
    "--cpu",
    "cpus",
    metavar="MODEL|FILE.toml",
    multiple=True,
    help=f"The processor; several, or a comma list: the answer is about the first. [default: {_DEFAULT_CPUS}]",
)
@selecting(cpu_options=("--on-cpu",))
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    default="report.html",
    show_default=True,
    help="Where to write the page.",
)
def command(
    traces: tuple[str, ...],
    *,
    policies: tuple[str, ...],
    cpus: tuple[str, ...],
    output: Path,
    **part: Any,  # noqa: ANN401  (the options of _selecting)
) -> None:
    """Write one HTML page about recordings: why, when and at what cost the kernel exits.

    TRACE is a folder NAME.asitrace that `asi record` wrote; of several the differences are shown, too. The page needs
    no network and no other file (docs/report.md).
    """
    from asikit.machine.x86 import load_cpu
    from asikit.replay import load_policy
    from asikit.report.recording import Asked, look

    asked = Asked(
        tuple(load_policy(name) for name in _names(policies or (_DEFAULT_POLICY,))),
        tuple(load_cpu(name) for name in _names(cpus or (_DEFAULT_CPUS,))),
        *selected(**part),
    )
    recordings = look([open_trace(trace) for trace in dict.fromkeys(traces)], asked)
    warn(line for recording in recordings for result in recording.results for line in result.warnings)
    write_recordings(output, recordings)


def _names(items: tuple[str, ...]) -> list[str]:
    return list(dict.fromkeys(name.strip() for item in items for name in item.split(",") if name.strip()))
