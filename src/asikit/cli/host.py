"""``asi host``: what a machine is vulnerable to, and what ASI would do about it there."""

from __future__ import annotations

from pathlib import Path

import click

from asikit.cli._html import html_option, write_html
from asikit.cli._output import show, write_json


@click.command()
@click.option(
    "--from", "folder", metavar="DIR", type=click.Path(path_type=Path), help="What another machine saved, not this one."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.host/1).")
@html_option
def command(*, folder: Path | None, as_json: bool, html: Path | None) -> None:
    """Say what this machine is vulnerable to, and what ASI would do about it.

    To save another machine's: mkdir DIR; cp -r /sys/devices/system/cpu/vulnerabilities /sys/devices/system/cpu/smt
    /proc/cpuinfo DIR
    """
    from asikit.cost import read_host
    from asikit.report import host_report

    host = read_host(folder)
    write_html(html, lambda: host_report(host))
    if as_json:
        document = host.to_dict()
        del document["schema"]  # the envelope has it
        write_json("host", document)
    else:
        show(host_report(host))
