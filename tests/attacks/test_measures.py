"""Each measure of Linux's that is not a flush: with it an attack does not leak, and without it alone it does."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.attacks import AttackVerdict, Cell, attack
from asikit.machine.x86 import load_cpu
from asikit.mitigations import Measure
from asikit.mitigations import catalogue as mitigations
from asikit.protocol import EffectKind, Happening

if TYPE_CHECKING:
    from asikit.machine.x86 import CpuModel

NEEDED = [
    (Measure.NO_INDIRECT_PREDICTION, "spectre_v2", "user_kernel", "broadwell-e5-2640v4"),
    (Measure.NO_RETURN_PREDICTION, "retbleed", "user_kernel", "zen2-7452"),
    (Measure.ISOLATE_MODES, "spectre_v2", "user_kernel", "cascade-lake-4210r"),
    (Measure.ISOLATE_THREADS, "spectre_v2_user", "cross_thread", "zen3-5600x"),
    (Measure.MASK_INDICES, "spectre_v1", "user_kernel", "zen3-5600x"),
    (Measure.FENCE_ENTRY, "swapgs", "user_kernel", "cascade-lake-4210r"),
    (Measure.FENCE_VM_EXIT, "pbrsb", "guest_host", "cascade-lake-4210r"),
    (Measure.INVERT_ENTRIES, "l1tf", "user_kernel", "skylake-6600u"),
    (Measure.ORDER_LOADS, "ssb", "user_user", "skylake-6600u"),
    (Measure.TRAP_BEHIND_RETURNS, "sls_misc", "user_kernel", "skylake-6600u"),
]


@pytest.mark.parametrize(("measure", "vulnerability", "vector", "cpu"), NEEDED)
def test_a_measure_is_what_stops_it(
    measure: Measure, vulnerability: str, vector: str, cpu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Linux without the measure leaks, and with it does not."""
    linux = mitigations.mitigation("linux")

    def build(cpu: CpuModel, *, smt: bool) -> mitigations.Setup:
        setup = linux.build(cpu, smt=smt)
        left = setup.hardening.measures - {measure}
        return replace(setup, hardening=replace(setup.hardening, measures=left))

    monkeypatch.setattr(mitigations, "_ALL", (linux, mitigations.Mitigation("without", "", build)))
    assert attack(Cell(vulnerability, vector, cpu, "linux")).verdict is AttackVerdict.NO_LEAK
    assert attack(Cell(vulnerability, vector, cpu, "without")).verdict is AttackVerdict.LEAK


_FLUSH = "return_user.ibpb_after_vm_exit"


def test_a_vmm_is_guarded_by_the_flush_after_its_guest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux without the IBPB before a VMM's user mode leaks, whatever else it does."""
    linux = mitigations.mitigation("linux")

    def build(cpu: CpuModel, *, smt: bool) -> mitigations.Setup:
        setup = linux.build(cpu, smt=smt)
        return replace(setup, protocol=setup.protocol.without(_FLUSH))

    monkeypatch.setattr(mitigations, "_ALL", (linux, mitigations.Mitigation("without", "", build)))
    for cpu in ("broadwell-e5-2640v4", "cascade-lake-4210r", "zen-1200", "zen3-5600x"):
        assert attack(Cell("vmscape", "guest_user", cpu, "linux")).verdict is AttackVerdict.NO_LEAK
        assert attack(Cell("vmscape", "guest_user", cpu, "without")).verdict is AttackVerdict.LEAK


def test_only_the_first_return_after_a_guest_flushes() -> None:
    """A CPU that has run no guest since its last return to user mode flushes nothing for VMSCAPE's sake."""
    protocol = mitigations.mitigation("linux").build(load_cpu("zen3-5600x"), smt=False).protocol
    call, guest = (Happening.SYSCALL_ENTRY,), (Happening.VM_ENTRY, Happening.VM_EXIT)
    state, flushes = protocol.initial(), []
    for happenings in (call, (*call, *guest, *guest), call, (*call, Happening.CONTEXT_SWITCH)):
        for happening in (*happenings, Happening.RETURN_USER):
            outcome = protocol.happen(state, happening)
            state = outcome.state
        flushes.append(sum(effect.kind is EffectKind.IBPB for effect in outcome.effects))
    assert flushes == [0, 1, 0, 0]


def test_the_l1d_is_flushed_at_some_vm_entries() -> None:
    """After user mode, another task or an interrupt (vmentry_l1d_flush=cond), and not after a fast exit."""
    protocol = mitigations.mitigation("linux").build(load_cpu("skylake-6600u"), smt=False).protocol
    state, flushes = protocol.initial(), []
    interrupt = (Happening.NESTED_INTERRUPT, Happening.NESTED_RETURN)
    for happenings in (
        (Happening.SYSCALL_ENTRY, Happening.RETURN_USER, Happening.SYSCALL_ENTRY),
        (Happening.VM_EXIT,),
        (Happening.VM_EXIT, *interrupt),
        (Happening.VM_EXIT,),
        (Happening.VM_EXIT, Happening.CONTEXT_SWITCH),
        (Happening.VM_EXIT, Happening.RETURN_USER, Happening.SYSCALL_ENTRY),
    ):
        for happening in (*happenings, Happening.VM_ENTRY):
            outcome = protocol.happen(state, happening)
            state = outcome.state
        flushes.append(sum(effect.kind is EffectKind.L1D_FLUSH for effect in outcome.effects))
    assert flushes == [1, 0, 1, 0, 1, 1]


def test_a_processor_that_has_it_not_flushes_nothing_for_it() -> None:
    """The flush is VMSCAPE's alone."""
    for cpu, has_it in (("skylake-6600u", True), ("ice-lake-6354", False)):
        setup = mitigations.mitigation("linux").build(load_cpu(cpu), smt=False)
        assert ("ibpb_after_vm_exit" in setup.protocol.describe(Happening.RETURN_USER)) is has_it


def test_each_measure_is_needed() -> None:
    """All are tried above but those that are the machine's: page tables for user mode, and SMT."""
    assert {measure for measure, *_ in NEEDED} == set(Measure) - {Measure.PTI, Measure.SMT_OFF}
