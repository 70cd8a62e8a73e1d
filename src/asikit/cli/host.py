"""``asi host``: what a machine is vulnerable to, and what ASI would do about it there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from asikit.cli._html import html_option, write_html
from asikit.cli._output import show, write_json

if TYPE_CHECKING:
    from asikit.cost import HostText

_STDIN = "-"


@click.command()
@click.argument("sources", nargs=-1, metavar="[SOURCE]...")
@click.option(
    "--from", "more", metavar="SOURCE", multiple=True, help="What another machine has, not this one. As an argument."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.host/1).")
@html_option
def command(*, sources: tuple[str, ...], more: tuple[str, ...], as_json: bool, html: Path | None) -> None:
    """Say what this machine is vulnerable to, and what ASI would do about it.

    For another machine, each SOURCE is a file or a folder of it, or - for standard input: the output of `grep .
    /sys/devices/system/cpu/vulnerabilities/*`, of `lscpu`, or of `spectre-meltdown-checker --batch json`; its
    /proc/cpuinfo; several of them in one text; or what this saved: mkdir DIR; cp -r
    /sys/devices/system/cpu/vulnerabilities /sys/devices/system/cpu/smt /proc/cpuinfo DIR
    """
    from asikit.cost import read_host
    from asikit.report import host_report

    host = read_host(*(_source(name) for name in (*more, *sources)))
    write_html(html, lambda: host_report(host))
    if as_json:
        document = host.to_dict()
        del document["schema"]  # the envelope has it
        write_json("host", document)
    else:
        show(host_report(host))


def _source(name: str) -> Path | HostText:
    from asikit.cost import HostText

    if name != _STDIN:
        return Path(name)
    return HostText("standard input", sys.stdin.buffer.read().decode("utf-8", "replace"))
