"""Reports of real machines, each with its right answer; `hosts/` has their files and says where they are from."""

from __future__ import annotations

from pathlib import Path

import pytest

from asikit.cost import Host, HostVerdict, read_host

HOSTS = Path(__file__).parent / "hosts"
SAMPLED = {"l1tf", "mds", "mmio_stale_data"}
NOT_IN_5_4 = {"retbleed", "mmio_stale_data", "gather_data_sampling", "vmscape", "indirect_target_selection"}

ANSWERS = {
    # Linux 5.4 with an old microcode.
    "h01-i7-6700-nomicrocode-5.4": {
        "mds": "not covered",
        "tsx_async_abort": "not covered",
        "l1tf": "partly",
        "meltdown": "covered",
        "spectre_v2": "partly",
        **dict.fromkeys(NOT_IN_5_4 | {"srbds"}, "not told"),
    },
    # A guest of Hyper-V: VERW clears nothing without the microcode.
    "h03-epyc7763-hyperv": {
        "tsa": "not covered",
        "spec_rstack_overflow": "partly",
        "spectre_v2": "partly",
        "vmscape": "not needed",
    },
    # VMSCAPE with siblings in use, and STIBP for those who ask.
    "h04-i7-8700t": {"vmscape": "partly", "mds": "partly", "meltdown": "covered", "retbleed": "partly"},
    # A guest of Azure's: its siblings are unknown.
    "h05-xeon8272cl-azure-5.4": {
        "mds": "partly",
        "tsx_async_abort": "partly",
        "l1tf": "partly",
        "meltdown": "covered",
        **dict.fromkeys(NOT_IN_5_4, "not told"),
    },
    "h10-zen3-tsa": {
        "tsa": "covered",
        "vmscape": "covered",
        "spec_rstack_overflow": "partly",
        "spectre_v2": "partly",
        "spec_store_bypass": "not covered",
    },
    "h12-qubes-dom0": {"meltdown": "unknown", "srbds": "unknown", "mmio_stale_data": "partly", "mds": "not told"},
    "h13-ivybridge-mmio-unknown": {"mmio_stale_data": "unknown", "srbds": "not covered"},
    "h16-nuc10-processor-vulnerable": {"itlb_multihit": "not covered", "meltdown": "not needed", "mds": "not needed"},
    "h17-jasper-lake": {"mmio_stale_data": "partly", "reg_file_data_sampling": "covered", "srbds": "not covered"},
    # A filter that the kernel runs trains after the flush.
    "h20-rocky-its": {"indirect_target_selection": "partly", "gather_data_sampling": "not covered"},
    "skylake-sp": {"meltdown": "covered", "l1tf": "covered", "mds": "covered", "retbleed": "covered"},
    "vmscape-bhb": {"vmscape": "covered"},
}
MODELS = {
    "h01-i7-6700-nomicrocode-5.4": "skylake-6600u",
    "h03-epyc7763-hyperv": "zen3-5600x",
    "h04-i7-8700t": "skylake-6600u",
    "h05-xeon8272cl-azure-5.4": "cascade-lake-4210r",
    "h10-zen3-tsa": "zen3-5600x",
    "h12-qubes-dom0": "skylake-6600u",
    # The same model number as the one before, with a stepping that has Cascade Lake's repairs.
    "h16-nuc10-processor-vulnerable": "cascade-lake-4210r",
    "h20-rocky-its": "cascade-lake-4210r",
    # The same model number as h05's, with a stepping that has none.
    "skylake-sp": "skylake-6600u",
    "vmscape-bhb": "skylake-6600u",
}


def host(name: str) -> Host:
    """Read a machine's report."""
    return read_host(HOSTS / name)


def redundant(name: str, vulnerability: str) -> tuple[str, ...]:
    """Return what ASI would make unnecessary of what is done against a vulnerability on a machine."""
    (found,) = (one for one in host(name).vulnerabilities if one.name == vulnerability)
    return found.redundant


def test_every_case_has_an_answer() -> None:
    """No report is without its right answer."""
    assert {item.name for item in HOSTS.iterdir() if item.is_dir()} == set(ANSWERS)
    assert all((HOSTS / name / "SOURCE").read_text(encoding="utf-8").strip() for name in ANSWERS)


@pytest.mark.parametrize("name", ANSWERS)
def test_verdicts(name: str) -> None:
    """What ASI would do about each, and nothing of a line is unread."""
    found = host(name)
    told = {one.name: one.verdict.value for one in found.vulnerabilities}
    assert {vulnerability: told[vulnerability] for vulnerability in ANSWERS[name]} == ANSWERS[name]
    assert all(one.unread == () for one in found.vulnerabilities)
    files = {file.name for file in (HOSTS / name / "vulnerabilities").iterdir()}
    assert set(found.not_told) == told.keys() - files


@pytest.mark.parametrize("name", ANSWERS)
def test_nearest_model(name: str) -> None:
    """By stepping, where a model number has processors with different bugs."""
    assert host(name).identity.model == MODELS.get(name)


@pytest.mark.parametrize(("name", "differences"), [
    ("skylake-sp", {"srbds": "not affected"}),
    ("h10-zen3-tsa", {}),
    ("h16-nuc10-processor-vulnerable", {"srbds": "affected", "tsx_async_abort": "not affected"}),
    ("h05-xeon8272cl-azure-5.4", dict.fromkeys(("l1tf", "mds", "meltdown"), "affected")),
    # In a guest the kernel never lists VMSCAPE, so that is none.
    ("h03-epyc7763-hyperv", {}),
])  # fmt: skip
def test_contradictions(name: str, differences: dict[str, str]) -> None:
    """Where the report says of a bug what the model does not."""
    assert {one.name: one.here.value for one in host(name).differences} == differences


def test_guests_see_no_siblings() -> None:
    """A guest's siblings are unknown whatever it counts, and no flush of buffers is called unnecessary there."""
    for name in ("h03-epyc7763-hyperv", "h05-xeon8272cl-azure-5.4", "h12-qubes-dom0"):
        identity = host(name).identity
        assert (identity.guest, identity.smt) == (True, None)
    for vulnerability in ("mds", "tsx_async_abort"):
        assert redundant("h05-xeon8272cl-azure-5.4", vulnerability) == ()
    assert redundant("h12-qubes-dom0", "mmio_stale_data") == ()
    assert host("h05-xeon8272cl-azure-5.4").redundant == ("PTI",)


def test_what_is_unnecessary() -> None:
    """Old and new wordings are read; SMT that is not there is not "off"; thunks stay against what trains later."""
    assert redundant("h01-i7-6700-nomicrocode-5.4", "spectre_v2")[0] == "retpolines (with a stun)"
    assert redundant("vmscape-bhb", "vmscape") == ("BHB clearing before a VMM's user mode",)
    assert redundant("skylake-sp", "vmscape") == ("IBPB before a VMM's user mode",)
    assert redundant("skylake-sp", "mds") == ("VERW at every return", "SMT off (with a stun)")
    assert redundant("h17-jasper-lake", "mmio_stale_data") == ("VERW at returns and VM entries",)
    assert redundant("h20-rocky-its", "indirect_target_selection") == ()
    assert redundant("h03-epyc7763-hyperv", "tsa") == ()


@pytest.mark.parametrize(("name", "expected"), [
    ("h03-epyc7763-hyperv", dict.fromkeys(("spec_rstack_overflow", "spec_store_bypass", "tsa"), "vulnerable")),
    ("h04-i7-8700t", dict.fromkeys(SAMPLED, "partly") | {"gather_data_sampling": "vulnerable"}),
    ("h12-qubes-dom0", {"meltdown": "unknown", "srbds": "unknown"}),
    ("h16-nuc10-processor-vulnerable", {"itlb_multihit": "vulnerable"}),
    ("skylake-sp", {}),
])  # fmt: skip
def test_vulnerable_today(name: str, expected: dict[str, str]) -> None:
    """What the kernel says of the machine as it is."""
    told = [one for one in host(name).vulnerabilities if one.verdict is not HostVerdict.NOT_TOLD]
    assert {one.name: one.today.value for one in told if one.today.value != "no"} == expected


def test_reasons() -> None:
    """Each says what it rests on."""
    reasons = {
        ("h03-epyc7763-hyperv", "tsa"): "without the microcode VERW clears nothing",
        ("h04-i7-8700t", "vmscape"): "STIBP is not always on",
        ("h05-xeon8272cl-azure-5.4", "mds"): "a guest does not see whether there is one",
        ("h12-qubes-dom0", "meltdown"): "the kernel itself does not know",
        ("h20-rocky-its", "indirect_target_selection"): "train it after the flush",
        ("h01-i7-6700-nomicrocode-5.4", "retbleed"): "skylake-6600u, the nearest CPU model, has it",
    }
    for (name, vulnerability), reason in reasons.items():
        (found,) = (one for one in host(name).vulnerabilities if one.name == vulnerability)
        assert any(reason in remains for remains in found.remains), name


def test_nothing_that_is_not_told_is_affirmed() -> None:
    """Of what no file says, nothing is covered, needed or unnecessary."""
    for name in ANSWERS:
        for one in host(name).vulnerabilities:
            if one.verdict is HostVerdict.NOT_TOLD:
                assert (one.now, one.by, one.redundant) == ("", (), ())
