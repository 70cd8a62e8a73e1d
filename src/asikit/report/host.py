"""A machine's vulnerabilities as text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from asikit.cost import HostVerdict

if TYPE_CHECKING:
    from rich.console import RenderableType

    from asikit.cost import Host, HostVulnerability, Identity

__all__ = ["host_report"]

_WIDTH = 98


def host_report(host: Host) -> RenderableType:
    """Return the processor, a table of what it is vulnerable to, and what ASI would make unnecessary."""
    affected = [one for one in host.vulnerabilities if one.verdict is not HostVerdict.NOT_NEEDED]
    spared = [one.name for one in host.vulnerabilities if one.verdict is HostVerdict.NOT_NEEDED]
    parts: list[RenderableType] = [Text(line) for line in _identity(host.identity)]
    if affected:
        parts.append(_table(affected))
        parts += [Text(f"  {one.title}: {reason}") for one in affected for reason in one.remains]
    if spared:
        parts += [Text(), Text(f"Not affected: {', '.join(spared)}")]
    made = ", ".join(host.redundant) or "nothing"
    parts += [Text(), Text(f"With ASI unnecessary: {made}")]
    return Group(*parts)


def _identity(identity: Identity) -> list[str]:
    smt = {True: "sibling threads in use", False: "no sibling threads in use", None: "sibling threads unknown"}
    number = f"family {identity.family}, model {identity.model_number}"
    lines = [f"{identity.name or identity.vendor} ({identity.vendor}, {number}), {smt[identity.smt]}"]
    nearest = f"asi cost --cpu {identity.model}" if identity.model else "none; `asi calibrate` makes one"
    lines.append(f"Nearest CPU model: {nearest}")
    if identity.guest:
        lines.append("This is a virtual machine: what its host does is not seen, and the host may hide what there is.")
    return lines


def _table(affected: list[HostVulnerability]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), width=_WIDTH)
    table.add_column("vulnerability", overflow="fold", ratio=3)
    table.add_column("now", overflow="fold", ratio=5)
    table.add_column("with ASI", no_wrap=True)
    table.add_column("unnecessary then", overflow="fold", ratio=4)
    for one in affected:
        table.add_row(one.title, one.now, one.verdict.value, ", ".join(one.redundant) or "-")
    return table
