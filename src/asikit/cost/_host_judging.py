"""What ASI would do about a vulnerability on a machine, from the kernel's line and the vulnerability's mechanism."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from asikit.cost._host_lines import Exposure, KernelLine, LineStatus, Means, Sibling, Stun

if TYPE_CHECKING:
    from collections.abc import Iterable

    from asikit.cost._host_lines import HostMechanism, LinePiece

__all__ = ["Circumstances", "HostVerdict", "HostVulnerability", "judged"]

_CVE = "CVE-"
"""With what a name begins that is no file's."""
_SIBLING = "what the sibling thread does meanwhile, unless it is stunned (in no published code) or off"
_HIDDEN_SIBLING = "what the sibling thread does meanwhile: a guest does not see whether there is one, and whose it is"
_STIBP = "what the sibling thread trains meanwhile: STIBP is not always on"


class HostVerdict(StrEnum):
    """What ASI would do about a vulnerability on this machine."""

    NOT_NEEDED = "not needed"
    """The processor is not affected."""
    COVERED = "covered"
    PARTLY = "partly"
    """But for what :attr:`HostVulnerability.remains` says."""
    NOT_COVERED = "not covered"
    UNKNOWN = "unknown"
    """To the kernel, or to this asikit: newer than it, or in words that it does not read."""
    NOT_TOLD = "not told"
    """The machine has no such file: its kernel is older, or the file was not saved."""


@dataclass(frozen=True, slots=True)
class HostVulnerability:
    """One vulnerability on this machine.

    :ivar name: The file in sysfs.
    :ivar now: What the kernel says; empty if it says nothing.
    :ivar by: What of ASI acts against it.
    :ivar today: Whether the machine is vulnerable as it is, without ASI.
    :ivar remains: What ASI leaves, or why the verdict is no better; one reason each.
    :ivar redundant: Of today's mitigations, what it would make unnecessary.
    :ivar kept: Of today's mitigations, what is still needed.
    :ivar unread: What of the kernel's line this asikit does not read.
    """

    name: str
    title: str
    now: str
    verdict: HostVerdict
    by: tuple[str, ...] = ()
    remains: tuple[str, ...] = ()
    redundant: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    today: Exposure = Exposure.UNKNOWN


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What of a machine decides besides the line.

    :ivar flags: That it is known to have.
    :ivar complete: Whether a flag that is not among them is one that it does not have.
    :ivar absent: That it is known not to have.
    :ivar smt: Whether sibling threads are in use; None: not known, as in any guest.
    :ivar has_smt: Whether there are sibling threads, in use or not.
    :ivar stibp: Whether STIBP is on for all.
    """

    flags: frozenset[str]
    complete: bool
    absent: frozenset[str]
    guest: bool
    smt: bool | None
    has_smt: bool | None
    stibp: bool
    model_bugs: frozenset[str]
    model: str | None

    @property
    def sibling(self) -> bool:
        """Whether a sibling thread may run meanwhile."""
        return self.guest or self.smt is not False


class _Reason(NamedTuple):
    """Why a means of ASI's fails; if it is not certain, why it may."""

    text: str
    certain: bool


def judged(
    name: str, now: str | None, line: KernelLine | None, mechanism: HostMechanism | None, here: Circumstances
) -> HostVulnerability:
    """Return what ASI would do about a vulnerability.

    :param now: What the kernel says, None if nothing.
    """
    found = _judged(name, now, line, mechanism, here)
    return found if line is None else replace(found, today=line.exposure)


def _judged(
    name: str, now: str | None, line: KernelLine | None, mechanism: HostMechanism | None, here: Circumstances
) -> HostVulnerability:
    title = name if mechanism is None else mechanism.title
    if now is None or line is None:
        has = mechanism is not None and not here.model_bugs.isdisjoint(mechanism.bugs)
        why = (f"{here.model}, the nearest CPU model, has it",) if has else ()
        return HostVulnerability(name, title, "", HostVerdict.NOT_TOLD, (), why)
    unread = tuple(f'asikit does not read "{part}" in what the kernel says' for part in line.unread)
    if line.status is LineStatus.NOT_AFFECTED and not unread:
        return HostVulnerability(name, title, now, HostVerdict.NOT_NEEDED)
    if mechanism is None:
        newer = "the kernel knows this vulnerability, and this asikit does not"
        alone = "Linux has no file for it: a checker alone speaks of it"
        reason = alone if name.startswith(_CVE) else newer
        return HostVulnerability(name, title, now, HostVerdict.UNKNOWN, (), (reason,))
    if line.status is LineStatus.UNKNOWN:
        return HostVulnerability(name, title, now, HostVerdict.UNKNOWN, (), ("the kernel itself does not know",))
    if Means.NOTHING in mechanism.by:
        remains = (*unread, mechanism.stays)
        kept = _made(line.pieces)
        return HostVulnerability(name, title, now, HostVerdict.NOT_COVERED, (), remains, (), kept, line.unread)
    verdict, remains = _verdict(line, mechanism, here)
    if unread:
        verdict, remains = HostVerdict.UNKNOWN, (*unread, *remains)
    may = verdict in {HostVerdict.COVERED, HostVerdict.PARTLY} and not _failing(line, mechanism, here)
    redundant, kept = _today(line.pieces, mechanism, here) if may else ((), _made(line.pieces))
    by = tuple(one.value for one in mechanism.by)
    return HostVulnerability(name, title, now, verdict, by, remains, redundant, kept, line.unread)


def _verdict(line: KernelLine, mechanism: HostMechanism, here: Circumstances) -> tuple[HostVerdict, tuple[str, ...]]:
    """Return the verdict on a line of which all is read, and what remains."""
    failing = _failing(line, mechanism, here)
    sibling = _sibling(line, mechanism, here)
    besides = tuple(piece.remains for piece in line.pieces if piece.remains)
    stays = (mechanism.stays,) if mechanism.stays and (here.sibling or not mechanism.sibling_stays) else ()
    remains = (*(reason.text for reason in failing), *sibling, *besides, *stays)
    if failing:
        if Means.UNMAP in mechanism.by:
            return HostVerdict.PARTLY, remains
        certain = any(reason.certain for reason in failing)
        return HostVerdict.NOT_COVERED if certain else HostVerdict.UNKNOWN, remains
    verdict = HostVerdict.PARTLY if mechanism.partly or sibling or besides else HostVerdict.COVERED
    return verdict, remains


def _failing(line: KernelLine, mechanism: HostMechanism, here: Circumstances) -> tuple[_Reason, ...]:
    """Return why ASI's means against a vulnerability do not work on this machine, or may not."""
    failing = [_Reason(piece.breaks, certain=True) for piece in line.pieces if piece.breaks]
    if line.lacks_microcode and mechanism.microcode:
        failing.append(_Reason(f"without the microcode {mechanism.microcode}", certain=True))
    elif mechanism.silent and line.status is LineStatus.VULNERABLE:
        silent = f"the kernel does not say whether the microcode is there, without which {mechanism.microcode}"
        failing.append(_Reason(silent, certain=False))
    # The flag of VERW is the microcode's. A hypervisor may hide a flag that the processor has.
    for flag in () if line.lacks_microcode and Means.BUFFERS in mechanism.by else mechanism.needs:
        if flag in here.absent or (here.complete and flag not in here.flags):
            failing.append(_Reason(f"the processor has no {flag} (cpuinfo)", certain=True))
        elif flag not in here.flags:
            hidden = f"whether the processor has {flag} is not told (cpuinfo, or lscpu, would)"
            failing.append(_Reason(hidden, certain=False))
    return tuple(failing)


def _sibling(line: KernelLine, mechanism: HostMechanism, here: Circumstances) -> tuple[str, ...]:
    """Return what the sibling thread can do that ASI does not stop."""
    if Sibling.SAFE in line.siblings or not here.sibling:
        return ()
    if mechanism.cross_thread:
        return (_HIDDEN_SIBLING if here.guest else _SIBLING,)
    return (_STIBP,) if mechanism.stibp and not here.stibp else ()


def _today(
    pieces: Iterable[LinePiece], mechanism: HostMechanism, here: Circumstances
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which of today's mitigations ASI makes unnecessary, and which not."""
    redundant: list[str] = []
    kept: list[str] = []
    for piece in pieces:
        if piece.keeps:
            kept.append(piece.keeps)
        if not piece.makes:
            continue
        if piece.stun is Stun.ALWAYS:
            # "SMT disabled" is what the kernel says of a processor without SMT, too; a guest cannot stun its host's.
            if here.has_smt and not here.guest:
                redundant.append(f"{piece.makes} (with a stun)")
        elif not (mechanism.cross_thread and here.sibling):
            redundant.append(piece.makes)
        elif here.guest:
            # Buffers are whoever's that ran on the core, so in a guest their flush rests on what the host does.
            samples = not {Means.BUFFERS, Means.L1D}.isdisjoint(mechanism.by)
            words = f"{piece.makes} (with SMT off in its host)" if piece.stun else piece.makes
            (kept if samples else redundant).append(piece.makes if samples else words)
        else:
            redundant.append(f"{piece.makes} (with a stun)" if piece.stun else piece.makes)
    return tuple(dict.fromkeys(redundant)), tuple(dict.fromkeys(kept))


def _made(pieces: Iterable[LinePiece]) -> tuple[str, ...]:
    """Return all of today's mitigations that the pieces name."""
    return tuple(dict.fromkeys(what for piece in pieces for what in (piece.makes, piece.keeps) if what))
