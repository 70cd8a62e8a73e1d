"""Two tools' JSON about a machine: ``lscpu --json``, and ``spectre-meltdown-checker --batch json``.

The checker has an older form, a list of ``NAME``, ``CVE``, ``VULNERABLE`` and ``INFOS`` (today's ``json-terse``), and
one with the processor and the kernel's own line (``sysfs_message``). What it says in words of its own is put into the
kernel's, as far as ``data/host-checker.toml`` knows it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import msgspec

from asikit.cost._host_lines import LineStatus, mechanisms, read_line
from asikit.cost.errors import HostError
from asikit.documents import shipped_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["HostFacts", "read_json_report"]


class _Words(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``data/host-checker.toml`` explains its keys."""

    text: str
    line: str
    cve: str = ""


class _Checker(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    capabilities: dict[str, str]
    words: tuple[_Words, ...]


@dataclass(slots=True)
class HostFacts:
    """What such a document says.

    :ivar lines: The kernel's line about each vulnerability.
    :ivar checked: What a checker says in words of its own, as a line of the kernel's where that is known.
    :ivar cpu: The keys of /proc/cpuinfo, and lscpu's.
    :ivar smt: ``active`` and ``control``.
    :ivar present: Flags that the processor has, from a source that does not list all.
    :ivar absent: Flags that it does not have, from such a source.
    """

    lines: dict[str, str] = field(default_factory=dict)
    checked: dict[str, str] = field(default_factory=dict)
    cpu: dict[str, str] = field(default_factory=dict)
    smt: dict[str, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)


_ORDER = (LineStatus.UNREAD, LineStatus.VULNERABLE, LineStatus.UNKNOWN, LineStatus.MITIGATED, LineStatus.NOT_AFFECTED)
"""Of several CVEs with one file in sysfs, the finding that counts: what errs, errs towards danger."""


def read_json_report(text: str, where: str) -> HostFacts:
    """Return what a JSON document says.

    :param where: What messages call it.
    :raises HostError: It is neither tool's.
    """
    try:
        document = msgspec.json.decode(text.encode())
    except msgspec.DecodeError as error:
        raise HostError(f"{where}: not JSON: {error}") from error
    report = HostFacts()
    if isinstance(document, dict) and isinstance(document.get("lscpu"), list):
        for key, value, inside in _fields(document["lscpu"], ""):
            _lscpu_field(report, key, value, inside)
    elif isinstance(document, dict) and isinstance(document.get("vulnerabilities"), list):
        _comprehensive(report, document)
    elif isinstance(document, list):
        findings = [one for one in document if isinstance(one, dict) and "CVE" in one]
        _findings(report, [(one["CVE"], one.get("VULNERABLE"), str(one.get("INFOS", ""))) for one in findings])
    if not (report.lines or report.checked or report.cpu):
        raise HostError(f"{where}: neither of `lscpu --json` nor of `spectre-meltdown-checker --batch json`")
    return report


def _fields(entries: list[Any], inside: str) -> Iterator[tuple[str, str, str]]:
    """Yield key, value and the key around it of each entry of lscpu's, those within others too."""
    for entry in entries:
        if isinstance(entry, dict):
            key = str(entry.get("field", "")).rstrip(":").lower()
            yield key, str(entry.get("data") or ""), inside
            yield from _fields(entry.get("children") or [], key)


def _lscpu_field(report: HostFacts, key: str, value: str, inside: str) -> None:
    prefix = "vulnerability "
    if key.startswith(prefix) or inside == "vulnerabilities":
        report.lines[key.removeprefix(prefix).replace(" ", "_")] = value
    elif value:
        report.cpu.setdefault({"vendor id": "vendor_id"}.get(key, key), value)


def _comprehensive(report: HostFacts, document: Mapping[str, Any]) -> None:
    cpu = document.get("cpu") or {}
    x86 = cpu.get("x86") or {}
    microcode = document.get("cpu_microcode") or {}
    told = {
        "architecture": "x86_64" if cpu.get("arch") == "x86" else cpu.get("arch"),
        "vendor_id": cpu.get("vendor"),
        "model name": cpu.get("friendly_name"),
        "cpu family": x86.get("family"),
        "model": x86.get("model"),
        "stepping": x86.get("stepping"),
        "microcode": microcode.get("installed_version"),
    }
    report.cpu = {key: str(value) for key, value in told.items() if value is not None}
    for capability, flag in _checker().capabilities.items():
        has = (x86.get("capabilities") or {}).get(capability)
        if has is not None:
            (report.present if has else report.absent).add(flag)
    smt = (document.get("system") or {}).get("smt_enabled")
    if smt is not None:
        report.smt["active"] = "1" if smt else "0"
    entries = [one for one in document["vulnerabilities"] if isinstance(one, dict) and "cve" in one]
    names = _names()
    for one in entries:
        message = one.get("sysfs_message")
        if message and one["cve"] in names:
            report.lines[names[one["cve"]]] = str(message)
    _findings(report, [(one["cve"], one.get("vulnerable"), str(one.get("info", ""))) for one in entries])


def _findings(report: HostFacts, entries: list[tuple[str, bool | None, str]]) -> None:
    """Take the checker's findings: of each the CVE, whether it is vulnerable (None: unknown), and its words."""
    names = _names()
    for cve, vulnerable, words in entries:
        name = names.get(cve, cve)
        line = _line(cve, vulnerable, words)
        before = report.checked.get(name)
        if before is None or _weight(name, line) < _weight(name, before):
            report.checked[name] = line


def _weight(name: str, line: str) -> tuple[int, int]:
    read = read_line(line, mechanisms().get(name))
    return (0 if read.unread else _ORDER.index(read.status), -len(read.pieces))


def _line(cve: str, vulnerable: bool | None, words: str) -> str:  # noqa: FBT001  # three values
    for one in _checker().words:
        if one.cve in {"", cve} and re.fullmatch(one.text, words.strip(), re.IGNORECASE):
            return one.line
    if read_line(words, None).status is not LineStatus.UNREAD:
        return words
    return f"Unknown: {words}" if vulnerable is None else words


def _names() -> dict[str, str]:
    return {cve: name for name, mechanism in mechanisms().items() for cve in mechanism.cves}


@cache
def _checker() -> _Checker:
    return shipped_text("host-checker.toml", _Checker, HostError, "table of a checker's words")
