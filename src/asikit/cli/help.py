"""``asi help``: the pages of the documentation, in the terminal."""

from __future__ import annotations

import click

from asikit.cli._output import show
from asikit.cli._shipped import pages


@click.command()
@click.argument("topic", required=False)
def command(topic: str | None) -> None:
    """Show a page of the documentation.

    Without TOPIC it lists the pages. There is one for each command, and for each kind of file that asikit reads.
    """
    from asikit.errors import nearest
    from asikit.report.topic import topic_list, topic_report

    known = pages()
    if topic is None:
        show(topic_list({name: path.read_text(encoding="utf-8") for name, path in known.items()}))
        return
    if topic not in known:
        message = f'no topic "{topic}"{nearest(topic, known)} (asi help lists them)'
        raise click.UsageError(message, click.get_current_context())
    show(topic_report(known[topic].read_text(encoding="utf-8")))
