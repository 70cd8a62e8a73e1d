"""Positions of an attacker: whom a way has to concern to work from there."""

from __future__ import annotations

import msgspec
import pytest

from asikit.attacks import LeakError
from asikit.attacks.vectors import Vector, vector_named
from asikit.attacks.vulnerability import Branch, Check, Holds, Mechanism, Tag, Way
from asikit.machine.x86 import StructureName, load_cpu
from asikit.threat import Code

CPU = load_cpu("skylake-6600u")
SAMPLES = Way(mechanism=Mechanism.SAMPLE, structures=(StructureName("fill_buffer"),), holds=Holds.DATA)
STEERS = Way(
    mechanism=Mechanism.STEER, structures=(StructureName("btb"),), tag=Tag.ADDRESS, branch=Branch.INDIRECT, steered=True
)
CHECKS = Way(mechanism=Mechanism.STEER, structures=(StructureName("pht"),), tag=Tag.ADDRESS, branch=Branch.CONDITIONAL)
READS = Way(mechanism=Mechanism.DEFERRED, defers=Check.PERMISSION, steered=True)
FROM_USER = {
    Vector.USER_KERNEL, Vector.USER_USER, Vector.CROSS_THREAD, Vector.SIBLING_USER, Vector.NMI, Vector.FLIP,
    Vector.NONSENSITIVE,
}  # fmt: skip
BY_A_GUEST_BESIDE = {Vector.CROSS_THREAD, Vector.SIBLING_GUEST}
FROM_GUEST = {Vector.GUEST_HOST, Vector.GUEST_GUEST, Vector.GUEST_USER, Vector.SIBLING_GUEST}


def concerned(way: Way) -> set[Vector]:
    """Return the positions from which a way works."""
    return {vector for vector in Vector if vector.concerns(way, CPU)}


def only(way: Way, attackers: tuple[Code, ...], victims: tuple[Code, ...]) -> Way:
    """Return a way with some attackers and victims."""
    return Way(
        mechanism=way.mechanism, structures=way.structures, holds=way.holds, attackers=attackers, victims=victims
    )


@pytest.mark.parametrize(
    ("attackers", "victims", "expected"),
    [
        ((Code.USER, Code.GUEST), tuple(Code), FROM_USER | FROM_GUEST),
        ((Code.USER,), tuple(Code), FROM_USER),
        ((Code.GUEST,), tuple(Code), FROM_GUEST | {Vector.CROSS_THREAD}),
        ((Code.USER,), (Code.USER,), {Vector.USER_USER, Vector.CROSS_THREAD, Vector.SIBLING_USER}),
        ((Code.USER,), (Code.KERNEL,), FROM_USER - {Vector.USER_USER, Vector.SIBLING_USER}),
        ((Code.GUEST,), (Code.USER,), {Vector.GUEST_USER, Vector.GUEST_HOST, *BY_A_GUEST_BESIDE}),
        ((Code.GUEST,), (Code.GUEST,), {Vector.GUEST_GUEST}),
        ((Code.USER,), (Code.GUEST,), set()),
    ],
)
def test_parties(attackers: tuple[Code, ...], victims: tuple[Code, ...], expected: set[Vector]) -> None:
    """Both the attacker and the victim of a position must be among a way's."""
    assert concerned(only(SAMPLES, attackers, victims)) == expected


def test_across_cores() -> None:
    """Only what all cores share is reached from another one."""
    way = Way(mechanism=Mechanism.SAMPLE, structures=(StructureName("staging_buffer"),), holds=Holds.RANDOM)
    assert Vector.CROSS_CORE in concerned(way)
    assert Vector.CROSS_CORE not in concerned(SAMPLES)


def test_a_file_may_name_its_vectors() -> None:
    """Then it works from nowhere else."""
    way = Way(mechanism=Mechanism.SAMPLE, structures=SAMPLES.structures, holds=Holds.DATA, vectors=("user_kernel",))
    assert concerned(way) == {Vector.USER_KERNEL}


@pytest.mark.parametrize(
    ("way", "lacking"),
    [
        (SAMPLES, {Vector.FLIP}),
        (STEERS, set()),
        (CHECKS, {Vector.CROSS_THREAD, Vector.SIBLING_USER, Vector.SIBLING_GUEST, Vector.NMI}),
        (READS, {Vector.NMI}),
    ],
)
def test_programs(way: Way, lacking: set[Vector]) -> None:
    """Where there is an attack, and no program for its mechanism."""
    assert {vector for vector in concerned(way) if not vector.suits(way, CPU)} == lacking


BESIDE = (Vector.CROSS_THREAD, Vector.SIBLING_USER, Vector.SIBLING_GUEST)


@pytest.mark.parametrize(
    ("way", "why"),
    [
        (READS, "it loads through the attacker's own page tables, whatever a sibling does: user_kernel is the attack"),
        (Way(mechanism=Mechanism.BYPASS, structures=(StructureName("store_buffer"),)), "a store of its own thread"),
        (Way(mechanism=Mechanism.STEER, branch=Branch.STRAIGHT_LINE, steered=True), "runs on its own thread"),
        (msgspec.structs.replace(CHECKS, steered=True), "runs on its own thread"),
        (
            Way(
                mechanism=Mechanism.STEER,
                structures=(StructureName("rsb"),),
                tag=Tag.POSITION,
                branch=Branch.RETURN,
            ),
            "each thread has its own rsb",
        ),
        (
            Way(
                mechanism=Mechanism.STEER,
                structures=(StructureName("bhb"), StructureName("btb")),
                tag=Tag.HISTORY,
                branch=Branch.INDIRECT,
            ),
            "each thread has its own bhb",
        ),
    ],
)
def test_no_attack_on_a_sibling(way: Way, why: str) -> None:
    """What an attacker does on its own thread alone is no attack on what runs beside it."""
    for vector in BESIDE:
        assert why in vector.why_not(way, CPU)
    assert not Vector.USER_USER.why_not(way, CPU)


def test_what_is_shared_out_reaches_a_sibling() -> None:
    """A return stack of which each thread has a part goes to the sibling when its owner sleeps."""
    way = Way(mechanism=Mechanism.STEER, structures=(StructureName("rsb"),), tag=Tag.POSITION, branch=Branch.RETURN)
    for vector in BESIDE:
        assert not vector.why_not(way, load_cpu("zen2-7452"))


def test_a_way_says_why_not() -> None:
    """By its vectors, by its parties, and by what cores share."""
    way = Way(mechanism=Mechanism.SAMPLE, structures=SAMPLES.structures, holds=Holds.DATA, vectors=("user_kernel",))
    assert Vector.NMI.why_not(way, CPU) == "it works along user_kernel alone"
    way = only(SAMPLES, (Code.GUEST,), (Code.USER, Code.GUEST))
    assert Vector.NMI.why_not(way, CPU) == "its attacker is a guest and its victim a user or a guest: not so there"
    assert Vector.CROSS_CORE.why_not(SAMPLES, CPU) == "nothing that it works on is shared by cores"


@pytest.mark.parametrize("vector", Vector)
def test_machines(vector: Vector) -> None:
    """Two CPUs where somebody runs beside; siblings but across cores."""
    beside = {Vector.CROSS_THREAD, Vector.SIBLING_USER, Vector.SIBLING_GUEST, Vector.CROSS_CORE}
    assert vector.cpus == (2 if vector in {*beside, Vector.FLIP} else 1)
    assert vector.wants_siblings == (vector in beside - {Vector.CROSS_CORE})


def test_names() -> None:
    """The nearest right one is said."""
    assert vector_named("nmi") is Vector.NMI
    with pytest.raises(LeakError, match='no vector "user_kernl"; the nearest is "user_kernel"'):
        vector_named("user_kernl")
