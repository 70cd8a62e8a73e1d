"""Reading the script beside a machine, what comes in between, and the boundary of untrusted code."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest

from asikit.machine.kernel import Act, Action
from asikit.machine.kernel.core.interrupts import RESCHEDULE_VECTOR
from asikit.proofs import world_for
from asikit.proofs.stage.between import InBetween, StoryOver
from asikit.proofs.stage.boundary import Boundary
from asikit.proofs.stage.interleaver import StoryInterleaver
from asikit.protocol import Frame, Happening
from tests.proofs.stage.bench import Bench, step

if TYPE_CHECKING:
    from asikit.machine.kernel.core.percpu import CpuContext
    from asikit.proofs.stage.turning import TurningPage
    from asikit.proofs.story import StoryStep

H = Happening
PROTOCOL = world_for(threads=2).protocol
HERE = step(0, "runs", "asi_exit.write_cr3")
THERE = step(1, "runs", "asi_exit.write_cr3")
STOPS = step(1, "stops waiting", "stop_waiting")
NMI = step(1, "interrupted by", H.NESTED_NMI)
STOPPED = f"interrupt {RESCHEDULE_VECTOR:#x} at cpu 1"


class Page:
    """A page that turns sensitive, as far as what comes in between knows it."""

    other = 1

    def __init__(self) -> None:
        self.turned: list[CpuContext] = []

    def turn(self, cpu: CpuContext) -> None:
        """Take note."""
        self.turned.append(cpu)


def between(bench: Bench, page: Page | None = None, actors: int = 2) -> InBetween:
    """Return what says what comes in between."""
    return InBetween(bench.kernel, bench.reader, bench.eavesdropper, cast("TurningPage | None", page), actors)


# The reader.


@pytest.mark.parametrize(("disturbing", "expected"), [(STOPS, STOPPED), (NMI, "NMI at cpu 1")])
@pytest.mark.parametrize("how", ["take", "miss", "ran"])
def test_who_waits_is_disturbed_when_that_is_next(disturbing: StoryStep, expected: str, how: str) -> None:
    """Whichever way the step before it went; that one step is done then, and the next is not looked at."""
    bench = Bench(PROTOCOL, HERE, disturbing, NMI)
    bench.cpus[1].waits()
    if how == "ran":
        bench.reader.ran(0, HERE.name)
    else:
        getattr(bench.reader, how)()
    assert (bench.done, len(bench.script), bench.script.missed) == ([expected], 1, int(how == "miss"))


@pytest.mark.parametrize("waits", ["not", "idly"])
def test_who_does_not_wait_is_not_disturbed(waits: str) -> None:
    """Its step stays for when it comes to wait."""
    bench = Bench(PROTOCOL, HERE, STOPS)
    if waits == "idly":
        bench.cpus[1].waits(idle=True)
    bench.reader.take()
    assert (bench.done, bench.script.head) == ([], STOPS)


def test_nothing_has_run_nothing_happens() -> None:
    """A micro-operation that the script does not speak of changes nothing, and disturbs nobody."""
    bench = Bench(PROTOCOL, NMI)
    bench.cpus[1].waits()
    bench.reader.ran(1, "asi_exit.write_cr3")
    assert (bench.done, len(bench.script)) == ([], 1)


@pytest.mark.parametrize("others", range(4))
def test_a_cpu_waits_for_its_turn(others: int) -> None:
    """It passes points until the other's steps are done, and one more."""
    bench = Bench(PROTOCOL, *[THERE] * others, HERE)

    def other() -> None:
        if bench.script.next_of(1):
            bench.script.take()

    bench.between = other
    bench.reader.wait_for_turn(bench.context(0))
    assert (bench.done, bench.script.head) == (["cpu 0 story"] * (others + 1), HERE)


def test_a_turn_that_never_comes() -> None:
    """If the other one cannot go on, this one does."""
    bench = Bench(PROTOCOL, THERE)
    bench.stuck = {1}
    bench.reader.wait_for_turn(bench.context(0))
    assert (bench.done, bench.script.head) == (["cpu 0 story"], THERE)


# The interleaver, and what comes in between.


def test_nothing_comes_before_the_story_begins() -> None:
    """Not even a look; then the other CPU goes on, as it is its turn."""
    bench = Bench(PROTOCOL, THERE)
    interleaver = StoryInterleaver(bench.script)
    assert (list(interleaver.at("asi_exit.write_cr3", 1)), bench.done, len(bench.script)) == ([], [], 1)
    interleaver.begin(between(bench))
    assert list(interleaver.at("load", 0)) == [Action(Act.SWITCH, 1)]
    assert bench.done == ["look"]


@pytest.mark.parametrize(("others", "expected"), [([0, 1], 1), ([0], 0), ([2, 0], 2)])
def test_who_goes_on(others: list[int], expected: int) -> None:
    """The CPU whose step is next, if it can; it runs until the story says otherwise."""
    interleaver = StoryInterleaver(Bench(PROTOCOL, THERE).script)
    assert interleaver.choose(0, others) == expected
    assert interleaver.slice(0) > 1 << 60
    assert interleaver.every_point


def test_a_cpu_ticks_off_what_it_has_run() -> None:
    """At the point that has the micro-operation's name, and at no other CPU's."""
    bench = Bench(PROTOCOL, HERE, THERE)
    assert list(between(bench).at(HERE.name, 0)) == [Action(Act.SWITCH, 1)]
    assert bench.script.head == THERE
    assert list(between(bench).at(THERE.name, 0)) == [Action(Act.SWITCH, 1)]
    assert bench.script.head == THERE


@pytest.mark.parametrize(("cpl", "in_guest", "comes"), [(0, False, True), (3, False, False), (0, True, False)])
def test_an_nmi_comes_in_the_kernel(cpl: int, *, in_guest: bool, comes: bool) -> None:
    """In untrusted code it is another transition, which the program is told of."""
    bench = Bench(PROTOCOL, step(0, "interrupted by", H.NESTED_NMI))
    bench.cpus[0].hw.cpl, bench.cpus[0].in_guest = cpl, in_guest
    assert list(between(bench).at("load", 0)) == ([Action(Act.NMI)] if comes else [])
    assert len(bench.script) == int(not comes)


def test_memory_turns_sensitive() -> None:
    """The CPU's TLB gets the translation first, then the other one goes on."""
    bench, page = Bench(PROTOCOL, step(0, "turns sensitive", "a page")), Page()
    assert list(between(bench, page).at("load", 0)) == [Action(Act.SWITCH, 1)]
    assert (page.turned, len(bench.script)) == ([bench.context(0)], 0)


def test_a_step_that_cannot_be_done_is_left_out_at_last() -> None:
    """The other CPU cannot go on: after 400 points of this one its step is given up, and no sooner."""
    bench = Bench(PROTOCOL, THERE, HERE)
    bench.stuck = {1}
    asked = between(bench)
    for _ in range(400):
        assert list(asked.at("load", 0)) == []
    assert (bench.script.head, bench.script.missed) == (THERE, 0)
    asked.at("load", 0)
    assert (bench.script.head, bench.script.missed) == (HERE, 1)


def test_on_the_way_to_untrusted_code() -> None:
    """Once the last check is done nothing comes in between; while the return still has frames it does."""
    bench = Bench(PROTOCOL, THERE)
    assert list(between(bench).at("return_user.resume", 0)) == []
    thread = bench.cpus[0].thread
    bench.cpus[0].thread = thread._replace(frames=(Frame(H.RETURN_USER, 1),))
    assert list(between(bench).at("return_user.resume", 0)) == [Action(Act.SWITCH, 1)]


def test_who_is_no_actor() -> None:
    """Another core only helps: it goes on undisturbed until the story's end."""
    bench = Bench(PROTOCOL, HERE)
    assert list(between(bench, actors=1).at("load", 1)) == []


@pytest.mark.parametrize(
    ("waits", "says"), [({}, "cpu 1 still waits for its sibling"), ({"ready": True}, ""), ({"idle": True}, "")]
)
def test_the_end(waits: dict[str, bool], says: str) -> None:
    """The machine goes on for a while, the CPUs in turn; then the run ends, and says who still waits."""
    bench = Bench(PROTOCOL)
    bench.cpus[1].waits(**waits)
    asked = between(bench)
    actions = [list(asked.at("load", 0)) for _ in range(96)]
    assert [number for number, each in enumerate(actions, 1) if each == [Action(Act.SWITCH, 1)]] == [*range(12, 97, 12)]
    with pytest.raises(StoryOver) as over:
        asked.at("load", 0)
    assert str(over.value) == says


# The boundary.


@pytest.mark.parametrize("guest", [False, True])
@pytest.mark.parametrize("frames", [0, 1])
@pytest.mark.parametrize("head", [NMI, THERE, step(0, "interrupted by", H.NESTED_NMI)])
def test_a_cpu_that_is_stunned_before_untrusted_code(head: StoryStep, frames: int, *, guest: bool) -> None:
    """It is disturbed if its next step says so, and if it is not through."""
    bench = Bench(PROTOCOL, head)
    bench.cpus[1].thread = bench.cpus[1].thread._replace(frames=(Frame(H.RETURN_USER, 1),) * frames)
    boundary = Boundary(bench.kernel, bench.reader)
    if guest:
        boundary.vm_entry(1)
    else:
        boundary.return_user(1, by_iret=True)
    assert bench.done == (["NMI at cpu 1"] if head is NMI and frames else [])


def test_an_entry_has_just_begun() -> None:
    """What comes before its first micro-operation comes there; the kernel's other places are of no interest."""
    bench = Bench(PROTOCOL)
    boundary = Boundary(bench.kernel, bench.reader)
    boundary.entered()
    boundary.vm_exit(1, 0x81)
    boundary.called(0x1000)
    boundary.returning(0x1000)
    boundary.faulted()
    assert bench.done == ["cpu 0 story", "cpu 1 story"]
