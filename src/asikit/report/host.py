"""A machine's vulnerabilities, and what ASI would do about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.cost import HostVerdict
from asikit.report.view import Column, Note, Report, Row, Section, Table

if TYPE_CHECKING:
    from asikit.cost import Host, HostVulnerability, Identity

__all__ = ["host_report"]


def host_report(host: Host) -> Report:
    """Return the processor, a table of what it is vulnerable to, and what ASI would make unnecessary."""
    affected = [one for one in host.vulnerabilities if one.verdict is not HostVerdict.NOT_NEEDED]
    spared = [one.name for one in host.vulnerabilities if one.verdict is HostVerdict.NOT_NEEDED]
    parts: list[Note | Table | Section] = [Note(line) for line in _identity(host.identity)]
    if affected:
        parts.append(_table(affected))
        parts += [Note(f"{one.title}: {reason}", "  ") for one in affected for reason in one.remains]
    if spared:
        parts.append(Section((Note(f"Not affected: {', '.join(spared)}"),)))
    parts.append(Section((Note(f"Unnecessary with ASI: {', '.join(host.redundant) or 'nothing'}"),)))
    return Report(tuple(parts))


def _identity(identity: Identity) -> list[str]:
    smt = {True: "sibling threads in use", False: "no sibling threads in use", None: "sibling threads unknown"}
    number = f"family {identity.family}, model {identity.model_number}"
    lines = [f"{identity.name or identity.vendor} ({identity.vendor}, {number}), {smt[identity.smt]}"]
    nearest = f"asi cost --cpu {identity.model}" if identity.model else "none; `asi calibrate` makes one"
    lines.append(f"Nearest CPU model: {nearest}")
    if identity.guest:
        hidden = "Its host may have mitigations that are not seen here, and may hide vulnerabilities."
        lines.append(f"This is a virtual machine. {hidden}")
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
