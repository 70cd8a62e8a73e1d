"""The matrix against what was published: Linux's attack vectors, and what ASI is expected to cover.

The published tables are expected values here and inputs nowhere.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

import pytest

from asikit.attacks import (
    SECRETS,
    AttackVerdict,
    Cell,
    Finding,
    Vector,
    attack,
    cells,
    cpu_for,
    load_vulnerability,
    matrix,
    vulnerability_names,
)
from asikit.machine.x86 import cpu_names, load_cpu

Matrix = Mapping[tuple[str, str, str], AttackVerdict]

_COLUMNS = {
    "User-to-Kernel": "user_kernel",
    "User-to-User": "user_user",
    "Guest-to-Host": "guest_host",
    "Guest-to-Guest": "guest_guest",
    "Cross-Thread": "cross_thread",
}
DIFFERENCES = {
    # The table marks the vectors for which Linux switches a mitigation on, not those from which the flaw can be used.
    ("l1tf", "user_user"): "the L1D has everybody's lines; Linux counts inverted entries under user to kernel",
    ("l1tf", "guest_guest"): "the L1D has everybody's lines; Linux counts the flush at VM entry under guest to host",
    (
        "spectre_v2",
        "cross_thread",
    ): "what covers user to kernel covers a training sibling too",
    ("srso", "cross_thread"): "what covers user to kernel covers a training sibling too",
    ("rfds", "cross_thread"): "the processors that have it have no SMT; the generic model, which stands for them, has",
    ("srbds", "cross_thread"): "the buffer is the package's: a sibling reads it as any core does",
    ("tsa", "cross_thread"): "cpu_bugs_smt_update(): TSA-SQ leaks between threads; Linux clears before a CPU sleeps",
    ("vmscape", "cross_thread"): "vmscape.rst, SMT considerations: a guest beside a VMM in user mode; Linux warns",
}
"""What leaks on the machine and is not in the table, and why."""

RESIDUAL = {
    # vulnerabilities.csv, column expected_under_asi: what is left under ASI.
    "spectre_v1": {"user_kernel"},  # residual in X: steered by an argument
    "spectre_v2_user": {"cross_thread"},  # both in user mode: needs STIBP or core scheduling
    "ssb": {"user_user"},  # crosses no boundary
    "mmio": {"cross_core"},  # no flush of a core's reaches the uncore
    "gds": {str(vector) for vector in Vector} - {"cross_core", "flip", "nonsensitive"},  # nothing clears it
    "srbds": {str(vector) for vector in Vector} - {"flip", "nonsensitive"},  # uncore
    "zenbleed": {str(vector) for vector in Vector} - {"cross_core", "flip", "nonsensitive"},  # nothing clears it
    # (b): the victim's addresses are still in the predictor when it returns; (a): no barrier clears what is trained.
    "topstack": {"user_kernel", "guest_host", "guest_user", "cross_thread", "sibling_guest", "nmi"},
    "its": {"user_kernel", "nmi"},  # the kernel trains itself after the flush (cBPF); needs aligned thunks
    "vmscape": {"cross_thread", "sibling_guest"},  # both untrusted: the stun does not come; needs STIBP
    "lvi": {"user_kernel", "guest_host", "cross_thread", "sibling_guest"},  # residual in X: the direction is reversed
    "sls_misc": {"user_kernel", "guest_host"},  # residual in X: untrained
}
_SIBLING_USER = "sibling_user"
"""Both siblings in user mode: no stun comes, and what core scheduling would keep apart leaks as without ASI."""
NOT_EXPRESSIBLE = {"contention", "itlb", "reptar_etc", "v3a_lazyfp"}
_DECLARED = "nonsensitive"
_ALONE = {"user_kernel", "user_user", "guest_host", "guest_guest", "guest_user"}
"""Vectors within one hardware thread."""
_NMI = "nmi"


def _published() -> set[tuple[str, str]]:
    path = Path(__file__).with_name("attack_vectors.csv")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    return {
        (row["Vulnerability"].lower(), vector)
        for row in csv.DictReader(lines)
        for column, vector in _COLUMNS.items()
        if row[column]
    }


def _leaks(verdicts: Matrix, mitigation: str) -> set[tuple[str, str]]:
    return {
        (vulnerability, vector)
        for (vulnerability, vector, name), verdict in verdicts.items()
        if name == mitigation and verdict is AttackVerdict.LEAK
    }


def test_without_mitigation_the_published_vectors_leak(verdicts: Matrix) -> None:
    """With nothing on, exactly the vectors of the kernel's table leak, and those that are argued above."""
    published = _published()
    named = {vulnerability for vulnerability, _ in published}
    leaks = {each for each in _leaks(verdicts, "none") if each[0] in named and each[1] in _COLUMNS.values()}
    assert leaks == published | set(DIFFERENCES)


def test_what_is_applicable_is_what_the_kernel_lists(verdicts: Matrix) -> None:
    """Of the kernel's table each cell that is marked is an attack, and no other one is, but for those argued above."""
    published = _published()
    named = {vulnerability for vulnerability, _ in published}
    assert len(named) == 18
    cpus = {name: cpu_for(load_vulnerability(name)) for name in named}
    applicable = {
        (name, vector)
        for name in named
        for vector in _COLUMNS.values()
        if attack(Cell(name, vector, cpus[name], "blanket")).verdict is not AttackVerdict.NOT_APPLICABLE
    }
    assert applicable == published | set(DIFFERENCES)
    assert applicable <= {(name, vector) for name, vector, _ in verdicts}


LINUX_LEAVES = {
    ("l1tf", "guest_host"): "the L1D is not flushed at every VM entry (vmentry_l1d_flush=cond)",
    **dict.fromkeys([(name, "cross_thread") for name in ("mds", "mmio", "taa")], "note 2 of the table: SMT stays on"),
    ("rfds", "cross_thread"): "the processors that have it have no SMT",
}
"""What leaks with Linux's defaults although the table has it or it is argued above, and why."""


def test_linux_stops_what_the_table_says(verdicts: Matrix) -> None:
    """With Linux's defaults none of the table's vectors leaks, and no difference, but for those argued above."""
    assert _leaks(verdicts, "linux") & (_published() | set(DIFFERENCES)) == set(LINUX_LEAVES)


def test_without_siblings_linux_leaves_none_across_threads() -> None:
    """The table's note 2: with mitigations=auto,nosmt these go too."""
    for name in ("mds", "mmio", "taa", "l1tf"):
        for vector in ("cross_thread", "sibling_guest", "sibling_user"):
            cell = Cell(name, vector, cpu_for(load_vulnerability(name)), "linux-nosmt")
            assert attack(cell).verdict is AttackVerdict.NO_LEAK, cell


def test_linux_leaks_in_the_nmi_hole(verdicts: Matrix) -> None:
    """An NMI between VERW and the return leaves what no flush comes after."""
    assert verdicts["mds", _NMI, "linux"] is AttackVerdict.LEAK


def test_under_asi_what_is_expected_leaks(verdicts: Matrix) -> None:
    """Under ASI nothing leaks but what the reference says is left, and what was declared nonsensitive."""
    expected = {(vulnerability, vector) for vulnerability, vectors in RESIDUAL.items() for vector in vectors}
    expected = {each for each in expected if each[1] != _SIBLING_USER}
    assert {each for each in _leaks(verdicts, "asi") if each[1] not in {_DECLARED, _SIBLING_USER}} == expected


@pytest.mark.slow
@pytest.mark.parametrize("cpu", cpu_names())
def test_on_every_processor_the_flushes_are_those_that_its_bugs_call_for(cpu: str) -> None:
    """Under ASI what leaks on a processor, by the vulnerabilities that it has, is what leaks on any."""
    having = [name for name in vulnerability_names() if load_vulnerability(name).concerns(load_cpu(cpu))]
    assert having or cpu == "generic"
    wanted = [cell for name in having for cell in cells(("asi",), cpu=cpu, vulnerability=name) if cell.vector in _ALONE]
    leaks = {
        (found.cell.vulnerability, found.cell.vector) for found in matrix(wanted) if found.verdict is AttackVerdict.LEAK
    }
    assert leaks <= {(name, vector) for name, vectors in RESIDUAL.items() for vector in vectors}


def test_processes_beside_one_another_need_core_scheduling(verdicts: Matrix) -> None:
    """Between two processes on siblings ASI stops nothing: what leaks with no mitigation leaks with it.

    But what is handed over when one of them sleeps: before that ASI has entered the idle domain, and flushed.
    """
    with_none = {each for each in _leaks(verdicts, "none") if each[1] == _SIBLING_USER}
    assert {("mds", _SIBLING_USER), ("l1tf", _SIBLING_USER), ("srso", _SIBLING_USER)} <= with_none
    handed_over = {("tsa", _SIBLING_USER)}
    assert {each for each in _leaks(verdicts, "asi") if each[1] == _SIBLING_USER} == with_none - handed_over
    stopped = {
        "spectre_v2_user",
        "srso",
        "tsa",
        "l1tf",
        "gds",
        "srbds",
        "zenbleed",
    }  # STIBP, microcode, inverted entries
    assert {each for each, vector in _leaks(verdicts, "linux") if vector == _SIBLING_USER} == {
        each for each, _ in with_none if each not in stopped
    }


def test_a_guest_beside_the_kernel_is_stunned(verdicts: Matrix) -> None:
    """A guest on the sibling samples the host's kernel, and trains it; under ASI it does not."""
    for vulnerability in ("mds", "l1tf", "spectre_v2", "retbleed"):
        assert verdicts[vulnerability, "sibling_guest", "none"] is AttackVerdict.LEAK, vulnerability
        assert verdicts[vulnerability, "sibling_guest", "asi"] is AttackVerdict.NO_LEAK, vulnerability


def test_what_differs_comes_from_the_secret(findings: tuple[Finding, ...]) -> None:
    """No leak is an artefact: in each, the two values are made of the two secrets, and of nothing else."""
    leaks = [found for found in findings if found.verdict is AttackVerdict.LEAK]
    assert leaks
    for found in leaks:
        assert found.difference is not None
        for value, secret in zip(found.difference.values, SECRETS, strict=True):
            base = int.from_bytes(secret[:4], "little")
            branch = f"{(base << 12) + 0x10:#x}->{(base << 12) + 0x1010:#x}"
            assert value in (secret * 2).hex() or branch.find(value) >= 0, found.reason


def test_declared_nonsensitive_memory_leaks_under_asi(verdicts: Matrix) -> None:
    """Memory that is mapped in the restricted address space is as it was before; the blanket mitigation covers it."""
    for vulnerability in ("meltdown", "mds", "spectre_v2", "l1tf"):
        assert verdicts[vulnerability, _DECLARED, "asi"] is AttackVerdict.LEAK, vulnerability
        assert verdicts[vulnerability, _DECLARED, "blanket"] is AttackVerdict.NO_LEAK, vulnerability


def test_blanket_and_asi_differ_where_the_theorem_says(verdicts: Matrix) -> None:
    """T2: what leaks under ASI alone is declared, or needs the SMT that blanket turns off, or is timing of mappings.

    And addresses that a VMM leaves in the predictors: blanket happens to flush them at its next system call, KVM_RUN.
    What leaks under blanket alone needs an NMI after its flush, or kernel code that ASI runs without the secret mapped.
    """
    asi, blanket = _leaks(verdicts, "asi"), _leaks(verdicts, "blanket")
    alone = asi - blanket
    assert {vulnerability for vulnerability, vector in alone if vector == "guest_user"} == {"topstack"}
    assert {vector for _, vector in alone} - {"guest_user"} == {
        _DECLARED,
        "cross_thread",
        _SIBLING_USER,
        "sibling_guest",
    }
    assert {vector for _, vector in blanket - asi} == {_NMI, "flip"}


def test_what_cannot_be_expressed_is_unknown(verdicts: Matrix) -> None:
    """Denials of service, timing of ports and system registers are unknown under everything.

    Nothing else is: each other verdict rests on an attack that took place. But of `topstack` there is one way of two
    that has no program in `flip`.
    """
    unknown = {each for each, verdict in verdicts.items() if verdict is AttackVerdict.UNKNOWN}
    half = {("topstack", "flip", "linux"), ("topstack", "flip", "asi")}
    assert unknown == half | {each for each in verdicts if each[0] in NOT_EXPRESSIBLE}
    assert {vulnerability for vulnerability, _, _ in unknown - half} == NOT_EXPRESSIBLE


def test_what_does_not_leak_was_stopped(findings: tuple[Finding, ...]) -> None:
    """Each verdict that nothing leaks says by what."""
    silent = {
        (found.cell.vulnerability, found.cell.vector, found.cell.mitigation)
        for found in findings
        if found.verdict is AttackVerdict.NO_LEAK and not found.stopped
    }
    assert not silent


def test_a_guest_and_its_own_vmm(verdicts: Matrix) -> None:
    """VMSCAPE leaks where nothing stops it, and is all that the position is needed for.

    ASI flushes when it enters the VMM's domain, the blanket mitigation when it leaves the guest, Linux at the first
    return to user mode after that.
    """
    row = {
        mitigation: verdicts["vmscape", "guest_user", mitigation] for mitigation in ("none", "linux", "blanket", "asi")
    }
    assert row == {
        "none": AttackVerdict.LEAK,
        "linux": AttackVerdict.NO_LEAK,
        "blanket": AttackVerdict.NO_LEAK,
        "asi": AttackVerdict.NO_LEAK,
    }
    assert {vector for vulnerability, vector, _ in verdicts if vulnerability == "vmscape"} == {
        "guest_host",
        "guest_user",
        "cross_thread",
        "sibling_guest",
    }
    for mitigation, verdict in row.items():
        assert verdicts["vmscape", "guest_host", mitigation] is verdict  # the kernel's table counts the VMM as host
    assert ("spectre_v2_user", "guest_user", "none") not in verdicts
