"""The catalogue: what becomes of each mutant, and that its counterexample can be followed."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.machine.kernel import Machine, MachineConfig, Observer, User
from asikit.proofs import (
    ALTERNATIVES,
    CATALOGUE,
    Counterexample,
    Mutant,
    UnknownMutantError,
    Verdict,
    has_element,
    mutant,
    verify,
    verify_mutants,
    world_for,
)
from asikit.proofs.model import KERNEL_WORK
from asikit.protocol import AsiClass, EffectKind, MicroOp, MissingRoleError, Space
from asikit.protocol.operations import END
from asikit.threat.mutants import RESTRICTED_SWITCH
from tests.proofs.following import Follower

if TYPE_CHECKING:
    from asikit.proofs import World

# With one thread: what breaks first, and after how many steps.
ONE_THREAD = {
    "no-control-flush-on-exit": ("leak", 21),
    "no-control-flush-on-enter": ("leak", 23),
    "no-data-flush": ("leak", 9),
    "no-ibpb": ("leak", 24),
    "no-rsb-fill": ("leak", 24),
    "no-l1d-flush": ("leak", 12),
    "no-verw": ("leak", 12),
    "cr3-before-control-flush-on-exit": ("leak", 21),
    "cr3-before-control-flush-on-enter": ("leak", 24),
    "data-flush-before-cr3": ("leak", 13),
    "cr3-before-curr-asi-on-enter": ("broken rule", 18),
    "curr-asi-before-cr3-on-exit": ("broken rule", 36),
    "taint-cleared-before-control-flush": ("leak", 34),
    "target-after-enter": ("leak", 7),
    "no-kernel-data-taint": ("leak", 35),
    "no-class-taints": ("leak", 21),
    "guest-control-not-set": ("leak", 22),
    "user-control-not-set": ("leak", 24),
    "guest-may-sample-user": ("leak", 28),
    "boot-untainted": ("leak", 10),
    "no-reentry": ("leak", 10),
    "no-interrupt-depth": ("leak", 31),
    "reentry-before-uncount": ("leak", 11),
    "no-exit-in-page-fault": ("broken rule", 18),
    "no-enter-on-return": ("leak", 4),
    "no-interrupt-end-on-return": ("leak", 7),
    "no-exit-on-mm-switch": ("leak", 23),
    "no-unmapping": ("leak", 13),
    "no-shootdown": ("leak", 14),
    # of the variant in which a switch of mm does not exit
    "no-squash": ("leak", 42),
    "kvm-policy-assigns": ("leak", 45),
    "data-mask-without-guest-data": ("leak", 45),
    "six-taints": ("leak", 35),
}
# With two threads, without handlers; and what takes them.
TWO_THREADS = {
    "no-stun": "leak",
    "no-stun-interrupt": "deadlock",
    "no-stun-acknowledgement": "leak",
    "no-stun-check": "leak",
    "stun-check-not-atomic": "leak",
    "release-before-data-flush": "leak",
    "no-release": "deadlock",
    "control-flush-before-stun": "leak",
    "no-core-scheduling": "leak",
}
NEEDS_GUESTS = "exit-asks-own-taints"
WITH_HANDLERS = {
    "untrusted-kept-in-nested-entries": "deadlock",
    # not with a guest: the interrupt that stuns it, it leaves to the host, whose handler acknowledges
    "untrusted-kept-in-entries": "deadlock",
    NEEDS_GUESTS: "leak",
}


def test_the_catalogue_is_accounted_for() -> None:
    """Each mutant is in one of the tables above, has its own name, and says what it is in a line."""
    names = [entry.name for entry in (*CATALOGUE, *ALTERNATIVES)]
    assert {entry.name for entry in CATALOGUE} == {*ONE_THREAD, *TWO_THREADS, *WITH_HANDLERS}
    assert len(set(names)) == len(names)
    assert all(0 < len(entry.says) < 90 for entry in (*CATALOGUE, *ALTERNATIVES))


def refuted(world: World, name: str) -> Counterexample:
    """Return a mutant's counterexample."""
    result = verify(world, mutant(name))
    assert result.verdict is Verdict.REFUTED
    assert result.counterexample is not None
    return result.counterexample


@pytest.mark.parametrize("name", ONE_THREAD)
def test_refuted_with_one_thread(name: str) -> None:
    """The shortest counterexample is as long as it ever was, and a scheduler can follow it."""
    world = world_for(threads=1)
    found = refuted(world, name)
    assert (found.kind, len(found.steps)) == ONE_THREAD[name]
    changed = mutant(name).edit(mutant(name).base(world))
    follower = Follower(changed.protocol, [changed.start()[0].state])
    follower.follow(found.steps)
    if found.kind == "broken rule":
        assert follower.threads[0].cpu.cr3 != Space.UNRESTRICTED


def test_refuted_with_two_threads_and_guests() -> None:
    """The published exit asks this thread's taints, which cannot say what the sibling's guest trains."""
    world = world_for(threads=2)
    found = refuted(world, NEEDS_GUESTS)
    assert (found.kind, len(found.steps)) == ("leak", 58)
    changed = mutant(NEEDS_GUESTS).edit(world)
    Follower(changed.protocol, [changed.start()[0].state] * 2).follow(found.steps)


@pytest.mark.parametrize("name", TWO_THREADS)
def test_refuted_with_two_threads(name: str) -> None:
    """The stun's family, even without NMIs; and a scheduler can follow the counterexample."""
    world = world_for(threads=2, nesting=0)
    found = refuted(world, name)
    assert found.kind == TWO_THREADS[name]
    changed = mutant(name).edit(world)
    follower = Follower(changed.protocol, [changed.start()[0].state] * 2)
    follower.follow(found.steps)
    if found.kind == "deadlock":
        assert any(follower.waits(who) for who in (0, 1) if follower.threads[who].frames)


@pytest.mark.parametrize("name", [*TWO_THREADS, *WITH_HANDLERS])
def test_the_stun_is_only_about_siblings(name: str) -> None:
    """With SMT off these mutants are harmless, or do not exist."""
    world = world_for(threads=1)
    if has_element(world, mutant(name)):
        assert verify(world, mutant(name)).verdict is Verdict.PROVED


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=lambda alternative: alternative.name)
def test_alternatives_open_nothing(alternative: Mutant) -> None:
    """Another order, another scope: as good as the protocol as it is, with one thread and with two."""
    for world in (world_for(threads=1), world_for(threads=2, nesting=0)):
        if has_element(world, alternative):
            assert verify(world, alternative).verdict is Verdict.PROVED


@pytest.mark.parametrize("name", [entry.name for entry in CATALOGUE if entry.variant])
def test_what_an_exit_at_each_switch_of_mm_makes_up_for(name: str) -> None:
    """Mutants of a variant are harmless in ASI as it is published: that flushes and taints more than they would."""
    element = replace(mutant(name), variant="")
    for world in (world_for(threads=1), world_for(threads=2, nesting=0)):
        assert verify(world, element).verdict is Verdict.PROVED


@pytest.mark.parametrize("alternative", ALTERNATIVES, ids=lambda alternative: alternative.name)
def test_alternatives_run_on_the_machine(alternative: Mutant) -> None:
    """Two processes that talk through a pipe see what they see otherwise, and every invariant holds but one.

    That KERNEL_DATA is recorded before CR3 is written is an invariant, and one alternative is to do without.
    """
    plain, changed = world_for(threads=1), alternative.edit(world_for(threads=1))
    invariants = alternative.name != "kernel-data-after-cr3"
    expected, _ = talk(plain, debug=True)
    found, restricted = talk(changed, debug=invariants)
    assert found == expected
    assert (restricted > 0) == (alternative.name == RESTRICTED_SWITCH)


def talk(world: World, *, debug: bool) -> tuple[str, int]:
    """Return what two processes say, and how many switches of mm ended in the restricted address space."""
    machine = Machine(MachineConfig(debug=debug, protocol=world.config), protocol=world.protocol)
    watch = Switches(machine)
    machine.kernel.observers.append(watch)

    @machine.process
    def talker(user: User) -> None:
        (ask, asked), (answer, answered) = user.pipe(), user.pipe()

        def child(other: User) -> None:
            for _ in range(3):
                other.write(answered, other.read(ask, 4).upper())

        user.fork(child)
        for word in (b"one ", b"two ", b"six "):
            user.write(asked, word)
            user.write(1, user.read(answer, 4))
        user.wait()

    machine.run()
    return machine.console.decode(), watch.restricted


class Switches(Observer):
    """Looks at where a CPU is when it has switched to another mm."""

    def __init__(self, machine: Machine) -> None:
        self._kernel = machine.kernel
        self.restricted = 0

    def mm_switch(self, cpu: int, mm: int) -> None:
        """Count it if the CPU is restricted."""
        self.restricted += self._kernel.cpus[cpu].thread.cpu.cr3 != Space.UNRESTRICTED


def test_every_mutant_changes_something() -> None:
    """With one thread or with two."""
    worlds = [world_for(threads=threads) for threads in (1, 2)]
    assert all(any(has_element(world, entry) for world in worlds) for entry in CATALOGUE)


def test_rows() -> None:
    """A row says what SMT has to do with it."""
    rows = list(verify_mutants(["no-stun", "no-verw"], nesting=0))
    assert [(row.without_smt, row.with_smt) for row in rows] == [
        (Verdict.PROVED, Verdict.REFUTED),
        (Verdict.REFUTED, None),
    ]
    assert [row.to_dict()["leaks_on_machine"] for row in rows] == [None, None]


def test_unknown_mutant() -> None:
    """The nearest right name."""
    with pytest.raises(UnknownMutantError, match='; the nearest is "no-stun"'):
        mutant("no-stunn")


def test_story() -> None:
    """A counterexample reads as a story, whose last line says who learns what, from where."""
    found = refuted(world_for(threads=1), "no-verw")
    assert len(found.story) == 1
    assert found.story[0].startswith(
        "enters the guest: set_target, set_curr_asi, write_cr3(restricted kvm), l1d_flush, "
    )
    assert found.story[0].endswith("; the guest runs [branch target buffer, return stack buffer: trained by its guest]")
    assert found.conclusion == "the guest on the CPU reads data of the kernel from the fill and store buffers"
    assert [step.effect for step in found.steps if step.effect][1] == EffectKind.L1D_FLUSH


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("classes", [None, [AsiClass.USERSPACE], [AsiClass.KVM]], ids=["both", "userspace", "kvm"])
def test_any_configuration_may_be_asked_about(threads: int, classes: list[AsiClass] | None) -> None:
    """A configuration without an element (no SMT, no class) is no error; each has most of the others."""
    world = world_for(threads=threads, classes=classes)
    assert sum(has_element(world, candidate) for candidate in CATALOGUE) > 20


def test_an_element_that_is_always_there_must_be_found() -> None:
    """A mutant of a step that the protocol lost is not taken for one of a configuration that lacks it."""
    world = world_for(threads=1)
    lost = replace(world, protocol=world.protocol.without("asi_exit.taint_kernel_data"))
    with pytest.raises(MissingRoleError, match="has the role TAINT_KERNEL_DATA"):
        has_element(lost, mutant("no-kernel-data-taint"))


def renamed(world: World) -> World:
    """Return a model whose micro-operations are all called something else."""

    def change(_: str, op: MicroOp) -> MicroOp:
        return replace(op, name=f"step_{op.name}", jump=f"step_{op.jump}" if op.jump not in {"", END} else op.jump)

    return replace(world, protocol=world.protocol.rewriting(change))


@pytest.mark.parametrize("name", ["no-verw", "no-stun-check", "target-after-enter", "taint-cleared-before-data-flush"])
def test_names_of_micro_operations_decide_nothing(name: str) -> None:
    """What a step is called is for people: with other names the same mutants exist and leak the same."""
    threads = 2 if name == "no-stun-check" else 1
    world = replace(world_for(threads=threads, nesting=0), kernel_work=KERNEL_WORK[:1])
    candidate = mutant(name)
    verdicts = [verify(candidate.edit(each)) for each in (world, renamed(world))]
    assert len({(each.verdict, each.states, each.transitions) for each in verdicts}) == 1
