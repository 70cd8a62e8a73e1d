"""The verdict: two runs of one machine that differ in nothing but the secret, and whether the attacker can tell.

No leak is said only of an attack that took place: the victim came to where the processor can go wrong, the attacker
looked afterwards, and both came to their end. Of any other it is unknown. Where there is no such attack, by the
processor or by how the vulnerability works, the verdict is that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

import msgspec

from asikit.attacks.lab import Lab
from asikit.attacks.programs import Play, interleaver, play
from asikit.attacks.reading import load_vulnerability
from asikit.attacks.stops import siblings_off
from asikit.attacks.vectors import Vector, vector_named
from asikit.machine.kernel import DeadlockError, Machine, MachineConfig
from asikit.machine.x86 import load_cpu
from asikit.mitigations import mitigation
from asikit.threat import first_difference, leave_stale_translations, nothing_is_sensitive

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.attacks.evidence import Observation
    from asikit.attacks.stops import Obstacle
    from asikit.attacks.vulnerability import Vulnerability, Way
    from asikit.machine.x86 import CpuModel, StructureName
    from asikit.machine.x86.model import Clearing
    from asikit.mitigations import Setup
    from asikit.threat import Parting

__all__ = ["SECRETS", "AttackVerdict", "Cell", "Divergence", "Finding", "attack", "machine_config", "put_on"]

SECRETS: Final = (bytes.fromhex("5ec2e7a1b2c3d4e5"), bytes.fromhex("a13d185e4d3c2b1a"))
"""The two secrets: each byte of one is the complement of the other's, so that any that gets out tells them apart."""
_MEMORY: Final = 16 << 20
_LIMIT: Final = 24_000
"""Logical time of all CPUs together after which an attack is given up; those that get anywhere need half of it."""


class AttackVerdict(StrEnum):
    """What becomes of an attack."""

    LEAK = "LEAK"
    NO_LEAK = "NO LEAK"
    """It took place in the model, and the attacker saw nothing that depends on the secret."""
    NOT_APPLICABLE = "NOT APPLICABLE"
    """There is no such attack: the processor or the vulnerability is not so."""
    UNKNOWN = "UNKNOWN"
    """The model has no such attack, or it did not take place there."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of the matrix, by names; a vulnerability and a CPU may be files (`.toml`)."""

    vulnerability: str
    vector: str
    cpu: str
    mitigation: str


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first thing that the attacker sees that depends on the secret.

    :ivar number: Of the observation, from 1.
    :ivar values: What differs, of both runs.
    """

    number: int
    step: str
    source: str
    values: tuple[str, str]


@dataclass(frozen=True, slots=True)
class Finding:
    """A cell's verdict.

    :ivar reason: Why, in one line.
    :ivar difference: What the attacker can tell the secrets apart by, for LEAK.
    :ivar way: The mechanism that it is about; `way_number` its place in the vulnerability's file, from 1, or 0 if no
        attack was run.
    :ivar stopped: For NO LEAK: what stopped it, what it did most often first.
    :ivar story: What the processor did transiently in the first run, and what the attacker saw; of a leak up to there.
    """

    cell: Cell
    verdict: AttackVerdict
    reason: str
    difference: Divergence | None = None
    way: str = ""
    way_number: int = 0
    story: tuple[str, ...] = ()
    stopped: tuple[Obstacle, ...] = ()

    def to_dict(self, *, story: bool = False) -> dict[str, Any]:
        """Return it as a row of `asikit.attack/1`; `story` adds what happened, step by step."""
        cell = self.cell
        row: dict[str, Any] = {
            "vulnerability": cell.vulnerability,
            "vector": cell.vector,
            "cpu": cell.cpu,
            "mitigation": cell.mitigation,
            "verdict": str(self.verdict),
            "reason": self.reason,
        }
        if self.difference is not None:
            found = self.difference
            row["observation"] = {
                "number": found.number,
                "step": found.step,
                "source": found.source,
                "values": list(found.values),
            }
        if story:
            row |= {"mechanism": self.way, "story": list(self.story)}
            row |= {"stopped": [stop._asdict() for stop in self.stopped]} if self.stopped else {}
        return row


def attack(cell: Cell) -> Finding:
    """Attack, twice, and compare what the attacker saw.

    :raises LeakError: There is no vulnerability, vector or mitigation of a name that the cell has.
    :raises CpuModelError: There is no CPU model of the name that the cell has.
    """
    vulnerability, cpu = load_vulnerability(cell.vulnerability), load_cpu(cell.cpu)
    mitigation(cell.mitigation)  # a wrong name is wrong whatever the verdict would be
    if vulnerability.not_modelled:
        return Finding(cell, AttackVerdict.UNKNOWN, f"not modelled: {vulnerability.not_modelled}")
    vector = vector_named(cell.vector)
    ways, why = _ways(vulnerability, vector, cpu)
    if not ways:
        return Finding(cell, AttackVerdict.NOT_APPLICABLE, why)
    findings = []
    for way in ways:
        found = _attacked(cell, vulnerability, way, cpu) if vector.suits(way, cpu) else _not_modelled(cell, way)
        if found.verdict is AttackVerdict.LEAK:
            return found
        findings.append(found)
    return next((found for found in findings if found.verdict is AttackVerdict.UNKNOWN), findings[0])


def _not_modelled(cell: Cell, way: Way) -> Finding:
    """Return the verdict on a way that works along a vector, and for which there is no program."""
    why = f"not modelled: no program has its mechanism along {cell.vector}"
    return Finding(cell, AttackVerdict.UNKNOWN, why, way=_said(way))


def _said(way: Way) -> str:
    return f"{way.mechanism}{f' by {way.branch}' if way.branch is not None else ''}"


def _ways(vulnerability: Vulnerability, vector: Vector, cpu: CpuModel) -> tuple[tuple[Way, ...], str]:
    """Return the ways that are attacks along a vector on a processor; if there are none, why."""
    if not vulnerability.concerns(cpu):
        return (), f"{cpu.name} does not have it"
    having = vulnerability.on(cpu)
    if not having:
        return (), f"{cpu.name} has it in none of its ways, by its vendor and bugs"
    ways = tuple(way for way in having if vector.concerns(way, cpu))
    if vector.wants_siblings and cpu.threads == 1 and ways:
        return (), f"{cpu.name} has no sibling threads"
    return ways, "; ".join(dict.fromkeys(vector.why_not(way, cpu) for way in having))


def _attacked(cell: Cell, vulnerability: Vulnerability, way: Way, cpu: CpuModel) -> Finding:
    vector, model = vector_named(cell.vector), model_for(cpu, vulnerability, way)
    setup = mitigation(cell.mitigation).build(model, smt=vector.wants_siblings)
    one, other = (_run(vulnerability, way, model, setup, vector, secret) for secret in SECRETS)
    if vector.wants_siblings and not setup.smt:
        one.stops[siblings_off()] += len(one.log)
    return replace(_compared(cell, way, one, other), way_number=vulnerability.ways.index(way) + 1)


def model_for(cpu: CpuModel, vulnerability: Vulnerability, way: Way) -> CpuModel:
    """Return a CPU model with the vulnerability among its bugs, and its structures as the way has them."""
    changed = {
        str(name): msgspec.structs.replace(
            getattr(cpu.structures, name),
            cleared_by=_clearing(cpu, way, name),
            sharing=way.shared(cpu, name),
        )
        for name in {**way.cleared_by, **way.survives, **way.sharing}
    }
    bugs = cpu.bugs | ({vulnerability.bug} if vulnerability.bug is not None else set())
    return msgspec.structs.replace(
        cpu, bugs=frozenset(bugs), structures=msgspec.structs.replace(cpu.structures, **changed)
    )


def _clearing(cpu: CpuModel, way: Way, name: StructureName) -> tuple[Clearing, ...]:
    """Return what clears a structure wholly, so that nothing that this way is about is left."""
    by = way.cleared_by.get(name, getattr(cpu.structures, name).cleared_by)
    return tuple(primitive for primitive in by if primitive not in way.survives.get(name, ()))


def _run(  # noqa: PLR0917 - what an attack is made of
    vulnerability: Vulnerability, way: Way, model: CpuModel, setup: Setup, vector: Vector, secret: bytes
) -> Lab:
    machine = Machine(_config(setup, vector))
    lab = _prepare(machine, vulnerability, way, model, setup)
    play(vector, Play(machine, lab, secret))
    try:
        machine.run(_LIMIT)
    except DeadlockError as error:  # a mutant whose stunned sibling nobody releases; what was seen until then counts
        lab.evidence.unfinished = str(error)
    else:
        lab.evidence.unfinished = lab.evidence.unfinished or _unfinished(machine)
    machine.close()
    return lab


def _unfinished(machine: Machine) -> str:
    """Return which of an attack's programs has not ended as it should; empty if all have."""
    for process in machine.processes:
        if process.status is None:
            return f"{process.name} does not come to its end"
        if process.status:
            return f"{process.name} ended with {process.exit_code}"
    return ""


def machine_config(cell: Cell) -> MachineConfig:
    """Return the machine that a cell needs, for a scenario: its `CONFIG`. Raises as `attack`."""
    vulnerability, cpu, vector = load_vulnerability(cell.vulnerability), load_cpu(cell.cpu), vector_named(cell.vector)
    model = next((model_for(cpu, vulnerability, way) for way in vulnerability.ways), cpu)
    return _config(mitigation(cell.mitigation).build(model, smt=vector.wants_siblings), vector)


def put_on(
    machine: Machine, cell: Cell, *, way_number: int, secret: bytes, tell: Callable[[Observation], object]
) -> None:
    """Put an attack onto a machine that a scenario was given; see `machine_config`.

    :param way_number: As in `Finding`. :param tell: Is given what the attacker sees. Raises as `attack`.
    """
    vulnerability, cpu, vector = load_vulnerability(cell.vulnerability), load_cpu(cell.cpu), vector_named(cell.vector)
    way = vulnerability.ways[way_number - 1]
    model = model_for(cpu, vulnerability, way)
    setup = mitigation(cell.mitigation).build(model, smt=vector.wants_siblings)
    lab = _prepare(machine, vulnerability, way, model, setup)
    lab.tell = tell
    play(vector, Play(machine, lab, secret))


def _config(setup: Setup, vector: Vector) -> MachineConfig:
    return MachineConfig(
        asi=setup.asi,
        cpus=vector.cpus,
        smt=setup.smt and vector.wants_siblings,
        memory=_MEMORY,
        protocol=setup.protocol,
        interleaver=partial(interleaver, vector),
        sensitivity=None if setup.unmapped else nothing_is_sensitive,
    )


def _prepare(machine: Machine, vulnerability: Vulnerability, way: Way, model: CpuModel, setup: Setup) -> Lab:
    if not setup.shootdown:
        leave_stale_translations(machine)
    return Lab(machine, vulnerability, way, model, setup.hardening)


def _compared(cell: Cell, way: Way, one: Lab, other: Lab) -> Finding:
    said = _said(way)
    story = tuple(one.story)
    parted = first_difference(one.log, other.log)
    if parted is not None:
        found = _divergence(parted)
        reason = f"{found.step}: {found.source} differs: {found.values[0]} or {found.values[1]}"
        upto = one.told[parted.place] if parted.one is not None else len(story)
        return Finding(cell, AttackVerdict.LEAK, reason, found, said, story=story[:upto])
    missing = one.evidence.missing(way) or other.evidence.missing(way)
    if missing:
        return Finding(cell, AttackVerdict.UNKNOWN, missing, None, said, story=story)
    reason = f"{len(one.log)} observations, all equal"
    stopped = tuple(stop for stop, _ in one.stops.most_common())
    return Finding(cell, AttackVerdict.NO_LEAK, reason, None, said, story=story, stopped=stopped)


def _divergence(parted: Parting[Observation]) -> Divergence:
    seen = parted.seen
    ours, theirs = (() if each is None else each.value for each in (parted.one, parted.other))
    pair = next((pair for pair in zip_longest(ours, theirs, fillvalue="nothing") if pair[0] != pair[1]), ("", ""))
    return Divergence(parted.place + 1, seen.step, seen.source, (_short(pair[0], pair[1]), _short(pair[1], pair[0])))


def _short(value: str, other: str) -> str:
    """Return the part of a value that differs from another's: of a cache line the first eight bytes from there."""
    start = next((at for at, pair in enumerate(zip_longest(value, other)) if pair[0] != pair[1]), 0) // 2 * 2
    return value if len(value) <= 32 else value[start : start + 16]  # noqa: PLR2004 - half a line's text
