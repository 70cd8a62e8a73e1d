"""``asi mark``: what a workload marks its phases with."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

_COMMAND: Final = "asi-mark"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False, metavar="[DIR]")
@click.option("--header", is_flag=True, help="Print the C header instead.")
def command(folder: Path | None, *, header: bool) -> None:
    """Give a workload what it marks its phases with.

    Writes the C header asi_mark.h and the command asi-mark (static, for scripts) into DIR. A workload says
    asi_begin("steady") and asi_end("steady"), or runs `asi-mark begin steady` and `asi-mark end steady`; what lies
    between is a phase of its recording (docs/mark.md). Unrecorded, marks do nothing.
    """
    from asikit.record import MARK_HEADER, mark_command, mark_header

    if header:
        click.echo(mark_header(), nl=False)
        return
    if folder is None:
        raise click.UsageError("missing argument 'DIR': where to write", click.get_current_context())
    program = mark_command()  # first, as it may be that there is no compiler
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK_HEADER).write_text(mark_header(), encoding="utf-8")
    (folder / _COMMAND).write_bytes(program.read_bytes())
    (folder / _COMMAND).chmod(0o755)
    for name in (MARK_HEADER, _COMMAND):
        click.echo(folder / name)
