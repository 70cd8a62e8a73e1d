"""What runs: untrusted code, ordinary kernel code and handlers, as the script tells them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from asikit.machine.kernel import DeadlockError, Machine, MachineConfig
from asikit.machine.mm import GFP_KERNEL
from asikit.proofs import world_for
from asikit.proofs.stage import ATTACKER, VICTIM, owners
from asikit.proofs.stage.contents import content_of
from asikit.proofs.stage.eavesdropper import Eavesdropper, Secret
from asikit.proofs.stage.kernel_code import Handler, Meeting, OrdinaryCode
from asikit.proofs.stage.programs import GuestProgram, UserProgram
from asikit.proofs.stage.turning import TurningPage
from asikit.protocol import AsiClass, Happening, TaskState
from asikit.threat import KERNEL, assumed
from tests.proofs.stage.bench import Bench, OverError, step

if TYPE_CHECKING:
    from asikit.machine.kernel import Task
    from asikit.proofs.story import StoryStep

H = Happening
PROTOCOL = world_for(threads=2).protocol
SECRET = 0x5000
TASK = TaskState(target=1, intr_nest_depth=1)
TURNS = step(0, "turns sensitive", "a page")


def begins(name: str, loads: TaskState | None = None) -> StoryStep:
    """Return that CPU 0 begins something."""
    return step(0, "begins", name, loads)


# Untrusted code.


@pytest.mark.parametrize(
    ("told", "does", "missed"),
    [
        (begins(H.SYSCALL_ENTRY), ["getpid (39)", "look"], 0),
        (begins(H.INTERRUPT_ENTRY), ["interrupt 0x51 at cpu 0"], 0),
        (begins(H.EXCEPTION_ENTRY), ["interrupt 0x51 at cpu 0"], 0),
        (begins(H.NMI_ENTRY), ["interrupt 0x51 at cpu 0"], 0),
        (begins(H.RETURN_USER), [], 1),
        (step(0, "runs", "asi_exit.write_cr3"), [], 1),
    ],
)
def test_user_mode(told: StoryStep, does: list[str], missed: int) -> None:
    """It enters the kernel as told, and computes; what is no step of user mode's is left out."""
    bench = Bench(PROTOCOL, told)
    with pytest.raises(OverError):
        UserProgram(bench.kernel, bench.reader, bench.eavesdropper).run()
    assert bench.done == ["look", *does, "user instruction"]
    assert bench.script.missed == missed


@pytest.mark.parametrize("other", [TURNS, step(1, "begins", H.SYSCALL_ENTRY)])
def test_user_mode_computes_while_others_have_the_turn(other: StoryStep) -> None:
    """Until somebody else has done it."""
    bench = Bench(PROTOCOL, other, begins(H.SYSCALL_ENTRY))

    def done() -> None:
        if bench.script.head == other:
            bench.script.take()

    bench.between = done
    with pytest.raises(OverError):
        UserProgram(bench.kernel, bench.reader, bench.eavesdropper).run()
    assert bench.done == ["look", "user instruction", "getpid (39)", "look", "user instruction"]
    assert bench.script.missed == 0


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_guest_leaves_when_told_or_interrupted(*, interrupted: bool) -> None:
    """And takes what waits afterwards; a step that is not a guest's is left out before."""
    bench = Bench(PROTOCOL, begins(H.SYSCALL_ENTRY), begins(H.VM_EXIT))
    bench.interrupted = interrupted
    GuestProgram(bench.kernel, bench.reader, bench.eavesdropper).visit(bench.context(0))
    computes = [] if interrupted else ["guest instruction"]
    assert bench.done == ["VM entry", "look", *computes, "VM exit 0x81", "poll"]
    assert (bench.script.missed, len(bench.script)) == (1, int(interrupted))


def test_a_guest_that_is_not_entered() -> None:
    """Something is to be done before, and the scheduler is asked."""
    bench = Bench(PROTOCOL, begins(H.VM_EXIT))
    bench.enters_guests = False
    GuestProgram(bench.kernel, bench.reader, bench.eavesdropper).visit(bench.context(0))
    assert (bench.done, len(bench.script)) == (["VM entry", "cond_resched"], 1)


# The kernel's code.


def ordinary(bench: Bench) -> OrdinaryCode:
    """Return ordinary kernel code in the middle of a story."""
    meeting = Meeting(bench.kernel, 1, lambda: True, lambda: None)
    assert not meeting.keeps(bench.context(0))
    bench.done.clear()
    return OrdinaryCode(
        bench.kernel,
        bench.reader,
        meeting,
        GuestProgram(bench.kernel, bench.reader, bench.eavesdropper),
        Handler(bench.kernel, bench.reader, SECRET),
        lambda task: bench.done.append(f"other mm for {task}"),
        SECRET,
    )


POINT = "cpu 0 story"


@pytest.mark.parametrize(
    ("told", "does", "missed"),
    [
        ([], [], 0),
        ([begins(H.RETURN_USER)], [], 0),
        ([begins(H.UNMAPPED_TOUCH)], ["load 0x5000", POINT], 0),
        ([begins(H.EXPLICIT_EXIT)], [POINT, "run explicit_exit", POINT], 0),
        ([begins(H.TLB_FLUSH_USER)], [POINT, "run tlb_flush_user", POINT], 0),
        ([begins(H.MM_SWITCH)], [POINT, "other mm for task", POINT], 0),
        ([begins(H.VM_ENTRY), begins(H.VM_EXIT)], [POINT, "VM entry", "look", "VM exit 0x81", "poll", POINT], 0),
        ([begins(H.SYSCALL_ENTRY)], [POINT], 1),
        ([step(0, "runs", "asi_exit.write_cr3"), begins(H.RETURN_USER)], [POINT], 1),
        (
            [step(0, "interrupted by", H.NESTED_PAGE_FAULT), step(0, "leaves", "its handler")],
            [POINT, "interrupt nested_page_fault", POINT, POINT, "leave", POINT],
            0,
        ),
    ],
)
def test_ordinary_code(told: list[StoryStep], does: list[str], missed: int) -> None:
    """It does what it is told between two points each, and returns to user mode when that is next, or nothing is."""
    bench = Bench(PROTOCOL, *told)
    assert ordinary(bench).exit_work(cast("Task", None)) is False
    assert bench.done == [POINT, *does, POINT]
    assert (bench.script.missed, len(bench.script)) == (missed, 0)


@pytest.mark.parametrize("switch", [H.CONTEXT_SWITCH, H.MM_SWITCH])
def test_a_switch_goes_to_another_task(switch: str) -> None:
    """Its state is the one that the story says."""
    bench = Bench(PROTOCOL, begins(switch, TASK))
    ordinary(bench).exit_work(cast("Task", None))
    assert bench.cpus[0].thread.task == TASK
    assert bench.cpus[1].thread.task == TaskState()


def test_a_handler() -> None:
    """It touches what it is told to, leaves micro-operations out that did not come, and returns when told."""
    touch, ran = begins(H.UNMAPPED_TOUCH), step(0, "runs", "asi_exit.write_cr3")
    bench = Bench(PROTOCOL, touch, ran, touch, step(0, "leaves", "its handler"), touch)
    Handler(bench.kernel, bench.reader, SECRET).run(0)
    assert [each for each in bench.done if each != POINT] == ["load 0x5000", "load 0x5000"]
    assert (bench.script.missed, bench.script.head) == (1, touch)


@pytest.mark.parametrize("told", [[], [begins(H.RETURN_USER)], [step(0, "interrupted by", H.NESTED_NMI)]])
def test_a_handler_that_nobody_told_to_return(told: list[StoryStep]) -> None:
    """It returns if what is next is not its own, and that stays to be done."""
    bench = Bench(PROTOCOL, *told)
    Handler(bench.kernel, bench.reader, SECRET).run(0)
    assert (bench.done, len(bench.script), bench.script.missed) == ([POINT], len(told), 0)


def test_the_story_begins_when_all_are_there() -> None:
    """Once: the first waits, the second comes, both go on; a CPU that has to switch tasks does that before."""
    bench = Bench(PROTOCOL)
    begun: list[str] = []
    meeting = Meeting(bench.kernel, 2, lambda: True, lambda: begun.append("begun"))
    bench.cpus[0].need_resched = True
    assert meeting.keeps(bench.context(0))
    bench.cpus[0].need_resched = False
    assert (bench.done, begun) == (["poll"], [])

    def sibling() -> None:
        bench.between = lambda: None
        assert not meeting.keeps(bench.context(1))

    bench.between = sibling
    assert not meeting.keeps(bench.context(0))
    assert bench.done == ["poll", "poll", "cpu 0 waits for its sibling to boot", "poll"]
    assert not meeting.keeps(bench.context(0))
    assert (len(bench.done), begun) == (4, ["begun"])


# On a machine: a page that turns sensitive, and who overhears what.


@pytest.mark.parametrize("shootdown", [True, False])
def test_a_page_turns_sensitive(*, shootdown: bool) -> None:
    """On the other CPU, once it was asked to; the first one's translation stays only if nobody sees to the TLBs."""
    machine = Machine(MachineConfig(cpus=2, protocol=world_for(threads=1).protocol, memory=16 << 20, pageblock_order=1))
    kernel = machine.kernel
    address = machine.allocate(bytes(2 * 4096), GFP_KERNEL)
    content = content_of(KERNEL, None)
    page = TurningPage(machine, address, content, shootdown=shootdown, other=1)
    first, _ = kernel.cpus
    restricted = kernel.direct_map.nonsensitive_pgd
    pfn = kernel.layout.phys(address) // 4096
    assert restricted is not None
    assert kernel.direct_map.walk_present(restricted, pfn)
    page.turn(first)
    kernel.start(kernel.new_task(page.run, comm="flipper", mm=None, cpu=page.other, pinned=True))
    with pytest.raises(DeadlockError):  # it has nothing to do then
        machine.run()
    assert not kernel.direct_map.walk_present(restricted, pfn)
    assert kernel.physical.read(kernel.layout.phys(address), len(content)) == content
    assert (first.hw.tlb.lookup(address, first.hw.pcid) is None) == shootdown


def test_whose_secrets_there_are() -> None:
    """A guest's only where there are guests; nobody's is another's, and a changed one is nobody's."""
    everybody = owners(world_for(threads=1))
    assert set(everybody) == {KERNEL, ATTACKER, VICTIM, ATTACKER.guest, VICTIM.guest}
    assert set(owners(world_for(threads=1, classes=[AsiClass.USERSPACE]))) == {KERNEL, ATTACKER, VICTIM}
    contents = [content_of(owner, None) for owner in everybody]
    assert len({*contents, content_of(KERNEL, KERNEL)}) == len(everybody) + 1
    assert {content_of(owner, owner) for owner in everybody} == {content_of(KERNEL, KERNEL)}


def test_what_is_overheard() -> None:
    """The kernel's own code learns nothing, but leaves its secret; user mode with the same page tables reads it."""
    world = world_for(threads=1)
    machine = Machine(MachineConfig(protocol=world.protocol, memory=16 << 20))
    kernel, content = machine.kernel, content_of(KERNEL, None)
    address = machine.allocate(content)
    mm = kernel.contexts.new()
    secret = Secret(KERNEL, kernel.layout.phys(address), (address,))
    eavesdropper = Eavesdropper(world, kernel, {ATTACKER: mm}, (secret,))
    (cpu,) = kernel.cpus
    cpu.hw.core.model = assumed(cpu.hw.core.model)
    cpu.hw.core.record = True
    kernel.sched.switch_mm(kernel.contexts.of(mm))
    assert cpu.hw.recorder is not None
    eavesdropper.look()
    assert (eavesdropper.who(cpu), eavesdropper.learnt) == (None, [])
    line = cpu.hw.recorder.l1d.line(secret.paddr)
    assert line is not None
    assert (line.owner, line.value) == ("the kernel", content)
    cpu.hw.cpl = 3
    eavesdropper.look()
    assert eavesdropper.who(cpu) == ATTACKER
    mapped, *sampled = eavesdropper.learnt
    assert (mapped.who, mapped.values) == (ATTACKER, (content,))
    assert "whatever the permissions" in mapped.how
    assert any(content in each.values for each in sampled if "L1D" in each.how or "L1 data" in each.how)
    count = len(eavesdropper.learnt)
    eavesdropper.look()
    assert len(eavesdropper.learnt) == count  # the same again is nothing new
