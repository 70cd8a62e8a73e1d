"""``asi compare``: what changed between two replays or costs, and whether it is more than chance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from asikit.cli._html import html_option, write_html
from asikit.cli._output import show, write_json

if TYPE_CHECKING:
    from pathlib import Path

    from asikit.cost import Comparison

EXIT_REGRESSION = 10
_DEFAULT_TOP = 10


@click.command()
@click.argument("a", type=click.Path())
@click.argument("b", type=click.Path())
@click.option(
    "--factor",
    "factors",
    metavar="FACTOR[,FACTOR]",
    multiple=True,
    help="What the sides may differ in: policy, mitigation, cpu, kernel, workload, ... [default: any one]",
)
@click.option("--anyway", is_flag=True, help="Compare whatever differs.")
@click.option(
    "--fail-over", metavar="PERCENT", type=float, help="Exit with 10 if B has that many per cent more exits than A."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.compare/1).")
@html_option
@click.option("--top", type=click.IntRange(min=0), help=f"Causes to show. [default: {_DEFAULT_TOP}; JSON: all]")
def command(
    a: str,
    b: str,
    *,
    factors: tuple[str, ...],
    anyway: bool,
    fail_over: float | None,
    as_json: bool,
    html: Path | None,
    top: int | None,
) -> None:
    """Say what changed from A to B: two replays, or two costs.

    A and B are JSON files that `asi replay --json` or `asi cost --json` printed. For several runs a side, give folders
    of such files, or several with commas between: then there are medians with 95 % intervals, and ~ is no difference.
    """
    from asikit.cost import compare
    from asikit.report import compare_report

    names = [name.strip() for item in factors for name in item.split(",")]
    comparison = compare(a, b, factors=names, anyway=anyway)
    report = compare_report(comparison, top=_DEFAULT_TOP if top is None else top)
    write_html(html, lambda: report, a=a, b=b)
    if as_json:
        document = comparison.to_dict(top=top)
        del document["schema"]  # the envelope has it
        write_json("compare", document)
    else:
        show(report)
    if fail_over is not None:
        _gate(comparison, fail_over)


def _gate(comparison: Comparison, percent: float) -> None:
    """End with the exit code for a regression if there is one.

    :raises click.UsageError: The documents have no exits to look at.
    """
    if not any(pair.metric("exits") for pair in comparison.pairs):
        raise click.UsageError("--fail-over looks at exits, and these documents have none", click.get_current_context())
    worse = comparison.regressions(percent)
    for pair in worse:
        change = pair.metric("exits")
        if change is not None:
            what = ", ".join(pair.what.get(facet, "") for facet in ("mitigation", "policy") if pair.what.get(facet))
            shown = "more than none" if change.percent is None else f"{change.percent:.1f}% more"
            click.echo(f"asi: exits{f' of {what}' if what else ''}: {shown}, over {percent:g}%", err=True)
    if worse:
        click.get_current_context().exit(EXIT_REGRESSION)
