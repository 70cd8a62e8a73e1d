"""Each measure of Linux's that is not a flush: with it an attack does not leak, and without it alone it does."""

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.leaks import Cell, Verdict, attack, mitigations
from asikit.leaks.measures import Measure

if TYPE_CHECKING:
    from asikit.x86 import CpuModel

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

    def build(model: "CpuModel", smt: bool) -> mitigations.Setup:  # noqa: FBT001 - as a mitigation has it
        setup = linux.build(model, smt)
        left = setup.hardening.measures - {measure}
        return replace(setup, hardening=replace(setup.hardening, measures=left))

    monkeypatch.setattr(mitigations, "_ALL", (linux, mitigations.Mitigation("without", "", build)))
    assert attack(Cell(vulnerability, vector, cpu, "linux")).verdict is Verdict.NO_LEAK
    assert attack(Cell(vulnerability, vector, cpu, "without")).verdict is Verdict.LEAK


def test_each_measure_is_needed() -> None:
    """All are tried above but those that are the machine's: page tables for user mode, and SMT."""
    assert {measure for measure, *_ in NEEDED} == set(Measure) - {Measure.PTI, Measure.SMT_OFF}
