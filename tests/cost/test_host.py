"""Other machines' lists of vulnerabilities: what ASI would do about each there."""

from __future__ import annotations

from pathlib import Path

import pytest

from asikit.cost import HostError, HostVerdict, HostVulnerability, read_host

CPUINFO = """processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: {name}
microcode\t: 0x1
siblings\t: {siblings}
cpu cores\t: 4
flags\t\t: {flags}
bugs\t\t: {bugs}
address sizes\t: 46 bits physical, 48 bits virtual

processor\t: 1
vendor_id\t: other
"""

NOT = "Not affected"
SKYLAKE = {
    "gather_data_sampling": "Mitigation: Microcode",
    "itlb_multihit": "KVM: Mitigation: VMX disabled",
    "l1tf": "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable",
    "mds": "Mitigation: Clear CPU buffers; SMT vulnerable",
    "meltdown": "Mitigation: PTI",
    "mmio_stale_data": "Mitigation: Clear CPU buffers; SMT vulnerable",
    "retbleed": "Mitigation: IBRS",
    "spec_rstack_overflow": NOT,
    "spec_store_bypass": "Mitigation: Speculative Store Bypass disabled via prctl",
    "spectre_v1": "Mitigation: usercopy/swapgs barriers and __user pointer sanitization",
    "spectre_v2": "Mitigation: IBRS; IBPB: conditional; STIBP: conditional; RSB filling; PBRSB-eIBRS: Not affected;"
    " BHI: Not affected",
    "srbds": "Mitigation: Microcode",
    "tsx_async_abort": "Mitigation: TSX disabled",
}
ZEN2 = {
    "meltdown": NOT,
    "mds": NOT,
    "retbleed": "Mitigation: untrained return thunk; SMT enabled with STIBP protection",
    "spec_rstack_overflow": "Mitigation: Safe RET",
    "spectre_v2": "Mitigation: Retpolines; IBPB: conditional; STIBP: always-on; RSB filling; PBRSB-eIBRS: Not affected;"
    " BHI: Not affected",
}
ICE_LAKE = {
    "meltdown": NOT,
    "mmio_stale_data": "Mitigation: Clear CPU buffers; SMT disabled",
    "spectre_v2": "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional; RSB filling; PBRSB-eIBRS: SW sequence;"
    " BHI: SW loop, KVM: SW loop",
    "vmscape": "Mitigation: IBPB before exit to userspace",
    "newest_of_all": "Vulnerable",
}


def saved(
    folder: Path, texts: dict[str, str], *, as_tree: bool = False, smt: str | None = None, **identity: object
) -> Path:
    """Save a machine's files: side by side, or as on the machine."""
    words = {"vendor": "GenuineIntel", "family": 6, "model": 1, "name": "A CPU", "siblings": 8, "flags": "", "bugs": ""}
    vulnerabilities = folder / ("sys/devices/system/cpu/vulnerabilities" if as_tree else "vulnerabilities")
    vulnerabilities.mkdir(parents=True)
    for name, text in texts.items():
        (vulnerabilities / name).write_text(f"{text}\n", encoding="utf-8")
    info = folder / ("proc/cpuinfo" if as_tree else "cpuinfo")
    info.parent.mkdir(exist_ok=True)
    info.write_text(CPUINFO.format(**(words | identity)), encoding="utf-8")
    if smt is not None:
        (folder / "smt").mkdir()
        (folder / "smt/active").write_text(smt, encoding="utf-8")
    return folder


def verdicts(folder: Path) -> dict[str, str]:
    """Give the verdict on each vulnerability that the processor has and the kernel tells."""
    silent = {HostVerdict.NOT_NEEDED, HostVerdict.NOT_TOLD}
    return {one.name: one.verdict.value for one in read_host(folder).vulnerabilities if one.verdict not in silent}


@pytest.mark.parametrize("as_tree", [False, True])
def test_skylake(tmp_path: Path, *, as_tree: bool) -> None:
    """Everything by its boundary is covered; what the sibling does, one domain's own, and the uncore's are not."""
    flags = "ibpb flush_l1d md_clear"
    host = saved(tmp_path, SKYLAKE, as_tree=as_tree, model=78, flags=flags, smt=None)
    assert verdicts(host) == {
        "gather_data_sampling": "not covered",
        "itlb_multihit": "not covered",
        "l1tf": "partly",
        "mds": "partly",
        "meltdown": "covered",
        "mmio_stale_data": "partly",
        "retbleed": "partly",
        "spec_store_bypass": "not covered",
        "spectre_v1": "partly",
        "spectre_v2": "partly",
        "srbds": "not covered",
        "tsx_async_abort": "partly",
    }
    read = read_host(host)
    assert read.identity.model == "skylake-6600u"
    assert read.identity.smt is True
    assert read.redundant == (
        "L1D flushes at VM entry",
        "VERW at every return",
        "PTI",
        "VERW at returns and VM entries",
        "IBRS (with a stun)",
        "IBPB at a change of processes",
        "RSB filling",
        "TSX off (with a stun)",
    )


def test_without_siblings_nothing_is_left_to_them(tmp_path: Path) -> None:
    """The same machine with its siblings off: what was partly covered for their sake is covered."""
    texts = {name: text.replace("SMT vulnerable", "SMT disabled") for name, text in SKYLAKE.items()}
    folder = saved(tmp_path, texts, model=78, flags="ibpb flush_l1d md_clear", smt="0")
    found = verdicts(folder)
    assert {found[name] for name in ("l1tf", "mds", "retbleed", "spectre_v2", "tsx_async_abort")} == {"covered"}
    assert found["mmio_stale_data"] == "partly"
    host = read_host(folder)
    assert {"IBRS", "TSX off", "SMT off (with a stun)"} <= set(host.redundant)
    assert not any("sibling" in reason for one in host.vulnerabilities for reason in one.remains)


def test_the_dangerous_source_counts(tmp_path: Path) -> None:
    """A line that says that siblings are in use counts, whatever smt/active says."""
    found = verdicts(saved(tmp_path, SKYLAKE, model=78, flags="ibpb flush_l1d md_clear", smt="0"))
    assert found["mds"] == "partly"


def test_zen2(tmp_path: Path) -> None:
    """Predictors are flushed by IBPB, so retpolines, thunks and safe returns could go."""
    host = read_host(saved(tmp_path, ZEN2, vendor="AuthenticAMD", family=23, model=49, flags="ibpb", smt="1"))
    assert host.identity.model == "zen2-7452"
    found = {one.name: one for one in host.vulnerabilities}
    assert found["meltdown"].verdict is HostVerdict.NOT_NEEDED
    assert found["retbleed"].verdict is HostVerdict.PARTLY
    assert found["retbleed"].redundant == ("untrained return thunks (with a stun)",)
    assert found["spec_rstack_overflow"].redundant == ("safe returns (with a stun)",)
    assert found["spectre_v2"].redundant == (
        "retpolines (with a stun)",
        "IBPB at a change of processes",
        "RSB filling",
    )


def test_ice_lake_and_a_newer_kernel(tmp_path: Path) -> None:
    """What hardware does by itself is not made unnecessary; a file that nobody knows is unknown, not fine."""
    found = {
        one.name: one
        for one in read_host(saved(tmp_path, ICE_LAKE, model=106, flags="ibpb md_clear", smt="0")).vulnerabilities
    }
    assert found["spectre_v2"].redundant == (
        "IBPB at a change of processes",
        "RSB filling",
        "the sequence after VM exits (PBRSB)",
        "clearing of the branch history (BHI)",
    )
    assert found["mmio_stale_data"].redundant == ("VERW at returns and VM entries", "SMT off (with a stun)")
    assert found["vmscape"].redundant == ("IBPB before a VMM's user mode",)
    assert found["newest_of_all"].verdict is HostVerdict.UNKNOWN


def test_missing_microcode_and_flags(tmp_path: Path) -> None:
    """Without its instruction a flush is none: what rests on it alone is not covered, what is unmapped is partly."""
    texts = {
        "mds": "Vulnerable: Clear CPU buffers attempted, no microcode; SMT vulnerable",
        "spec_rstack_overflow": "Vulnerable: Safe RET, no microcode",
        "l1tf": "Mitigation: PTE Inversion; VMX: cache flushes, SMT disabled",
    }
    found = {one.name: one for one in read_host(saved(tmp_path, texts, flags="ibpb md_clear")).vulnerabilities}
    assert found["mds"].verdict is HostVerdict.NOT_COVERED
    assert found["mds"].remains[0] == "without the microcode VERW clears nothing"
    assert found["spec_rstack_overflow"].verdict is HostVerdict.PARTLY
    assert found["l1tf"].verdict is HostVerdict.PARTLY
    assert found["l1tf"].remains[0] == "the processor has no flush_l1d (cpuinfo)"
    assert all(not one.redundant for one in found.values())


def answers(folder: Path) -> dict[str, HostVulnerability]:
    """Give what is said of each vulnerability."""
    return {one.name: one for one in read_host(folder).vulnerabilities}


def test_a_silent_line(tmp_path: Path) -> None:
    """A mitigation that is off says nothing of the microcode, unless a flag does."""
    texts = {"tsa": "Vulnerable", "spec_rstack_overflow": "Vulnerable", "mds": "Vulnerable; SMT disabled"}
    found = answers(saved(tmp_path, texts, flags="ibpb md_clear", smt="0"))
    assert found["tsa"].verdict is HostVerdict.UNKNOWN
    assert found["tsa"].remains[0].startswith("the kernel does not say whether the microcode is there, without which")
    assert found["spec_rstack_overflow"].verdict is HostVerdict.PARTLY
    assert found["mds"].verdict is HostVerdict.COVERED


def test_what_one_vulnerability_needs_is_not_unnecessary(tmp_path: Path) -> None:
    """A mitigation against several vulnerabilities goes only if none of them needs it."""
    texts = {
        "mds": "Mitigation: Clear CPU buffers; SMT disabled",
        "reg_file_data_sampling": "Mitigation: Clear Register File; Incantations",
        "spectre_v2": "Mitigation: Retpolines; IBPB: conditional",
        "indirect_target_selection": "Mitigation: Retpolines, Stuffing RSB",
        "tsx_async_abort": "Mitigation: TSX disabled",
        "srbds": "Mitigation: TSX disabled",
    }
    host = read_host(saved(tmp_path, texts, flags="ibpb md_clear", smt="0", siblings=4))
    found = {one.name: one for one in host.vulnerabilities}
    assert found["mds"].redundant == ("VERW at every return",)
    assert found["spectre_v2"].redundant == ("retpolines", "IBPB at a change of processes")
    assert found["tsx_async_abort"].redundant == ("TSX off",)
    assert host.redundant == ("IBPB at a change of processes",)


@pytest.mark.parametrize(("vendor", "spectre_v2", "verdict"), [
    ("GenuineIntel", "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional", HostVerdict.COVERED),
    ("AuthenticAMD", "Mitigation: Enhanced / Automatic IBRS; IBPB: conditional", HostVerdict.PARTLY),
    ("AuthenticAMD", "Mitigation: Enhanced / Automatic IBRS; STIBP: always-on", HostVerdict.COVERED),
    ("AuthenticAMD", "Mitigation: Retpolines; STIBP: forced", HostVerdict.COVERED),
    ("GenuineIntel", "Mitigation: IBRS; STIBP: disabled", HostVerdict.PARTLY),
])  # fmt: skip
def test_vmscape_needs_stibp(tmp_path: Path, vendor: str, spectre_v2: str, verdict: HostVerdict) -> None:
    """Of siblings in use; Intel's enhanced IBRS implies it, AMD's automatic IBRS does not."""
    texts = {"vmscape": "Mitigation: IBPB before exit to userspace", "spectre_v2": spectre_v2}
    assert answers(saved(tmp_path / "on", texts, vendor=vendor, flags="ibpb", smt="1"))["vmscape"].verdict is verdict
    off = answers(saved(tmp_path / "off", texts, vendor=vendor, flags="ibpb", smt="0"))
    assert off["vmscape"].verdict is HostVerdict.COVERED


def test_siblings_that_are_no_danger(tmp_path: Path) -> None:
    """The words "SMT mitigated": of a processor with MSBDS alone, whose siblings are in use."""
    folder = saved(tmp_path, {"mds": "Mitigation: Clear CPU buffers; SMT mitigated"}, flags="md_clear")
    assert answers(folder)["mds"].verdict is HostVerdict.COVERED
    assert read_host(folder).identity.smt is True


def test_unprivileged_ebpf(tmp_path: Path) -> None:
    """A program that the kernel runs for its user trains after the flush."""
    texts = {"spectre_v2": "Vulnerable: eIBRS with unprivileged eBPF"}
    found = answers(saved(tmp_path, texts, flags="ibpb", smt="0"))["spectre_v2"]
    assert found.verdict is HostVerdict.PARTLY
    assert "unprivileged eBPF" in found.remains[0]


def test_refusals(tmp_path: Path) -> None:
    """A folder that is not there, or lacks something, is refused in a line that names it."""
    with pytest.raises(HostError, match=r"none: no such file or folder: give the output of `grep \. /sys/devices"):
        read_host(tmp_path / "none")
    with pytest.raises(HostError, match=r"cpuinfo: missing: save /proc/cpuinfo there, or give the output of lscpu"):
        read_host(tmp_path)
    (tmp_path / "cpuinfo").write_text("model name: ARM\n", encoding="utf-8")
    with pytest.raises(HostError, match="has no vendor_id: not the /proc/cpuinfo of an x86 machine"):
        read_host(tmp_path)
    (tmp_path / "cpuinfo").write_text("vendor_id: GenuineIntel\n", encoding="utf-8")
    with pytest.raises(HostError, match="vulnerabilities: missing or empty: save"):
        read_host(tmp_path)
    (tmp_path / "vulnerabilities").mkdir()
    with pytest.raises(HostError, match="vulnerabilities: missing or empty: save"):
        read_host(tmp_path)
    assert read_host(saved(tmp_path / "bare", {"meltdown": NOT})).identity.family == 6


def test_flat_folder(tmp_path: Path) -> None:
    """The files themselves beside cpuinfo will do."""
    (tmp_path / "cpuinfo").write_text("vendor_id: GenuineIntel\n", encoding="utf-8")
    for name, text in ZEN2.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    host = read_host(tmp_path)
    assert sorted({one.name for one in host.vulnerabilities} - set(host.not_told)) == sorted(ZEN2)
    assert host.identity.smt is True  # Retbleed's line says so


def test_this_machine() -> None:
    """The machine that the tests run on has files, and all of them are known."""
    if not Path("/sys/devices/system/cpu/vulnerabilities").is_dir():
        with pytest.raises(HostError):
            read_host()
        return
    host = read_host()
    assert host.vulnerabilities
    assert host.to_dict()["cpu"]["vendor"] == host.identity.vendor
