"""``asi export``: a recording in the forms of other tools."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from asikit.cli._opening import open_trace
from asikit.cli._output import show
from asikit.cli._progress import progress
from asikit.export import FORMATS


@click.command()
@click.argument("trace", type=click.Path(), required=False)
@click.option("--format", "name", type=click.Choice(list(FORMATS)), help="The form (--list-formats).")
@click.option(
    "--policy",
    "policies",
    metavar="NAME|FILE.toml",
    multiple=True,
    help="Which memory is sensitive; for lkml also several, or a comma list. [default: denylist-2025]",
)
@click.option("--where", metavar="EXPRESSION", help="The round trips that an expression allows (docs/where.md).")
@click.option(
    "--table",
    type=click.Choice(["exits", "trips"]),
    default="exits",
    show_default=True,
    help="What csv and parquet have a row for.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write FILE, not standard output."
)
@click.option("--list-formats", is_flag=True, help="List the forms, and stop.")
def command(
    trace: str | None,
    *,
    name: str | None,
    policies: tuple[str, ...],
    where: str | None,
    table: str,
    output: Path | None,
    list_formats: bool,
) -> None:
    """Write a recording in the form of another tool.

    TRACE is a folder NAME.asitrace that `asi record` wrote. It is replayed under the policy, and its round trips and
    exits are written.
    """
    if list_formats:
        from asikit.report.view import Report, choices

        show(Report((choices({name: form.says for name, form in FORMATS.items()}),)))
        return
    context = click.get_current_context()
    if trace is None or name is None:
        raise click.UsageError(f"missing {'argument TRACE' if trace is None else 'option --format'}", context)
    if output is None and FORMATS[name].binary and sys.stdout.isatty():
        raise click.UsageError(f"format {name} is not for a terminal: give a file with -o", context)
    from asikit.documents import write_whole
    from asikit.export.run import export
    from asikit.replay import load_policy

    names = [each.strip() for item in policies or ("denylist-2025",) for each in item.split(",")]
    loaded = [load_policy(each) for each in dict.fromkeys(names)]
    pieces = export(open_trace(trace), name, loaded, where=where, table=table)
    if output is not None:
        write_whole(output, pieces)
        return
    for piece in pieces:
        progress().end()  # what comes now may be seen on a terminal, and so would its line
        sys.stdout.buffer.write(piece)
