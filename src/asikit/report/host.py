"""A machine's vulnerabilities, and what ASI would do about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.cost import HostVerdict
from asikit.cost.host import Here
from asikit.report.view import Column, Note, Report, Row, Section, Table

if TYPE_CHECKING:
    from asikit.cost import Host, HostVulnerability, Identity

__all__ = ["host_report"]

_ROWS = (HostVerdict.NOT_COVERED, HostVerdict.UNKNOWN, HostVerdict.PARTLY, HostVerdict.COVERED)
"""The verdicts that have a row in the table; those that ask for something come first."""


def host_report(host: Host) -> Report:
    """Return the processor, a table of what it is vulnerable to, and what ASI would make unnecessary."""
    affected = [one for verdict in _ROWS for one in host.vulnerabilities if one.verdict is verdict]
    parts: list[Note | Table | Section] = [Note(line) for line in _identity(host.identity)]
    parts += [Note(line) for line in _differences(host)]
    if affected:
        parts.append(_table(affected))
        parts += [Note(f"{', '.join(titles)}: {reason}", "  ") for reason, titles in _reasons(affected).items()]
    spared = [one.name for one in host.vulnerabilities if one.verdict is HostVerdict.NOT_NEEDED]
    if spared:
        parts.append(Section((Note(f"Not affected: {', '.join(spared)}"),)))
    if host.not_told:
        parts.append(Section(tuple(Note(line) for line in _not_told(host))))
    parts.append(Section((Note(f"Unnecessary with ASI: {', '.join(host.redundant) or 'nothing'}"),)))
    return Report(tuple(parts))


def _identity(identity: Identity) -> list[str]:
    if not identity.vendor:
        return ["The processor is not told: add /proc/cpuinfo or the output of lscpu."]
    smt = {True: "sibling threads in use", False: "no sibling threads in use", None: "sibling threads unknown"}
    number = f"family {identity.family}, model {identity.model_number}, stepping {identity.stepping}"
    lines = [f"{identity.name or identity.vendor} ({identity.vendor}, {number}), {smt[identity.smt]}"]
    nearest = f"asi cost --cpu {identity.model}" if identity.model else "none; `asi calibrate` makes one"
    lines.append(f"Nearest CPU model: {nearest}")
    if identity.guest:
        hidden = "Its host may have mitigations that are not seen here, and may hide vulnerabilities and flags."
        lines.append(f"This is a virtual machine. {hidden}")
    return lines


def _differences(host: Host) -> list[str]:
    if not host.differences:
        return []
    words = [
        f"{', '.join(one.name for one in host.differences if one.here is here)} {here.value}"
        for here in Here
        if any(one.here is here for one in host.differences)
    ]
    hidden = " Its hypervisor may hide what the processor has." if host.identity.guest else ""
    says = f"this machine says {'; '.join(words)}, and the model the contrary"
    return [f"The model is near, not the same: {says}. A price that rests on these is not this machine's.{hidden}"]


def _reasons(affected: list[HostVulnerability]) -> dict[str, list[str]]:
    """Return what remains, each with the vulnerabilities of which it does."""
    found: dict[str, list[str]] = {}
    for one in affected:
        for reason in one.remains:
            found.setdefault(reason, []).append(one.title)
    return found


def _not_told(host: Host) -> list[str]:
    lines = [f"Not told (an older kernel has no such file, or it was not given): {', '.join(host.not_told)}"]
    likely = [one.name for one in host.vulnerabilities if one.verdict is HostVerdict.NOT_TOLD and one.remains]
    if likely:
        lines.append(f"Of these {host.identity.model} has: {', '.join(likely)}")
    return lines


def _table(affected: list[HostVulnerability]) -> Table:
    columns = (
        Column("vulnerability", breaks=True),
        Column("now", breaks=True),
        Column("with ASI"),
        Column("unnecessary then", breaks=True),
    )
    rows = (Row((one.title, one.now, one.verdict.value, ", ".join(one.redundant) or "-")) for one in affected)
    return Table(columns, tuple(rows))
