"""What a machine counted, and what a replay of the trace that it wrote counts: exactly the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from asikit.machine.kernel import Machine, MachineConfig, RoundRobin, User, load_scenario
from asikit.machine.kernel.core.observer import NOT_MAPPED
from asikit.machine.mm import PAGE_SIZE
from asikit.machine.tracing import MachineTrace
from asikit.machine.x86 import Access
from asikit.protocol import AsiClass
from asikit.replay import load_policy, replay, shipped_policies
from asikit.replay.machine import entry_name, machine_config
from asikit.trace import NO_PAGE, Trace

EXAMPLES = Path(__file__).parents[2] / "examples"
COUNTS = (
    "round_trips",
    "round_trips_without_exit",
    "unprotected_round_trips",
    "exits",
    "exits_by_reason",
    "flushes",
    "cr3_writes",
    "cr3_writes_noflush",
    "tlb_flushes",
    "stuns",
)
IN_BETWEEN = {"nmi_everywhere", "siblings"}
"""What no trace can say: an NMI inside of a transition, and a sibling's idle time (docs/limits.md)."""
LONG = {"out_of_memory", "pageblock_flip"}
"""Run under one policy with NOFLUSH and one without."""
SCENARIOS = sorted(path.stem for path in EXAMPLES.glob("*.py") if path.stem not in IN_BETWEEN)
FIRST = {"page_cache_read", "kvm_guest"}
"""`make test` runs these under each policy, and the others under one; `make test-all` runs all."""
CASES = [
    pytest.param(scenario, policy, marks=[] if scenario in FIRST or policy == "denylist-2025" else [pytest.mark.slow])
    for scenario in SCENARIOS
    for policy in (("denylist-2025", "allowlist-2022") if scenario in LONG else shipped_policies())
]


def _both(scenario: str, policy_name: str, folder: Path) -> tuple[dict[str, object], ...]:
    """Return the counts of the machine and of the replay."""
    loaded, policy = load_scenario(EXAMPLES / f"{scenario}.py"), load_policy(policy_name)
    machine = Machine(machine_config(policy, loaded.config))
    with MachineTrace(machine, folder / "run.asitrace"):
        loaded.run(machine)
    trace = Trace.open(folder / "run.asitrace")
    trace.verify()
    (replayed,) = replay(trace, [policy])
    assert not replayed.amended_events
    report = machine.report()
    return {name: getattr(report, name) for name in COUNTS}, {name: getattr(replayed, name) for name in COUNTS}


@pytest.mark.parametrize(("scenario", "policy"), CASES)
def test_a_replay_gives_the_machine_s_own_counts(scenario: str, policy: str, tmp_path: Path) -> None:
    """Exits by reason, flushes by kind, CR3 writes: of every example, under every policy."""
    machine, replayed = _both(scenario, policy, tmp_path)
    assert replayed == machine


@pytest.mark.parametrize("seed", range(3))
def test_flushes_that_other_cpus_ask_for_agree(seed: int, tmp_path: Path) -> None:
    """A CPU may enter its domain between another's decision to flush and its own part in that."""
    policy = load_policy("allowlist-2022")
    machine = Machine(machine_config(policy, MachineConfig(cpus=4, seed=seed)), interleaver=RoundRobin(seed, longest=4))
    machine.file("/data", b"data")

    @machine.process
    def program(user: User) -> None:
        def calls(thread: User) -> None:
            fd = thread.open("/data")
            for _ in range(40):
                thread.pread(fd, 8, 0)

        others = [user.thread(calls) for _ in range(3)]
        for _ in range(12):
            memory = user.mmap(PAGE_SIZE)
            user.store(memory, b"data")
            user.munmap(memory, PAGE_SIZE)
        for other in others:
            user.join(other)

    with MachineTrace(machine, tmp_path / "run.asitrace"):
        machine.run()
    (replayed,) = replay(Trace.open(tmp_path / "run.asitrace"), [policy])
    report = machine.report()
    assert report.tlb.shootdowns > 5
    assert {name: getattr(replayed, name) for name in COUNTS} == {name: getattr(report, name) for name in COUNTS}


def test_a_trace_of_a_kernel_without_asi_gives_the_exits_of_one_with_it(tmp_path: Path) -> None:
    """The idea of recording a stock kernel: it makes the accesses that a kernel with ASI makes."""
    loaded, policy = load_scenario(EXAMPLES / "page_cache_read.py"), load_policy("denylist-2025")
    with_asi = Machine(machine_config(policy, loaded.config))
    loaded.run(with_asi)
    without = Machine(replace(loaded.config, asi=False))
    with MachineTrace(without, tmp_path / "off.asitrace"):
        loaded.run(without)
    (replayed,) = replay(Trace.open(tmp_path / "off.asitrace"), [policy])
    assert without.report().exits == 0
    assert replayed.exits == with_asi.report().exits > 60
    assert replayed.cr3_writes == with_asi.report().cr3_writes


def test_the_causes_of_a_machine_s_exits_have_names(tmp_path: Path) -> None:
    """A page-cache read exits in the copy to the iterator, as on a real kernel with ASI."""
    loaded, policy = load_scenario(EXAMPLES / "page_cache_read.py"), load_policy("denylist-2025")
    machine = Machine(machine_config(policy, loaded.config))
    with MachineTrace(machine, tmp_path / "run.asitrace"):
        loaded.run(machine)
    (result,) = replay(Trace.open(tmp_path / "run.asitrace"), [policy], frozenset({AsiClass.USERSPACE, AsiClass.KVM}))
    first = result.causes[0]
    assert (first.function, first.caller) == ("_copy_to_iter", "copy_page_to_iter")
    assert (first.region, first.kind, first.access) == ("direct_map", "shmem", "read")
    assert first.exits == 64


def test_a_trace_of_ephemeral_mappings_is_one_of_the_direct_map(tmp_path: Path) -> None:
    """What went through an ephemeral mapping exits under a policy that has none."""
    loaded = load_scenario(EXAMPLES / "page_cache_read.py")
    machine = Machine(machine_config(load_policy("ephmap"), loaded.config))
    with MachineTrace(machine, tmp_path / "run.asitrace"):
        loaded.run(machine)
    ephmap, denylist = replay(
        Trace.open(tmp_path / "run.asitrace"), [load_policy("ephmap"), load_policy("denylist-2025")]
    )
    assert ephmap.exits == machine.report().exits < 5
    assert ephmap.ephmap_operations == 64
    assert denylist.exits > 60


def test_what_is_not_mapped_has_no_page(tmp_path: Path) -> None:
    """A touch that no page table entry answers is a place without a page, whatever the last page of memory is."""
    machine = Machine(MachineConfig())
    hole = machine.kernel.layout.virt(0) - PAGE_SIZE

    class Touching(MachineTrace):
        def return_user(self, cpu: int, *, by_iret: bool) -> None:
            self.touch(cpu, Access.READ, hole, NOT_MAPPED)
            super().return_user(cpu, by_iret=by_iret)

    @machine.process
    def program(user: User) -> None:
        user.getpid()

    with Touching(machine, tmp_path / "run.asitrace"):
        machine.run()
    trace = Trace.open(tmp_path / "run.asitrace")
    trace.verify()
    places = trace.table("places")
    assert places.filter(places["vaddr"] == hole)["page"].to_list() == [NO_PAGE]


def test_a_trace_and_a_report_call_entries_the_same(tmp_path: Path) -> None:
    """The machine writes into its trace what its VM exits are called, as it does for system calls and vectors."""
    loaded, policy = load_scenario(EXAMPLES / "kvm_guest.py"), load_policy("denylist-2025")
    machine = Machine(machine_config(policy, loaded.config))
    with MachineTrace(machine, tmp_path / "run.asitrace"):
        loaded.run(machine)
    (replayed,) = replay(Trace.open(tmp_path / "run.asitrace"), [policy])
    names = {row.entry for row in replayed.by_entry}
    assert "vm exit 120 hlt" in names
    assert names <= {entry_name(kind, number) for kind, number in machine.report().by_entry}
