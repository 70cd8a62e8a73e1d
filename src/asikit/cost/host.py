"""A machine's own vulnerabilities: what mitigates each now, and what ASI would do about it there.

Linux says the first in ``/sys/devices/system/cpu/vulnerabilities``. The second follows from the mechanism of each
vulnerability (``data/host.toml``) and from what the processor has: a flush needs its instruction, and what the sibling
thread can do needs a stun.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from asikit.cost.errors import HostError
from asikit.documents import shipped_text

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "HOST_SCHEMA",
    "Host",
    "HostVerdict",
    "HostVulnerability",
    "Identity",
    "nearest_model",
    "read_host",
    "read_identity",
]

HOST_SCHEMA = "asikit.host/1"
"""``schema`` of the JSON form."""

_ROOT = Path("/")
_VULNERABILITIES = "sys/devices/system/cpu/vulnerabilities"
_SMT = "sys/devices/system/cpu/smt/active"
_CPUINFO = "proc/cpuinfo"
_NOT_AFFECTED = "Not affected"
_SIBLING = "what the sibling thread does meanwhile, unless it is stunned (in no published code) or off"


class HostVerdict(StrEnum):
    """What ASI would do about a vulnerability on this machine."""

    NOT_NEEDED = "not needed"
    """The processor is not affected."""
    COVERED = "covered"
    PARTLY = "partly"
    """But for what :attr:`HostVulnerability.remains` says."""
    NOT_COVERED = "not covered"
    UNKNOWN = "unknown"
    """Newer than this asikit."""


class Means(StrEnum):
    """What of ASI acts against a vulnerability."""

    UNMAP = "unmap"
    PREDICTOR = "predictor"
    BUFFERS = "buffers"
    L1D = "l1d"
    NOTHING = "nothing"


class _Redundant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    what: str
    needs_stun: bool = False


class _Breaks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    text: str
    why: str


class _Mechanism(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of ``data/host.toml``, which explains its keys."""

    title: str
    by: tuple[Means, ...]
    redundant: tuple[_Redundant, ...]
    needs: tuple[str, ...] = ()
    breaks: tuple[_Breaks, ...] = ()
    stays: str = ""
    cross_thread: bool = False
    partly: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """A processor as the kernel names it.

    :ivar bugs: By the kernel's names.
    :ivar physical_bits: Of an address; None if nothing says so.
    :ivar smt: Whether sibling threads are in use; None if nothing says so.
    :ivar guest: It is a virtual machine's: what its host does is not seen.
    :ivar model: The nearest CPU model that comes with asikit, None if there is none.
    """

    vendor: str
    family: int | None
    model_number: int | None
    name: str
    microcode: str
    flags: frozenset[str]
    bugs: frozenset[str]
    physical_bits: int | None
    smt: bool | None
    guest: bool
    model: str | None


@dataclass(frozen=True, slots=True)
class HostVulnerability:
    """One vulnerability on this machine.

    :ivar name: The file in sysfs.
    :ivar now: What the kernel says.
    :ivar by: What of ASI acts against it.
    :ivar remains: What ASI leaves; one reason each.
    :ivar redundant: Of today's mitigations, what it would make unnecessary.
    """

    name: str
    title: str
    now: str
    verdict: HostVerdict
    by: tuple[str, ...] = ()
    remains: tuple[str, ...] = ()
    redundant: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """A machine."""

    identity: Identity
    vulnerabilities: tuple[HostVulnerability, ...]

    @property
    def redundant(self) -> tuple[str, ...]:
        """All of today's mitigations that ASI would make unnecessary."""
        return tuple(dict.fromkeys(what for one in self.vulnerabilities for what in one.redundant))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        identity = asdict(self.identity)
        for inner in ("flags", "bugs", "physical_bits"):
            del identity[inner]
        return {
            "schema": HOST_SCHEMA,
            "cpu": identity,
            "vulnerabilities": [
                {
                    "name": one.name,
                    "now": one.now,
                    "asi": one.verdict.value,
                    "by": list(one.by),
                    "remains": list(one.remains),
                    "redundant": list(one.redundant),
                }
                for one in self.vulnerabilities
            ],
            "redundant": list(self.redundant),
        }


def read_host(folder: Path | None = None) -> Host:
    """Return what a machine is vulnerable to, and what ASI would do about it.

    :param folder: What another machine saved: ``vulnerabilities/`` (or its files) and ``cpuinfo``, or both under
        ``sys`` and ``proc`` as on that machine; None: this machine.
    :raises HostError: The folder is not there, or lacks one of the two, or a file is not readable.
    """
    root = _ROOT if folder is None else folder
    if not root.is_dir():
        raise HostError.usage(
            f"{root}: not a folder: save /sys/devices/system/cpu/vulnerabilities and /proc/cpuinfo in one"
        )
    identity = read_identity(folder)
    texts = _texts(root)
    mechanisms = _mechanisms()
    found = tuple(_judged(name, texts[name], mechanisms.get(name), identity) for name in sorted(texts))
    return Host(identity, found)


def read_identity(folder: Path | None = None) -> Identity:
    """Return the processor's identity; the parameter and the errors are those of :func:`read_host`."""
    root = _ROOT if folder is None else folder
    file = _first(root, _CPUINFO, "cpuinfo")
    if file is None:
        raise HostError(f"{root / 'cpuinfo'}: missing: save /proc/cpuinfo there")
    fields: dict[str, str] = {}
    for line in _read(file).split("\n\n")[0].splitlines():
        key, _, value = line.partition(":")
        fields[key.strip()] = value.strip()
    if "vendor_id" not in fields:
        raise HostError(f"{file}: has no vendor_id: not the /proc/cpuinfo of an x86 machine")
    flags = frozenset(fields.get("flags", "").split())
    family, number = _number(fields.get("cpu family")), _number(fields.get("model"))
    return Identity(
        vendor=fields["vendor_id"],
        family=family,
        model_number=number,
        name=fields.get("model name", ""),
        microcode=fields.get("microcode", ""),
        flags=flags,
        bugs=frozenset(fields.get("bugs", "").split()),
        physical_bits=_number(fields.get("address sizes", "").partition(" ")[0]),
        smt=_smt(root, fields),
        guest="hypervisor" in flags,
        model=nearest_model(fields["vendor_id"], family, number),
    )


def nearest_model(vendor: str, family: int | None, model: int | None) -> str | None:
    """Return the name of the CPU model for a processor, None if there is none."""
    known = shipped_text("cpu-ids.toml", dict[str, str], HostError, "table of processors")
    return known.get(f"{vendor}-{family}-{model}")


def _mechanisms() -> Mapping[str, _Mechanism]:
    return shipped_text("host.toml", dict[str, _Mechanism], HostError, "table of vulnerabilities")


def _texts(root: Path) -> dict[str, str]:
    """Return what the kernel says of each vulnerability."""
    folder = _first(root, _VULNERABILITIES, "vulnerabilities", "cpu/vulnerabilities")
    if folder is None and (root / "spectre_v2").is_file():
        folder = root
    if folder is None or not folder.is_dir():
        raise HostError(f"{root / 'vulnerabilities'}: missing: save /sys/devices/system/cpu/vulnerabilities there")
    known = _mechanisms()
    # In a folder that has cpuinfo beside them, only the names that a kernel has are vulnerabilities.
    names = [item for item in sorted(folder.iterdir()) if item.is_file() and (folder != root or item.name in known)]
    if not names:
        raise HostError(f"{folder}: empty: a kernel of 4.15 or newer has a file for each vulnerability there")
    return {item.name: " ".join(_read(item).split()) for item in names}


def _judged(name: str, now: str, mechanism: _Mechanism | None, identity: Identity) -> HostVulnerability:
    if now.startswith(_NOT_AFFECTED):
        title = name if mechanism is None else mechanism.title
        return HostVulnerability(name, title, now, HostVerdict.NOT_NEEDED)
    if mechanism is None:
        return HostVulnerability(name, name, now, HostVerdict.UNKNOWN)
    by = tuple(one.value for one in mechanism.by)
    if Means.NOTHING in mechanism.by:
        return HostVulnerability(name, mechanism.title, now, HostVerdict.NOT_COVERED, (), (mechanism.stays,))
    # A hypervisor may hide a flag that the processor has.
    missing = [flag for flag in mechanism.needs if flag not in identity.flags]
    broken = [one.why for one in mechanism.breaks if one.text in now]
    broken += [f"the processor has no {flag} (cpuinfo)" for flag in missing]
    stun = mechanism.cross_thread and identity.smt is not False
    sibling = [_SIBLING] if stun else []
    stays = [mechanism.stays] if mechanism.stays else []
    if broken:
        verdict = HostVerdict.PARTLY if Means.UNMAP in mechanism.by else HostVerdict.NOT_COVERED
        return HostVulnerability(name, mechanism.title, now, verdict, by, (*broken, *sibling, *stays))
    verdict = HostVerdict.PARTLY if mechanism.partly or stun else HostVerdict.COVERED
    # A disabled sibling is what makes the verdict: without a stun it has to stay so.
    redundant = tuple(
        f"{one.what} (with a stun)" if one.needs_stun else one.what
        for one in mechanism.redundant
        if re.search(one.text, now)
    )
    return HostVulnerability(name, mechanism.title, now, verdict, by, (*sibling, *stays), redundant)


def _smt(root: Path, fields: Mapping[str, str]) -> bool | None:
    file = _first(root, _SMT, "smt/active", "cpu/smt/active")
    if file is not None:
        return _read(file).strip() == "1"
    siblings, cores = _number(fields.get("siblings")), _number(fields.get("cpu cores"))
    return None if siblings is None or cores is None else siblings > cores


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None


def _first(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise HostError(f"{file}: cannot be read: {reason}") from error
