"""What people have of a machine, as one: its files, ``grep .`` of them, ``lscpu``, ``/proc/cpuinfo``, a checker's JSON.

A text may hold several of these, one after the other. A line that is none of them means nothing here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from asikit.cost._host_json import HostFacts, read_json_report
from asikit.cost._host_lines import mechanisms
from asikit.cost.errors import HostError

if TYPE_CHECKING:
    from collections.abc import Iterable


__all__ = ["HostText", "Told", "gather"]

THIS_MACHINE = Path("/")
_VULNERABILITIES = "sys/devices/system/cpu/vulnerabilities"
_SMT = "sys/devices/system/cpu/smt"
_CPUINFO = "proc/cpuinfo"
_X86 = {"x86_64", "i386", "i486", "i586", "i686"}
_SAVE = "give the output of `grep . /sys/devices/system/cpu/vulnerabilities/*`, of `lscpu`, or /proc/cpuinfo"

_COLOURS = re.compile(r"\x1b\[[0-9;]*[mK]")
_MARKS = re.compile(r"^\s*(?:[>*-] +)+", re.MULTILINE)
"""What a reply or a list puts before each line."""
_HEADER = re.compile(r"==> (?P<path>\S+) <==$")
_GREPPED = re.compile(r"\s*(?:\S*/)?(?P<path>(?:vulnerabilities|smt)/\w+)\s*:\s*(?P<text>.*)$")
_FIELD = re.compile(r"\s*(?P<key>[^:]+?)\s*:\s*(?P<text>.*)$")
_LSCPU_PREFIX = "vulnerability "
_LSCPU_SECTION = "vulnerabilities"
_SAME_KEYS = {"vendor id": "vendor_id"}
_IDENTITY = ("vendor_id", "cpu family", "model", "stepping")
"""What two sources of one machine cannot tell in two ways."""
_NUMBERS = {"cpu family", "model", "stepping", "siblings", "cpu cores", "thread(s) per core"}
"""Keys with a number: "Model: ASUS" is of something else."""
_WRAPPED_AT = 16
"""No line of lscpu's has its value nearer to the left: one that begins with as many blanks goes on with the last."""


@dataclass(frozen=True, slots=True)
class HostText:
    """A text about a machine that is no file, standard input for example.

    :ivar name: What messages call it.
    """

    name: str
    text: str


@dataclass(slots=True)
class Told(HostFacts):
    """What the sources tell, together.

    :ivar checked: Only where no source has the kernel's line.
    :ivar taken: How many times a source said something, be it what another said before.
    """

    taken: int = 0
    _from: dict[str, str] = field(default_factory=dict)

    def say(self, name: str, text: str, source: str) -> None:
        """Take the kernel's line about a vulnerability."""
        text = " ".join(text.split())
        if not text:
            return
        self.taken += 1
        before = self.lines.setdefault(name, text)
        where = self._from.setdefault(name, source)
        if _plain(before) != _plain(text):
            raise HostError(f'{source}: {name}: "{text}", where {where} has "{before}": give files of one machine')

    def describe(self, key: str, text: str, source: str) -> None:
        """Take what a source says about the processor; of several processors the first counts."""
        self.taken += 1
        before = self.cpu.setdefault(key, text)
        where = self._from.setdefault(f"cpu {key}", source)
        if key in _IDENTITY and before != text and where != source:
            raise HostError(f"{source}: {key} {text}, where {where} has {before}: give files of one machine")

    def add(self, report: HostFacts, source: str) -> None:
        """Take what a JSON report says."""
        for name, text in report.lines.items():
            self.say(name, text, source)
        for key, text in report.cpu.items():
            self.describe(key, text, source)
        self.taken += len(report.checked)
        self.checked = {**report.checked, **self.checked}
        self.smt = {**report.smt, **self.smt}
        self.present |= report.present
        self.absent |= report.absent

    def switch(self, name: str, text: str) -> None:
        """Take what ``smt/active`` or ``smt/control`` has."""
        self.taken += 1
        self.smt.setdefault(name, text.strip())


def gather(sources: Iterable[Path | HostText]) -> Told:
    """Return what all sources tell.

    :raises HostError: One is not there, is not readable, says nothing about a machine, or is about another machine than
        the rest.
    """
    told = Told()
    for source in sources:
        before = told.taken
        if isinstance(source, HostText):
            _read_text(told, source)
        elif source.is_dir():
            _read_folder(told, source)
            continue
        elif source.exists():
            _read_text(told, HostText(str(source), _read(source)))
        else:
            raise HostError.usage(f"{source}: no such file or folder: {_SAVE}")
        if told.taken == before:
            name = source.name if isinstance(source, HostText) else str(source)
            raise HostError(f"{name}: nothing about a machine in it: {_SAVE}")
    told.checked = {name: text for name, text in told.checked.items() if name not in told.lines}
    architecture = told.cpu.get("architecture", "x86_64")
    if architecture not in _X86:
        raise HostError(f"{told._from['cpu architecture']}: of {architecture}: asikit models x86-64 alone")  # noqa: SLF001
    return told


def _read_folder(told: Told, root: Path) -> None:
    """Take what a machine has under / or what was saved of it: its files, in ``sys`` and ``proc`` or side by side."""
    folder = _first(root, _VULNERABILITIES, "vulnerabilities", "cpu/vulnerabilities")
    known = mechanisms()
    # In a folder that has cpuinfo beside them, only the names that a kernel has are vulnerabilities.
    for item in sorted((folder or root).iterdir()):
        if item.is_file() and (folder is not None or item.name in known):
            told.say(item.name, _read(item), str(item))
    for name in ("active", "control"):
        file = _first(root, f"{_SMT}/{name}", f"smt/{name}", f"cpu/smt/{name}")
        if file is not None:
            told.switch(name, _read(file))
    cpuinfo = _first(root, _CPUINFO, "cpuinfo")
    if cpuinfo is not None:
        _read_text(told, HostText(str(cpuinfo), _read(cpuinfo).split("\n\n")[0]))


def _read_text(told: Told, source: HostText) -> None:
    text = _MARKS.sub("", _COLOURS.sub("", source.text).lstrip("\ufeff"))
    if text.lstrip().startswith(("{", "[")):
        told.add(read_json_report(text, source.name), source.name)
        return
    known = mechanisms()
    section, header = False, ""
    for line in _unwrapped(text):
        if head := _HEADER.match(line):
            header = head["path"]
        elif grepped := _GREPPED.match(line):
            _take_file(told, grepped["path"], grepped["text"], source.name)
        elif header:
            _take_file(told, header, line, source.name)
            header = header if not line.strip() else ""
        elif found := _FIELD.match(line):
            key, value = found["key"].lower(), found["text"].strip()
            # A section of lscpu's ends at the next line that is not indented.
            section = key == _LSCPU_SECTION or (section and line[0].isspace())
            name = key.removeprefix(_LSCPU_PREFIX).replace(" ", "_")
            if key.startswith(_LSCPU_PREFIX) or name in known or (section and key != _LSCPU_SECTION):
                told.say(name, value, source.name)
            elif key in _KEYS and (value.isdigit() or key not in _NUMBERS):
                told.describe(_SAME_KEYS.get(key, key), value, source.name)


_KEYS = {
    *("vendor_id", "cpu family", "model", "model name", "stepping", "microcode", "siblings", "cpu cores", "flags"),
    *("bugs", "address sizes"),
    *("vendor id", "thread(s) per core", "hypervisor vendor", "architecture"),
}
"""The keys of /proc/cpuinfo and of lscpu that count, in small letters."""


def _take_file(told: Told, path: str, text: str, source: str) -> None:
    """Take what a file of /sys/devices/system/cpu has."""
    folder, _, name = path.rpartition("/")
    if folder.endswith("vulnerabilities"):
        told.say(name, text, source)
    elif folder.endswith("smt") and text.strip():
        told.switch(name, text)


def _unwrapped(text: str) -> list[str]:
    """Return the lines, those that lscpu broke at the terminal's edge whole again.

    lscpu breaks anywhere, within a word too, and goes on below the value. Whoever pastes that may lose a blank at the
    end: a line shorter than the terminal had one.
    """
    whole: list[str] = []
    last, column = "", 0
    lines = text.splitlines()
    begins = [bool(line[:_WRAPPED_AT].strip()) for line in lines]
    edge = max((len(one) for one, after in zip(lines, begins[1:], strict=False) if not after), default=0)
    for line, begin in zip(lines, begins, strict=True):
        if begin or not whole or not line.strip():
            whole.append(line)
            found = _FIELD.match(line)
            column = found.start("text") if found else 0
        elif column and not line[:column].strip():
            whole[-1] += " " * (edge - len(last)) + line[column:]
        last = line
    return whole


def _plain(text: str) -> str:
    """Return a line without what lscpu changes in it."""
    return re.sub(r"[:;,\s]+", " ", text).lower().strip()


def _first(root: Path, *names: str) -> Path | None:
    return next((root / name for name in names if (root / name).exists()), None)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not text"
        raise HostError(f"{file}: cannot be read: {reason}") from error
