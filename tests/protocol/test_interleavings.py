"""Every interleaving: NMIs between any two micro-operations, and two hardware threads with the stun between them.

Properties: the invariants between micro-operations (I1-I4 and the stun's), no secret in the buffers while untrusted
code runs, no training in the predictors while CR3 is unrestricted, and nobody spinning for ever.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from asikit.protocol import (
    AsiClass,
    CpuBug,
    EffectKind,
    Happening,
    MicroOp,
    Protocol,
    ProtocolConfig,
    Taint,
    ThreadState,
    blanket_config,
)
from asikit.protocol.expressions import ALWAYS
from asikit.protocol.operations import END
from asikit.protocol.stepping import Status
from asikit.protocol.vocabulary import CONTROL, TAINTS
from tests.protocol.exploring import Explorer, explore, stuck

USERSPACE = frozenset({AsiClass.USERSPACE})
TWO_THREADS = ProtocolConfig(classes=USERSPACE, smt=True, rsb_fill=False, bugs=frozenset({CpuBug.L1TF}))
KERNEL_WORK = (Happening.EXPLICIT_EXIT, Happening.MM_SWITCH)
NMI_IN_NMI = "published, an NMI or machine check inside an NMI"
ONE_THREAD = {
    "published": (ProtocolConfig(), 1, 12_995),
    NMI_IN_NMI: (ProtocolConfig(classes=USERSPACE), 2, 90_894),
    "with one class": (ProtocolConfig(classes=frozenset({AsiClass.KVM})), 1, 2_595),
    "noflush": (ProtocolConfig(noflush=True), 1, 25_616),
    "with PTI too": (ProtocolConfig(pti=True), 1, 14_801),
    "limits of the prototype": (ProtocolConfig(kvm_exit_on_user_return=True, flush_data_on_exit=True), 1, 10_152),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name == NMI_IN_NMI else []) for name in ONE_THREAD]
)
def test_one_thread_with_nmis_anywhere(name: str) -> None:
    """An NMI that may touch sensitive memory, between any two micro-operations of anything, breaks nothing."""
    config, nmis, states = ONE_THREAD[name]
    explorer = Explorer(Protocol(config), nmis=nmis, extra=KERNEL_WORK)
    graph = explore(explorer)
    assert graph.finding is None
    assert stuck(explorer, graph) == []
    assert len(graph.moves) == states


def test_two_threads() -> None:
    """Two siblings that enter and exit as they like: no untrusted code beside a dirty thread, and no deadlock."""
    explorer = Explorer(Protocol(TWO_THREADS), threads=2, nmis=0)
    graph = explore(explorer)
    assert graph.finding is None
    assert stuck(explorer, graph) == []
    assert len(graph.moves) == 5_878


@pytest.mark.slow
def test_two_threads_with_an_nmi() -> None:
    """Two siblings, with an NMI on one of them: no untrusted code beside a dirty thread, and no deadlock."""
    explorer = Explorer(Protocol(TWO_THREADS), threads=2, nmis=1)
    graph = explore(explorer)
    assert graph.finding is None
    assert stuck(explorer, graph) == []
    assert len(graph.moves) == 266_195


ONE_THREAD_MUTANTS = [
    # what is removed, the property that fails first
    ("maybe_flush_control_for_exit.ibpb", "kernel mistrained"),
    ("asi_exit.flush_control", "control-flushed-before-unrestricted"),
    ("asi_exit.taint_kernel_data", "kernel-data-recorded-before-unrestricted"),
    ("asi_exit.clear_curr_asi", "kernel-data-recorded-before-unrestricted"),
    ("maybe_flush_data.l1d_flush", "secret sampled"),
    ("maybe_flush_data.verw", "secret sampled"),
    ("__asi_enter.flush_data", "untrusted-runs-clean"),
    ("__asi_enter.set_curr_asi", "restricted-is-recorded"),
    ("__asi_enter.write_cr3", "kernel-data-recorded-before-unrestricted"),
    ("__asi_enter.set_taints", "kernel mistrained"),
    ("asi_intr_exit.enter_again", "kernel-data-recorded-before-unrestricted"),
]


@pytest.mark.parametrize(("path", "expected"), ONE_THREAD_MUTANTS)
def test_one_thread_without(path: str, expected: str) -> None:
    """Each element is necessary: without it a named property fails."""
    finding = explore(Explorer(Protocol(ProtocolConfig()).without(path))).finding
    assert finding is not None
    assert finding.broken == expected


REORDERED = [
    ("asi_exit.flush_control", "asi_exit.write_cr3", "control-flushed-before-unrestricted"),
    ("asi_exit.taint_kernel_data", "asi_exit.write_cr3", "kernel-data-recorded-before-unrestricted"),
    ("__asi_enter.write_cr3", "__asi_enter.flush_data", "kernel-data-recorded-before-unrestricted"),
    ("__asi_enter.set_curr_asi", "__asi_enter.write_cr3", "restricted-is-recorded"),
    ("asi_exit.write_cr3", "asi_exit.clear_curr_asi", "restricted-is-recorded"),
    ("asi_enter_userspace.set_target", "asi_enter_userspace.enter", "untrusted-runs-clean"),
]


@pytest.mark.parametrize(("path", "after", "expected"), REORDERED)
def test_one_thread_with_order_changed(path: str, after: str, expected: str) -> None:
    """I3 and I4: each order is necessary."""
    finding = explore(Explorer(Protocol(ProtocolConfig()).reordered(path, after=after))).finding
    assert finding is not None
    assert finding.broken == expected


STUN_MUTANTS = [
    ("asi_exit.stun_sibling", "sibling-stays-out"),
    ("asi_exit.wait_for_sibling", "sibling-stays-out"),
    ("asi_exit.interrupt_sibling", "stuck"),
    ("__asi_enter.release_sibling", "stuck"),
]


@pytest.mark.parametrize(("path", "expected"), STUN_MUTANTS)
def test_two_threads_without(path: str, expected: str) -> None:
    """Each element of the stun is necessary; where two threads matter, and only there."""
    assert verdict(Explorer(Protocol(TWO_THREADS).without(path), threads=2, nmis=0)) == expected
    assert verdict(Explorer(Protocol(replace(TWO_THREADS, smt=False)))) == ""


@pytest.mark.parametrize(
    ("other", "states"), [(AsiClass.IDLE, 20_773), pytest.param(AsiClass.KVM, 68_824, marks=pytest.mark.slow)]
)
def test_two_threads_with_two_classes(other: AsiClass, states: int) -> None:
    """Siblings that idle, which must be done restricted or the other waits for ever; and siblings that run guests."""
    config = replace(TWO_THREADS, classes=USERSPACE | {other})
    explorer = Explorer(Protocol(config), threads=2, nmis=0)
    graph = explore(explorer)
    assert graph.finding is None
    assert stuck(explorer, graph) == []
    assert len(graph.moves) == states


@pytest.mark.parametrize("other", [AsiClass.IDLE, pytest.param(AsiClass.KVM, marks=pytest.mark.slow)])
def test_the_sibling_trains_too(other: AsiClass) -> None:
    """With SMT an exit that asks its own thread's taints needs every class to leave one; ours does not ask."""
    config = replace(TWO_THREADS, classes=USERSPACE | {other})
    policy = replace(config.registry.policy(other), set=Taint.GUEST_DATA)
    forgetful = Protocol(replace(config, policies=((other, policy),)))
    clean = MicroOp(name="clean", when=~TAINTS.has(CONTROL), jump=END)
    asking = forgetful.inserting(clean, before="maybe_flush_control_for_exit.ibpb")
    assert verdict(Explorer(asking, threads=2, nmis=0)) == "kernel mistrained"
    assert verdict(Explorer(forgetful, threads=2, nmis=0)) == ""


def test_stun_checked_before_and_not_with_the_return() -> None:
    """Check and return in two steps: the stun comes between them."""
    protocol = Protocol(TWO_THREADS)
    transition = protocol.transitions[Happening.RETURN_USER]
    resume = transition.ops[transition.index("resume")]
    check = replace(resume, sets=())
    go = replace(resume, name="go", waits=ALWAYS)
    assert (
        verdict(Explorer(protocol.replacing("return_user.resume", check, go), threads=2, nmis=0)) == "sibling-stays-out"
    )


def test_sibling_released_before_the_data_flush() -> None:
    """Releasing the sibling before the flush lets it sample."""
    protocol = Protocol(TWO_THREADS).reordered("__asi_enter.release_sibling", before="__asi_enter.flush_data")
    assert verdict(Explorer(protocol, threads=2, nmis=0)) == "sibling-stays-out"


def test_predictors_flushed_before_the_sibling_is_out() -> None:
    """A sibling that is still in untrusted code trains what was just flushed."""
    protocol = Protocol(TWO_THREADS).reordered("asi_exit.flush_control", before="asi_exit.stun_sibling")
    assert verdict(Explorer(protocol, threads=2, nmis=0)) == "kernel mistrained"


@pytest.mark.parametrize("fixed", [True, False], ids=["fixed", "mutant"])
def test_two_nmis_in_the_first_instructions_of_the_kernel(fixed: bool) -> None:
    """Both siblings enter the kernel, both get an NMI before they said so, both NMIs exit: neither may block the other.

    Without `leave_untrusted` in the nested entries they wait for one another for ever.
    """
    protocol = Protocol(TWO_THREADS)
    if not fixed:
        protocol = protocol.without("nested_nmi.leave_untrusted").without("nested_page_fault.leave_untrusted")
    core, threads = protocol.initial_core(), [protocol.initial_thread()] * 2

    def run(who: int, thread: ThreadState) -> ThreadState:
        nonlocal core
        while True:
            taken = protocol.step(core, thread, who)
            core, thread = taken.core, taken.thread
            if taken.status is not Status.RAN:
                return thread

    for _ in range(2):  # the first round releases, the second one resumes
        for who in (0, 1):
            if not core[who].untrusted and not threads[who].frames:
                threads[who] = protocol.begin(threads[who], Happening.RETURN_USER)
            threads[who] = run(who, threads[who])
    assert [box.untrusted for box in core] == [1, 1]
    for who in (0, 1):
        entered = protocol.begin(threads[who], Happening.SYSCALL_ENTRY)
        threads[who] = run(who, protocol.interrupt(entered, Happening.NESTED_NMI))
        threads[who] = protocol.begin(threads[who], Happening.UNMAPPED_TOUCH)
    for who in (0, 1, 0, 1):
        threads[who] = run(who, threads[who])
    waiting = [not protocol.in_handler(thread) for thread in threads]
    assert waiting == ([False, False] if fixed else [True, True])


def test_the_blanket_mitigation_has_a_hole_that_asi_has_not() -> None:
    """An NMI between the blanket mitigation's flush and its return leaks; ASI enters again. Without, both are safe."""
    blanket = Protocol(blanket_config())
    found = explore(Explorer(blanket, nmis=1, half_way=False)).finding
    assert found is not None
    assert found.broken == "secret sampled"
    assert any("nmi" in name for name in found.path)
    assert verdict(Explorer(blanket, nmis=0, half_way=False)) == ""
    assert verdict(Explorer(Protocol(ProtocolConfig()), nmis=1, half_way=False)) == ""


def test_without_any_mitigation_secrets_are_sampled() -> None:
    """The explorer sees the leak that all this is about."""
    found = explore(Explorer(Protocol(ProtocolConfig(asi=False)), nmis=0, half_way=False)).finding
    assert found is not None
    assert found.broken == "secret sampled"


def test_data_flush_before_unrestricted_is_an_option() -> None:
    """`flush_data_on_exit` empties the buffers of injected values before CR3 becomes unrestricted."""
    program = Protocol(ProtocolConfig(flush_data_on_exit=True)).program("asi_exit")
    asked = [op.asks.kind for op in program.ops if op.asks is not None]
    assert asked.index(EffectKind.VERW) < asked.index(EffectKind.WRITE_CR3)


def verdict(explorer: Explorer) -> str:
    """Return the first property found broken, `stuck` if a thread spins for ever, empty if all is well."""
    graph = explore(explorer)
    if graph.finding is not None:
        return graph.finding.broken
    return "stuck" if stuck(explorer, graph) else ""
