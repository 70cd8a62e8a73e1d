"""A machine's own vulnerabilities: what mitigates each now, and what ASI would do about it there.

Linux says the first in ``/sys/devices/system/cpu/vulnerabilities``. The second follows from the mechanism of each
vulnerability (``data/host.toml``) and from what the processor has: a flush needs its instruction, and what the sibling
thread can do needs a stun. What nobody tells is no reason to call anything covered.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from asikit.cost._host_judging import Circumstances, HostVerdict, HostVulnerability, judged
from asikit.cost._host_lines import Exposure, LineStatus, Sibling, Stibp, mechanisms, read_line
from asikit.cost._host_told import THIS_MACHINE, HostText, gather
from asikit.cost.errors import HostError
from asikit.documents import shipped_text
from asikit.machine.x86 import load_cpu

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from asikit.cost._host_lines import KernelLine
    from asikit.cost._host_told import Told

__all__ = [
    "HOST_SCHEMA",
    "Difference",
    "Exposure",
    "Host",
    "HostText",
    "HostVerdict",
    "HostVulnerability",
    "Identity",
    "nearest_model",
    "read_host",
    "read_identity",
]

HOST_SCHEMA = "asikit.host/1"
"""``schema`` of the JSON form."""

_SMT_PRESENT = {"on", "off", "forceoff"}
_SMT_ABSENT = {"notsupported", "notimplemented"}


@dataclass(frozen=True, slots=True)
class Identity:
    """A processor as the kernel names it.

    :ivar vendor: Empty, as :attr:`name`, if no source says anything about the processor.
    :ivar bugs: By the kernel's names.
    :ivar physical_bits: Of an address; None if nothing says so.
    :ivar threads: Of a core, as far as they are seen.
    :ivar smt: Whether sibling threads are in use; None if nothing says so, and in a guest: it does not see its host's.
    :ivar has_smt: Whether the processor has sibling threads, in use or not; None if nothing says so.
    :ivar guest: It is a virtual machine's: what its host does is not seen. None if nothing says so or the contrary.
    :ivar model: The nearest CPU model that comes with asikit, None if there is none.
    """

    vendor: str
    family: int | None
    model_number: int | None
    stepping: int | None
    name: str
    microcode: str
    flags: frozenset[str]
    bugs: frozenset[str]
    physical_bits: int | None
    threads: int
    smt: bool | None
    has_smt: bool | None
    guest: bool | None
    model: str | None


class Here(StrEnum):
    """What a machine says of a vulnerability where its model says the contrary."""

    AFFECTED = "affected"
    NOT_AFFECTED = "not affected"


@dataclass(frozen=True, slots=True)
class Difference:
    """A vulnerability that the machine has and the nearest CPU model has not, or the reverse.

    :ivar name: The file in sysfs.
    """

    name: str
    here: Here


@dataclass(frozen=True, slots=True)
class Host:
    """A machine.

    :ivar vulnerabilities: One for each name that Linux has, told or not.
    :ivar differences: Where the machine contradicts its nearest CPU model.
    """

    identity: Identity
    vulnerabilities: tuple[HostVulnerability, ...]
    differences: tuple[Difference, ...] = ()

    @property
    def redundant(self) -> tuple[str, ...]:
        """All of today's mitigations that ASI would make unnecessary, for every vulnerability that they are against."""
        kept = {what for one in self.vulnerabilities for what in one.kept}
        found = (what for one in self.vulnerabilities for what in one.redundant)
        return tuple(dict.fromkeys(what for what in found if what.partition(" (with ")[0] not in kept))

    @property
    def not_told(self) -> tuple[str, ...]:
        """The names of the vulnerabilities that no source says anything about."""
        return tuple(one.name for one in self.vulnerabilities if one.verdict is HostVerdict.NOT_TOLD)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        identity = asdict(self.identity)
        for inner in ("flags", "bugs", "physical_bits", "threads"):
            del identity[inner]
        return {
            "schema": HOST_SCHEMA,
            "cpu": identity,
            "differs_from_model": [{"name": one.name, "here": one.here.value} for one in self.differences],
            "vulnerabilities": [
                {
                    "name": one.name,
                    "now": one.now,
                    "today": one.today.value,
                    "asi": one.verdict.value,
                    "by": list(one.by),
                    "remains": list(one.remains),
                    "redundant": list(one.redundant),
                    "unread": list(one.unread),
                }
                for one in self.vulnerabilities
            ],
            "not_told": list(self.not_told),
            "redundant": list(self.redundant),
        }


def read_host(*sources: Path | HostText) -> Host:
    """Return what a machine is vulnerable to, and what ASI would do about it.

    :param sources: What tells of the machine: folders with ``vulnerabilities/`` (or its files), ``smt/`` and
        ``cpuinfo``, or these under ``sys`` and ``proc`` as on that machine; texts with the output of ``grep .`` of
        those files, of ``lscpu`` (its JSON, too) or of ``cat /proc/cpuinfo``; the JSON of spectre-meltdown-checker.
        None: this machine.
    :raises HostError: A source is not there, is not readable or says nothing; or there is no vulnerability in them.
    """
    told = gather(sources or (THIS_MACHINE,))
    _complete(told, sources)
    known = mechanisms()
    lines = {name: read_line(text, known.get(name)) for name, text in (told.checked | told.lines).items()}
    texts = {name: f"{text} (says the checker)" for name, text in told.checked.items()} | told.lines
    identity = _identity(told, lines.values())
    circumstances = _circumstances(told, identity, lines)
    names = {name for name, one in known.items() if not one.foreign and _concerns(one.vendors, identity.vendor)}
    return Host(
        identity,
        tuple(
            judged(name, texts.get(name), lines.get(name), known.get(name), circumstances)
            for name in sorted(names | texts.keys())
        ),
        tuple(_differences(lines, identity)),
    )


def read_identity(*sources: Path | HostText) -> Identity:
    """Return the processor's identity; the parameter is that of :func:`read_host`.

    :raises HostError: No source says what processor of x86 it is.
    """
    told = gather(sources or (THIS_MACHINE,))
    if "vendor_id" not in told.cpu:
        raise HostError("/proc/cpuinfo: has no vendor_id: not that of an x86 machine")
    return _identity(told, ())


def nearest_model(vendor: str, family: int | None, model: int | None, stepping: int | None = None) -> str | None:
    """Return the name of the CPU model for a processor, None if there is none.

    Steppings of one model number can have different bugs: a stepping that the table has counts before the rest.
    """
    known = shipped_text("cpu-ids.toml", dict[str, str], HostError, "table of processors")
    processor = f"{vendor}-{family}-{model}"
    return known.get(f"{processor}-{stepping}", known.get(processor))


def _complete(told: Told, sources: Iterable[Path | HostText]) -> None:
    """Refuse sources that say nothing of vulnerabilities, and a folder alone that says nothing of the processor."""
    folders = [source for source in sources or (THIS_MACHINE,) if isinstance(source, Path) and source.is_dir()]
    if folders and "vendor_id" not in told.cpu and len(folders) == len(tuple(sources or folders)):
        file = folders[0] / "cpuinfo"
        if told.cpu:
            raise HostError(f"{file}: has no vendor_id: not the /proc/cpuinfo of an x86 machine")
        raise HostError(f"{file}: missing: save /proc/cpuinfo there, or give the output of lscpu as well")
    if told.lines or told.checked:
        return
    if folders:
        raise HostError(
            f"{folders[0] / 'vulnerabilities'}: missing or empty: save /sys/devices/system/cpu/vulnerabilities there"
            " (a kernel of 4.15 or newer has a file for each vulnerability)"
        )
    raise HostError(
        "no vulnerability in what was given: add the output of `grep . /sys/devices/system/cpu/vulnerabilities/*`"
    )


def _identity(told: Told, lines: Iterable[KernelLine]) -> Identity:
    cpu = told.cpu
    siblings = {sibling for line in lines for sibling in line.siblings}
    family, number, stepping = (_number(cpu.get(key)) for key in ("cpu family", "model", "stepping"))
    flags = frozenset(cpu.get("flags", "").split()) | told.present
    guest = _guest(told, flags, siblings)
    threads = _threads(cpu)
    vendor = cpu.get("vendor_id", "")
    return Identity(
        vendor=vendor,
        family=family,
        model_number=number,
        stepping=stepping,
        name=cpu.get("model name", ""),
        microcode=cpu.get("microcode", ""),
        flags=flags,
        bugs=frozenset(cpu.get("bugs", "").split()),
        physical_bits=_number(cpu.get("address sizes", "").partition(" ")[0]),
        threads=threads or (2 if told.smt.get("active") == "1" else 1),
        smt=None if guest else _smt(told, siblings, threads),
        has_smt=_has_smt(told, siblings, threads),
        guest=guest,
        model=nearest_model(vendor, family, number, stepping),
    )


def _guest(told: Told, flags: frozenset[str], siblings: set[Sibling]) -> bool | None:
    """Tell whether it is a virtual machine's: by the flag, by lscpu's word, or by what only a guest's kernel says."""
    # "Dependent on hypervisor status", "running under hypervisor", "hypervisor mitigation required".
    says = any("hypervisor" in text.lower() for text in told.lines.values())
    if "hypervisor" in flags or "hypervisor vendor" in told.cpu or Sibling.HIDDEN in siblings or says:
        return True
    return False if "flags" in told.cpu else None


def _threads(cpu: Mapping[str, str]) -> int | None:
    """Return the threads of a core that are in use, None if nothing says so."""
    siblings, cores = _number(cpu.get("siblings")), _number(cpu.get("cpu cores"))
    counted = None if not siblings or not cores else siblings // cores
    return counted or _number(cpu.get("thread(s) per core"))


def _smt(told: Told, siblings: set[Sibling], threads: int | None) -> bool | None:
    """Tell whether sibling threads are in use; of two sources that contradict each other, the dangerous one counts."""
    if siblings & {Sibling.USED, Sibling.SAFE}:
        return True
    if "active" in told.smt:
        return told.smt["active"] == "1"
    if Sibling.OFF in siblings:
        return False
    return None if threads is None else threads > 1


def _has_smt(told: Told, siblings: set[Sibling], threads: int | None) -> bool | None:
    control = told.smt.get("control", "")
    if control in _SMT_ABSENT:
        return False
    used = siblings & {Sibling.USED, Sibling.SAFE} or told.smt.get("active") == "1"
    return True if control in _SMT_PRESENT or used or (threads or 0) > 1 else None


def _circumstances(told: Told, identity: Identity, lines: Mapping[str, KernelLine]) -> Circumstances:
    shown = {flag for line in lines.values() for piece in line.pieces for flag in piece.shows}
    promises = {piece.stibp for piece in lines["spectre_v2"].pieces} if "spectre_v2" in lines else set()
    return Circumstances(
        flags=identity.flags | shown,
        # A list in full leaves no doubt; a source without one says nothing about what it does not name.
        complete="flags" in told.cpu,
        absent=frozenset(told.absent - shown),
        guest=identity.guest is True,
        smt=identity.smt,
        has_smt=identity.has_smt,
        stibp=Stibp.ALWAYS in promises or (Stibp.IMPLIED in promises and identity.vendor == "GenuineIntel"),
        model_bugs=frozenset(bug.value for bug in load_cpu(identity.model).bugs) if identity.model else frozenset(),
        model=identity.model,
    )


def _differences(lines: Mapping[str, KernelLine], identity: Identity) -> Iterable[Difference]:
    """Yield where a machine contradicts its nearest CPU model."""
    if identity.model is None:
        return
    bugs = {bug.value for bug in load_cpu(identity.model).bugs}
    known = mechanisms()
    for name in sorted(lines.keys() & known.keys()):
        mechanism, status = known[name], lines[name].status
        if not mechanism.bugs or (mechanism.bare_metal and identity.guest):
            continue
        has = not bugs.isdisjoint(mechanism.bugs)
        if status is LineStatus.NOT_AFFECTED and has:
            yield Difference(name, Here.NOT_AFFECTED)
        elif status in {LineStatus.MITIGATED, LineStatus.VULNERABLE} and not has:
            yield Difference(name, Here.AFFECTED)


def _concerns(vendors: tuple[str, ...], vendor: str) -> bool:
    """Tell whether a vulnerability concerns a vendor's processors; where the vendor is not told, it may."""
    return not vendors or not vendor or vendor in vendors


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
