"""One report of each kind, from figures that a test can know; with long names, as real recordings have."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from asikit.attacks import AttackVerdict, Cell, Finding
from asikit.cost import (
    Calibration,
    Difference,
    Host,
    HostVerdict,
    HostVulnerability,
    Identity,
    Measurement,
    Unit,
    compare,
    price,
)
from asikit.cost._statistics import Estimate
from asikit.cost.host import Exposure, Here
from asikit.machine.kernel import Machine
from asikit.proofs import MutantRow, Property, Reproduction, SideBySide, Situation, Verification
from asikit.proofs import Verdict as ProofVerdict
from asikit.proofs.story import Counterexample, StoryStep
from asikit.replay import By, load_policy, replay, shipped_policies
from asikit.report import (
    calibration_report,
    compare_replays,
    compare_report,
    cost_report,
    cost_sources,
    host_report,
    info_report,
    overview,
    replay_report,
)
from asikit.report.attack import attack_names, attack_reason, attack_report
from asikit.report.run import run_report
from asikit.report.timeline import Timeline
from asikit.report.verify import equivalence_report, mutant_names, mutants_report, verification_report
from asikit.trace import summarize
from tests.builders import TraceBuilder, small_trace
from tests.cost.running import GFP_USER, cpu, exact, ranged
from tests.cost.test_compare import replayed

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from asikit.cost import CostResult
    from asikit.machine.kernel import User
    from asikit.report.view import Report
    from asikit.trace import Trace

__all__ = ["REPORTS"]

CPU = cpu(
    exact(page_fault=400.0, cr3_write=200.0, ibpb=4000.0)
    | ranged(cpi=(0.3, 0.75, 2.0), transition_work=(10.0, 40.0, 120.0), tlb_walk=(7.0, 20.0, 45.0))
)


def recording(folder: Path) -> Trace:
    """Write a recording of two tasks that read a file; one of them has a name that moves a cursor."""
    b = TraceBuilder()
    copy = ("copy_page_from_iter_atomic", "generic_perform_write", "ksys_read")
    place: dict[str, Any] = {"kind": "shmem", "cache": "shmem", "gfp": GFP_USER, "allocated_by": ("shmem_alloc_folio",)}
    b.task_switch("fio", pid=7, mm=1).return_user()
    for number in range(4):
        b.entry_syscall(17).touch_read(label=str(number), stack=copy, **place).return_user()
    b.entry_syscall(0).return_user()
    b.entry_interrupt().task_switch("a\x1b[2Jb", pid=8, mm=2).return_user()
    zero = ("clear_page_erms", "get_page_from_freelist")
    b.entry_exception(14).touch_write(kind="anon", gfp=GFP_USER, stack=zero).return_user()
    return b.write(folder / "recording.asitrace")


def replayed_once(folder: Path) -> Report:
    """One policy in detail, by task."""
    (result,) = replay(recording(folder), [load_policy("denylist-2025")], by=By.TASK)
    return replay_report(result, top=3)


def replayed_off(folder: Path) -> Report:
    """Without ASI there is nothing to exit from."""
    (result,) = replay(recording(folder), [load_policy("blanket")])
    return replay_report(result)


def side_by_side(folder: Path) -> Report:
    """All policies that come with asikit: more than fit beside one another."""
    return compare_replays(replay(recording(folder), list(map(load_policy, shipped_policies())), by=By.TASK))


def priced(folder: Path) -> Report:
    """What each mitigation costs, by task."""
    return cost_report(_cost(folder, by=By.TASK), top=2)


def sources(folder: Path) -> Report:
    """Where each figure comes from."""
    return cost_sources(_cost(folder))


def _cost(folder: Path, *, by: By | None = None) -> CostResult:
    policies = [load_policy("ephmap")]
    return price(recording(folder), [CPU], policies=policies, mitigations=("none", "blanket", "asi"), by=by)


def demo(folder: Path) -> Report:
    """Two recordings under two policies, and what that costs."""
    trace = recording(folder)
    results = replay(trace, [load_policy("blanket"), load_policy("denylist-2025")])
    costs = price(trace, [CPU], policies=[load_policy("ephmap")], mitigations=("none", "blanket", "asi"))
    both = ("page-cache", "processes")
    return overview("Two recordings of one kernel:", dict.fromkeys(both, results), dict.fromkeys(both, costs))


def compared(folder: Path) -> Report:
    """Two replays, one run a side."""
    one, other = (replayed(folder / f"{name}.json", exits) for name, exits in (("a", 900), ("b", 1234)))
    return compare_report(compare(one, other), top=1)


def compared_runs(folder: Path) -> Report:
    """Two replays, eight runs a side: medians with intervals."""
    sides = (
        ",".join(replayed(folder / f"{name}{run}.json", exits + run) for run in range(8))
        for name, exits in (("a", 400), ("b", 300))
    )
    return compare_report(compare(*sides))


def machine_info(folder: Path) -> Report:
    """What a trace with a bit of everything holds."""
    trace = small_trace().write(folder / "small.asitrace", rows_per_part=10)
    return info_report(trace, summarize(trace), verified=False)


IDENTITY = Identity(
    vendor="GenuineIntel",
    family=6,
    model_number=78,
    stepping=3,
    name="Intel(R) Core(TM) i7-6600U CPU @ 2.60GHz",
    microcode="0xf0",
    flags=frozenset(),
    bugs=frozenset(),
    physical_bits=39,
    threads=2,
    smt=None,
    has_smt=True,
    guest=True,
    model="skylake-6600u",
)


def host(_: Path) -> Report:
    """A machine with a vulnerability that ASI covers, one in part, one that it lacks, and one that it does not tell."""
    spectre = "Mitigation: IBRS; IBPB: conditional; STIBP: conditional; RSB filling; PBRSB-eIBRS: Not affected"
    redundant = ("IBRS (with a stun)", "IBPB at a change of processes", "RSB filling")
    found: tuple[HostVulnerability, ...] = (
        HostVulnerability("meltdown", "Meltdown", "Mitigation: PTI", HostVerdict.COVERED, ("unmapping",), (), ("PTI",)),
        HostVulnerability(
            "spectre_v2", "Spectre v2", spectre, HostVerdict.PARTLY, (), ("user code against user code",), redundant
        ),
        HostVulnerability("retbleed", "Retbleed", "Not affected", HostVerdict.NOT_NEEDED),
        HostVulnerability("vmscape", "VMSCAPE", "", HostVerdict.NOT_TOLD, (), ("the model has it",)),
    )
    today = (Exposure.NO, Exposure.PARTLY, Exposure.NO, Exposure.UNKNOWN)
    found = tuple(dataclasses.replace(one, today=exposure) for one, exposure in zip(found, today, strict=True))
    return host_report(Host(IDENTITY, found, (Difference("retbleed", Here.NOT_AFFECTED),)))


def calibration(_: Path) -> Report:
    """Two costs that were measured, one of them too seldom, and one that was not."""
    measured = (
        Measurement("frequency", Unit.GIGAHERTZ, Estimate(2.6, 2.59, 2.61, 25), "imul"),
        Measurement("verw", Unit.NANOSECONDS, Estimate(199.5, None, None, 3), "verw"),
        Measurement("ibpb", Unit.NANOSECONDS, Estimate(1745.0, 1700.25, 1800.0, 25), "wrmsr"),
    )
    why = "user mode may not write CR3: what a switch of address spaces costs is seen from the kernel only"
    return calibration_report(Calibration(IDENTITY, measured, {"cr3_write": why}))


def _machine() -> Machine:
    machine = Machine(seed=1)

    @machine.process
    def writer(user: User) -> None:
        user.write(1, b"a line\nwith \x1b[31m in it, and " + b"more " * 30 + b"\n")
        user.load(0, 1)  # nothing is mapped there

    return machine


def run(_: Path) -> Report:
    """A process that writes to the console and is killed."""
    machine = _machine()
    machine.run()
    return run_report("A scenario", machine, machine.report())


def timeline(_: Path) -> Report:
    """A round trip step by step."""
    machine = _machine()
    seen = Timeline(machine, 1)
    machine.run()
    return seen.report()


VERIFIED = Verification(
    mitigation="asi",
    mutant=None,
    threads=2,
    nesting=1,
    classes=("kvm", "userspace"),
    attacker=("train", "sample"),
    method="explore",
    verdict=ProofVerdict.PROVED,
    states=1_825_243,
    transitions=4_191_695,
    seconds=7.4,
    properties=(
        Property("T1", "untrusted code never observes what depends on a secret", holds=True),
        Property("no deadlock", "no thread waits for its sibling for ever, whatever comes in between", holds=None),
    ),
    assumptions=("H1  Speculation reaches what the present page tables map, and nothing else, but at any time.",),
    not_proved=("the kernel's code beyond the transitions: that it calls them where it must",),
)
LEAK = Counterexample(
    "leak",
    (StoryStep(0, "begins", "vm_entry"), StoryStep(0, "runs", "vm_entry.write_cr3")),
    (
        "thread 0 enters the guest: set_target, set_curr_asi, write_cr3(restricted kvm), l1d_flush, verw, clear_taints",
        "thread 0 exits explicitly",
    ),
    "the guest of the process learns data of the kernel: on thread 1 it sampled the L1D cache",
)
REFUTED = dataclasses.replace(
    VERIFIED,
    mutant="no-stun",
    threads=1,
    nesting=0,
    verdict=ProofVerdict.REFUTED,
    properties=(Property("T1", "untrusted code never observes what depends on a secret", holds=False),),
    counterexample=LEAK,
    machine=Reproduction(leaks=True, kind="leak", says="the guest learns data of the kernel", missed=1),
)


def proved(_: Path) -> Report:
    """A proof by exploration."""
    return verification_report(VERIFIED)


def proved_by_induction(_: Path) -> Report:
    """A proof by induction: what was asked, and the invariant."""
    invariant = (("I1", "a taint of the kernel's data is set wherever a structure may hold it"),)
    return verification_report(
        dataclasses.replace(VERIFIED, method="induction", states=0, obligations=61, invariant=invariant)
    )


def refuted(_: Path) -> Report:
    """A counterexample."""
    return verification_report(REFUTED)


def undecided(_: Path) -> Report:
    """A verdict that was not found."""
    return verification_report(
        dataclasses.replace(VERIFIED, verdict=ProofVerdict.UNKNOWN, reason="more states than there is memory for")
    )


def mutants(_: Path) -> Report:
    """One mutant that leaks on the machine too, a harmless one, and one of an alternative."""
    no, yes, refuted = ProofVerdict.PROVED, ProofVerdict.REFUTED, REFUTED
    unseen = dataclasses.replace(REFUTED, machine=Reproduction(None, "leak", "without the mutant too"))
    return mutants_report(
        [
            MutantRow("no-stun", "", "asi_exit does not stop the sibling", "sibling", yes, no, yes, refuted),
            MutantRow("no-barrier", "", "no barrier", "order", no, no, no, None),
            MutantRow("stale-target", "lazy", "the target is set late", "order", yes, yes, None, unseen),
        ]
    )


def mutant_list(_: Path) -> Report:
    """What mutants there are."""
    from asikit.proofs import ALTERNATIVES, CATALOGUE  # noqa: PLC0415

    return mutant_names(CATALOGUE[:2], ALTERNATIVES[:1])


def equivalence(_: Path) -> Report:
    """A situation that both mitigations stand, and one that only one does."""
    same = Situation("an NMI", "between any two micro-operations of a transition", lambda model: model)
    other = Situation("a second thread", "on the same core, of the same process", lambda model: model)
    return equivalence_report(
        [
            SideBySide(same, VERIFIED, VERIFIED),
            SideBySide(other, VERIFIED, dataclasses.replace(REFUTED, mitigation="blanket")),
        ]
    )


def _finding(
    vector: str, mitigation: str, verdict: AttackVerdict, way: str = "", story: tuple[str, ...] = ()
) -> Finding:
    cell = Cell("l1tf", vector, "skylake-6600u", mitigation)
    return Finding(cell, verdict, "the cache has a line of the kernel", way=way, story=story)


def attacks(_: Path) -> Report:
    """Two vectors against two mitigations; and a vulnerability for which there is no attack."""
    leak, none = AttackVerdict.LEAK, AttackVerdict.NO_LEAK
    cells = [
        _finding(vector, mitigation, verdict)
        for vector, verdicts in (("user_kernel", (leak, none)), ("cross_thread", (leak, AttackVerdict.UNKNOWN)))
        for mitigation, verdict in zip(("none", "asi"), verdicts, strict=True)
    ]
    why = "not modelled: it times ports, walks and power: the model has no time, and what leaks is an access pattern"
    no_attack = Finding(Cell("contention", "-", "-", "none"), AttackVerdict.UNKNOWN, why)
    return attack_report([*cells, no_attack])


def many_attacks(_: Path) -> Report:
    """More mitigations than their names fit above."""
    names = ("none", "linux", "blanket", "asi", "asi-no-stun", "asi-no-ack", "asi-no-buffer-flush")
    return attack_report([_finding("user_kernel", name, AttackVerdict.NO_LEAK) for name in names])


def attack_story(_: Path) -> Report:
    """One cell, step by step: more steps than are shown, and one of them twice."""
    steps = ("the kernel reads a line", "the kernel reads a line", *(f"step {number}" for number in range(32)))
    found = _finding("user_kernel", "none", AttackVerdict.LEAK, way="a terminal fault", story=(*steps, "long " * 100))
    return attack_reason(found)


def attack_list(_: Path) -> Report:
    """What there is to choose from."""
    return attack_names()


REPORTS: dict[str, Callable[[Path], Report]] = {
    build.__name__: build
    for build in (
        replayed_once,
        replayed_off,
        side_by_side,
        priced,
        sources,
        demo,
        compared,
        compared_runs,
        machine_info,
        host,
        calibration,
        run,
        timeline,
        proved,
        proved_by_induction,
        refuted,
        undecided,
        mutants,
        mutant_list,
        equivalence,
        attacks,
        many_attacks,
        attack_story,
        attack_list,
    )
}
"""By name: what builds a report, given a folder to write to."""
