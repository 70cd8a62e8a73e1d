"""How the kernel's line about a vulnerability is read: what it begins with, and what its pieces mean.

The wordings are in ``data/host.toml``. A line with a piece that is not there is not read: whoever judges it must not
take it for covered.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from typing import TYPE_CHECKING

import msgspec

from asikit.cost.errors import HostError
from asikit.documents import shipped_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "Exposure",
    "HostMechanism",
    "KernelLine",
    "LinePiece",
    "LineStatus",
    "Means",
    "Sibling",
    "Stibp",
    "Stun",
    "mechanisms",
    "read_line",
]


class LineStatus(StrEnum):
    """What a line begins with."""

    NOT_AFFECTED = "not affected"
    MITIGATED = "mitigation"
    VULNERABLE = "vulnerable"
    UNKNOWN = "unknown"
    """To the kernel itself."""
    UNREAD = "unread"


class Means(StrEnum):
    """What of ASI acts against a vulnerability."""

    UNMAP = "unmap"
    PREDICTOR = "predictor"
    BUFFERS = "buffers"
    L1D = "l1d"
    NOTHING = "nothing"


class Stun(StrEnum):
    """When a mitigation of today is unnecessary only with a stun of the sibling."""

    ALWAYS = "always"
    SIBLINGS = "siblings"
    """Where sibling threads are in use, as it stops what they do, too."""


class Sibling(StrEnum):
    """What a line says about the sibling thread."""

    USED = "used"
    OFF = "off"
    SAFE = "safe"
    """In use, and no danger in this vulnerability."""
    HIDDEN = "hidden"
    """From a guest."""


class Stibp(StrEnum):
    """Why STIBP is on for all."""

    ALWAYS = "always"
    IMPLIED = "implied"
    """By Intel's enhanced IBRS; AMD's automatic IBRS, which has the same words, implies none."""


class LinePiece(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A piece of a line; ``data/host.toml`` explains its keys."""

    text: str
    makes: str = ""
    keeps: str = ""
    stun: Stun | None = None
    breaks: str = ""
    remains: str = ""
    shows: tuple[str, ...] = ()
    stibp: Stibp | None = None
    sibling: Sibling | None = None
    lacks_microcode: bool = False
    exposed: bool = False


class HostMechanism(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A vulnerability in ``data/host.toml``, which explains its keys."""

    title: str
    by: tuple[Means, ...]
    pieces: tuple[LinePiece, ...]
    needs: tuple[str, ...] = ()
    microcode: str = ""
    silent: bool = False
    stays: str = ""
    sibling_stays: bool = False
    partly: bool = False
    cross_thread: bool = False
    stibp: bool = False
    bare_metal: bool = False
    bugs: tuple[str, ...] = ()
    vendors: tuple[str, ...] = ()
    foreign: bool = False
    cves: tuple[str, ...] = ()


class _Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    common: tuple[LinePiece, ...]
    vulnerability: dict[str, HostMechanism]


class Exposure(StrEnum):
    """Whether a machine is vulnerable as it is."""

    VULNERABLE = "vulnerable"
    PARTLY = "partly"
    """To what the sibling thread does, or to a part that the kernel names."""
    UNKNOWN = "unknown"
    NO = "no"


@dataclass(frozen=True, slots=True)
class KernelLine:
    """What the kernel says about a vulnerability, read.

    :ivar pieces: What follows the status, as far as it is known.
    :ivar unread: What of it is not.
    """

    status: LineStatus
    pieces: tuple[LinePiece, ...] = ()
    unread: tuple[str, ...] = ()

    @property
    def siblings(self) -> frozenset[Sibling]:
        """What the line says about the sibling thread."""
        return frozenset(piece.sibling for piece in self.pieces if piece.sibling is not None)

    @property
    def exposure(self) -> Exposure:
        """Whether the machine is vulnerable as it is, as the kernel says."""
        if self.status is LineStatus.VULNERABLE:
            return Exposure.VULNERABLE
        if self.status in {LineStatus.UNKNOWN, LineStatus.UNREAD} or self.unread:
            return Exposure.UNKNOWN
        return Exposure.PARTLY if any(piece.exposed for piece in self.pieces) else Exposure.NO

    @property
    def lacks_microcode(self) -> bool:
        """Whether the line says that the microcode is not there."""
        return any(piece.lacks_microcode for piece in self.pieces)


# "KVM: Mitigation: Split huge pages", "Mitigation; PTI" (lscpu), "Vulnerable, no microcode", "Unknown (XEN PV ...".
_HEAD = re.compile(
    r"(?:kvm |processor )?(not affected|mitigation|vulnerable|unknown)(?=$|[\s;,(])[\s;,-]*", re.IGNORECASE
)
_BETWEEN = re.compile(r"\s*[;,]\s*|\s+-\s+")


@cache
def _table() -> _Table:
    return shipped_text("host.toml", _Table, HostError, "table of vulnerabilities")


def mechanisms() -> Mapping[str, HostMechanism]:
    """Return what is known of each vulnerability, by its file's name in sysfs."""
    return _table().vulnerability


def read_line(text: str, mechanism: HostMechanism | None) -> KernelLine:
    """Return what a line of the kernel's says.

    :param mechanism: The vulnerability's; without one, nothing but the status is read.
    """
    # lscpu has "Mitigation; ... IBPB conditional" where the kernel has "Mitigation: ... IBPB: conditional".
    words = " ".join(text.replace(":", " ").split())
    head = _HEAD.match(words)
    if head is None:
        return KernelLine(LineStatus.UNREAD, (), (text,))
    status = LineStatus(head.group(1).lower())
    rest = words[head.end() :]
    if status is LineStatus.UNKNOWN or mechanism is None:
        return KernelLine(status)
    known = () if status is LineStatus.NOT_AFFECTED else (*mechanism.pieces, *_table().common)
    found = [(part, _piece(part, known)) for part in _BETWEEN.split(rest) if part]
    return KernelLine(
        status,
        tuple(piece for _, piece in found if piece is not None),
        tuple(part for part, piece in found if piece is None),
    )


def _piece(part: str, known: Iterable[LinePiece]) -> LinePiece | None:
    return next((piece for piece in known if re.fullmatch(piece.text, part, re.IGNORECASE)), None)
