"""A machine's vulnerabilities, and what ASI would do about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from asikit.cost import HostVerdict
from asikit.cost.host import Exposure, Here
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
        parts += [Note(f"{'; '.join(titles)}: {reason}", "  ") for reason, titles in _reasons(affected).items()]
    spared = [one.name for one in host.vulnerabilities if one.verdict is HostVerdict.NOT_NEEDED]
    if spared:
        parts.append(Section((Note(f"Not affected: {', '.join(spared)}"),)))
    parts += [Section((Note(line),)) for line in _today(host)]
    if host.not_told:
        parts.append(Section(tuple(Note(line) for line in _not_told(host))))
    parts.append(Section(tuple(Note(line) for line in _unnecessary(host.redundant))))
    return Report(tuple(parts))


def _identity(identity: Identity) -> list[str]:
    if not identity.vendor:
        return ["The processor is not told: add /proc/cpuinfo or the output of lscpu."]
    known = {"family": identity.family, "model": identity.model_number, "stepping": identity.stepping}
    numbers = [f"{key} {number}" for key, number in known.items() if number is not None]
    processor = f"{identity.name or identity.vendor} ({', '.join((identity.vendor, *numbers))})"
    lines = [f"{processor}, {_siblings(identity)}"]
    nearest = f"asi cost --cpu {identity.model}" if identity.model else "none; `asi calibrate` makes one"
    lines.append(f"Nearest CPU model: {nearest}")
    if identity.guest:
        hidden = "Its host may have mitigations that are not seen here, and may hide vulnerabilities and flags."
        lines.append(f"This is a virtual machine. {hidden}")
    return lines


def _siblings(identity: Identity) -> str:
    if identity.smt is None:
        return "sibling threads unknown"
    if identity.smt:
        return "sibling threads in use"
    return {True: "sibling threads off", False: "no sibling threads", None: "no sibling threads in use"}[
        identity.has_smt
    ]


def _differences(host: Host) -> list[str]:
    """Return where the machine contradicts its nearest model."""
    verbs = {Here.NOT_AFFECTED: "has", Here.AFFECTED: "lacks"}
    words = [
        f"{verb} {', '.join(one.name for one in host.differences if one.here is here)}"
        for here, verb in verbs.items()
        if any(one.here is here for one in host.differences)
    ]
    if not words:
        return []
    return [f"Unlike this machine, the model {', and '.join(words)}: prices of these are not this machine's."]


def _unnecessary(redundant: tuple[str, ...]) -> list[str]:
    """Return what ASI would make unnecessary: what takes something besides, and what ASI alone does."""
    alone: list[str] = []
    besides: dict[str, list[str]] = {}
    for one in redundant:
        what, _, condition = one.partition(" (with ")
        (besides.setdefault(condition.rstrip(")"), []) if condition else alone).append(what)
    lines = [f"Unnecessary with ASI and {condition}: {', '.join(what)}" for condition, what in besides.items()]
    return [*lines, f"Unnecessary with ASI: {', '.join(alone) or 'nothing'}"]


def _reasons(affected: list[HostVulnerability]) -> dict[str, list[str]]:
    """Return what remains, each with the vulnerabilities of which it does."""
    found: dict[str, list[str]] = {}
    for one in affected:
        for reason in one.remains:
            found.setdefault(reason, []).append(one.title)
    return found


def _today(host: Host) -> list[str]:
    """Return what the machine is vulnerable to as it is."""
    words = {Exposure.VULNERABLE: "", Exposure.PARTLY: "in part ", Exposure.UNKNOWN: "perhaps "}
    told = [one for one in host.vulnerabilities if one.verdict is not HostVerdict.NOT_TOLD]
    found = [
        word + ", ".join(one.name for one in told if one.today is exposure)
        for exposure, word in words.items()
        if any(one.today is exposure for one in told)
    ]
    return [f"Vulnerable today: {'; '.join(found)}"] if found else []


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
