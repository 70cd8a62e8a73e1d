"""``asi attack``: every known vulnerability against every mitigation, on the model machine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from asikit.cli._html import html_option, write_html
from asikit.cli._output import show, write_json
from asikit.cli._progress import progress

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from asikit.attacks import Cell, Finding

_EXIT_LEAK, _EXIT_UNKNOWN, _EXIT_NOT_APPLICABLE = 10, 11, 12
_ALL = "all"


@click.command()
@click.option("--cpu", metavar="MODEL|FILE.toml", help="A CPU model. [default: for each vulnerability one that has it]")
@click.option(
    "--mitigation",
    "mitigations",
    metavar="NAME[,NAME]",
    default="none,linux,blanket,asi",
    show_default=True,
    help="The columns; `all` is every one (--list).",
)
@click.option("--vulnerability", metavar="NAME|FILE.toml", help="One alone; a file describes one of yours.")
@click.option("--vector", metavar="NAME", help="One position of the attacker alone (--list).")
@click.option("--why", is_flag=True, help="Explain one cell step by step.")
@click.option(
    "--save", type=click.Path(dir_okay=False), metavar="FILE.py", help="Save one cell as a scenario for asi run."
)
@click.option("--list", "list_names", is_flag=True, help="List vulnerabilities, vectors and mitigations, and stop.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema asikit.attack/1).")
@html_option
@click.pass_context
def command(
    context: click.Context,
    *,
    cpu: str | None,
    mitigations: str,
    vulnerability: str | None,
    vector: str | None,
    why: bool,
    save: str | None,
    list_names: bool,
    as_json: bool,
    html: Path | None,
) -> None:
    """Attack the model machine, and say what leaks.

    Each attack is run twice, with two secrets; it leaks if the attacker sees anything that differs. The exit code is 0
    if attacks took place and none leaks, 10 if one leaks, 11 if none leaks and one is unknown (not modelled), 12 if
    none is applicable (docs/attack.md).
    """
    from asikit.attacks import cells
    from asikit.mitigations import mitigation_names

    if list_names:
        from asikit.report.attack import attack_names

        show(attack_names())
        return
    names = [name.strip() for name in mitigations.split(",")]
    columns = mitigation_names() if _ALL in names else tuple(dict.fromkeys(names))
    wanted = cells(columns, cpu=cpu, vulnerability=vulnerability, vector=vector)
    if (why or save is not None) and len(wanted) != 1:
        raise click.UsageError(
            f"--why and --save are for one cell, and these are {len(wanted)}: "
            "give --vulnerability, --vector and one --mitigation",
            context,
        )
    if not wanted:
        raise click.UsageError("there is no attack of that kind", context)
    findings = _attack(wanted)
    if save is not None:
        _save(findings[0], save)
    from asikit.report.attack import attack_page

    write_html(html, lambda: attack_page(findings))
    _show(findings, why=why, as_json=as_json)
    context.exit(_exit_code({str(found.verdict) for found in findings}))


def _exit_code(verdicts: set[str]) -> int:
    """Return the worst verdict's; NO LEAK, which is 0, takes an attack that took place."""
    for verdict, code in (("LEAK", _EXIT_LEAK), ("UNKNOWN", _EXIT_UNKNOWN), ("NO LEAK", 0)):
        if verdict in verdicts:
            return code
    return _EXIT_NOT_APPLICABLE


def _attack(wanted: Sequence[Cell]) -> list[Finding]:
    from asikit.attacks import matrix

    findings = []
    for found in matrix(wanted):
        findings.append(found)
        progress().at(len(findings), "attacks", total=len(wanted))
    return findings


def _save(finding: Finding, path: str) -> None:
    from pathlib import Path

    from asikit.attacks import scenario_text

    Path(path).write_text(scenario_text(finding), encoding="utf-8")


def _show(findings: list[Finding], *, why: bool, as_json: bool) -> None:
    if as_json:
        write_json("attack", {"rows": [found.to_dict(story=why) for found in findings]})
        return
    from asikit.report.attack import attack_reason, attack_report

    show(attack_reason(findings[0]) if why else attack_report(findings))
