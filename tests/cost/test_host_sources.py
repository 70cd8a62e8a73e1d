"""What people have of a machine, alone and together: files, `grep .`, lscpu in its forms, cpuinfo, a checker's JSON."""

from __future__ import annotations

import io
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from asikit.cost import Host, HostError, HostText, HostVerdict, read_host, read_identity
from asikit.cost._host_json import _checker
from asikit.cost._host_lines import LineStatus, mechanisms, read_line
from tests.cost.test_commands import asi

HOSTS = Path(__file__).parent / "hosts"
CASE = HOSTS / "h04-i7-8700t"
GUEST = HOSTS / "h05-xeon8272cl-azure-5.4"
SYS = "/sys/devices/system/cpu"
LINES = {file.name: file.read_text(encoding="utf-8").strip() for file in (CASE / "vulnerabilities").iterdir()}
CPUINFO = (CASE / "cpuinfo").read_text(encoding="utf-8")
FIELDS = {
    key.strip(): value.strip() for key, _, value in (line.partition(":") for line in CPUINFO.splitlines()) if value
}
LSCPU_FIELDS = {
    "Architecture": "x86_64",
    "CPU op-mode(s)": "32-bit, 64-bit",
    "Vendor ID": FIELDS["vendor_id"],
    "Model name": FIELDS["model name"],
    "CPU family": FIELDS["cpu family"],
    "Model": FIELDS["model"],
    "Thread(s) per core": "2",
    "Core(s) per socket": "6",
    "Stepping": FIELDS["stepping"],
    "BogoMIPS": "4800.00",
    "Flags": FIELDS["flags"],
    "L1d cache": "192 KiB",
}
CHECKER = {
    "CVE-2017-5753": (False, "Mitigation: usercopy/swapgs barriers and __user pointer sanitization"),
    "CVE-2017-5715": (False, "IBRS + IBPB are mitigating the vulnerability"),
    "CVE-2017-5754": (False, "PTI mitigates the vulnerability"),
    "CVE-2018-3640": (False, "your CPU microcode mitigates the vulnerability"),
    "CVE-2018-3639": (False, "Mitigation: Speculative Store Bypass disabled via prctl"),
    "CVE-2018-3615": (False, "your CPU vendor reported your CPU model as not affected"),
    "CVE-2018-3620": (False, "Mitigation: PTE Inversion; VMX: conditional cache flushes, SMT vulnerable"),
    "CVE-2018-3646": (False, "this system is not running a hypervisor"),
    "CVE-2018-12126": (
        False,
        "Your microcode and kernel are both up to date for this mitigation, and mitigation is enabled",
    ),
    "CVE-2018-12130": (
        True,
        "Your kernel supports mitigation, but your CPU microcode also needs to be updated to mitigate it",
    ),
    "CVE-2019-11135": (False, "Mitigation: TSX disabled"),
    "CVE-2018-12207": (False, "this system is not running a hypervisor"),
    "CVE-2020-0543": (None, "Not able to enumerate MSR for SRBDS mitigation control"),
    "CVE-2023-20593": (False, "your CPU vendor reported your CPU model as not affected"),
    "CVE-2022-40982": (True, "A new wording"),
    "CVE-2023-20569": (False, "your CPU vendor reported your CPU model as not affected"),
}
"""What spectre-meltdown-checker says of such a machine; two of MDS's CVEs say two things, and the worse counts."""
NEITHER = "Neither your kernel or your microcode support mitigation, upgrade both to mitigate the vulnerability"
UP_TO_DATE = "Your microcode and kernel are both up to date for this mitigation"


def grepped(prefix: str = f"{SYS}/vulnerabilities/") -> str:
    """Return what `grep . /sys/devices/system/cpu/vulnerabilities/*` prints."""
    return "".join(f"{prefix}{name}:{text}\n" for name, text in LINES.items())


def in_lscpu(text: str) -> str:
    """Return a line as lscpu has it."""
    begin = "Mitigation: "
    return f"Mitigation; {text.removeprefix(begin).replace(':', '')}" if text.startswith(begin) else text


def titled(name: str) -> str:
    """Return a file's name as lscpu has it."""
    return name.capitalize().replace("_", " ")


def lscpu(*, sections: bool = False) -> str:
    """Return what lscpu prints: into a pipe, or on a terminal."""
    width = 41
    rows = [f"{key}:".ljust(width) + value for key, value in LSCPU_FIELDS.items()]
    if sections:
        rows = [row if row.startswith(("Arch", "Vendor")) else f"  {row}" for row in rows]
        rows.append("Vulnerabilities:")
    names = [f"  {titled(name)}" if sections else f"Vulnerability {titled(name)}" for name in LINES]
    rows += [f"{name}:".ljust(width) + in_lscpu(text) for name, text in zip(names, LINES.values(), strict=True)]
    return "\n".join(rows) + "\n"


def wrapped(text: str, columns: int, *, stripped: bool) -> str:
    """Return lscpu's output as a narrow terminal shows it: broken anywhere; and as a paste has it, blanks lost."""
    rows: list[str] = []
    for line in text.splitlines():
        key = line[: line.index(":") + 1]
        column = len(line) - len(line[len(key) :].lstrip())
        value, room = line[column:], columns - column
        chunks = [value[start : start + room] for start in range(0, len(value), room)] or [""]
        rows += [line[:column] + chunks[0], *(" " * column + chunk for chunk in chunks[1:])]
    return "\n".join(row.rstrip() if stripped else row for row in rows)


def as_json(*, nested: bool) -> str:
    """Return what lscpu --json prints: of older and of newer versions."""
    fields = [{"field": f"{key}:", "data": value} for key, value in LSCPU_FIELDS.items()]
    if nested:
        inner: list[dict[str, Any]] = [
            {"field": f"{titled(name)}:", "data": in_lscpu(text)} for name, text in LINES.items()
        ]
        outer = {"field": "Vulnerabilities:", "data": None, "children": inner}
        return json.dumps({"lscpu": [{"field": "Vendor:", "data": None, "children": fields}, outer]})
    flat = [{"field": f"Vulnerability {titled(name)}:", "data": in_lscpu(text)} for name, text in LINES.items()]
    return json.dumps({"lscpu": [*fields, *flat]})


def terse() -> str:
    """Return what spectre-meltdown-checker --batch json (of 2018 to 2025) prints."""
    return json.dumps([
        {"NAME": "A NAME", "CVE": cve, "VULNERABLE": vulnerable, "INFOS": words}
        for cve, (vulnerable, words) in CHECKER.items()
    ])  # fmt: skip


def comprehensive() -> str:
    """Return what spectre-meltdown-checker --batch json (of 2026) prints."""
    capabilities = {"ibpb": True, "ibrs": True, "md_clear": True, "l1d_flush": False, "stibp": None}
    x86 = {"family": 6, "model": 158, "stepping": 10, "capabilities": capabilities}
    return json.dumps({
        "meta": {"format_version": 1},
        "system": {"kernel_release": "6.17.4", "smt_enabled": True, "hypervisor_host": False},
        "cpu": {"arch": "x86", "vendor": "GenuineIntel", "friendly_name": "An i7", "x86": x86},
        "cpu_microcode": {"installed_version": "0xf8"},
        "vulnerabilities": [
            {
                "cve": cve,
                "name": "A NAME",
                "vulnerable": vulnerable,
                "info": words,
                "sysfs_message": "Mitigation: PTI" if cve == "CVE-2017-5754" else None,
            }
            for cve, (vulnerable, words) in CHECKER.items()
        ],
    })  # fmt: skip


def read(*texts: str) -> Host:
    """Read texts, each as a source."""
    return read_host(*(HostText(f"text {number}", text) for number, text in enumerate(texts)))


def answers(host: Host) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Return the verdict on each vulnerability, and what is unnecessary."""
    return {one.name: (one.verdict.value, one.redundant) for one in host.vulnerabilities}


@pytest.mark.parametrize("texts", [
    (grepped(), CPUINFO),
    (grepped() + CPUINFO,),
    (grepped(""), CPUINFO),                                                          # grep . * there
    (grepped("./vulnerabilities/"), lscpu()),
    (lscpu(),),
    (lscpu(sections=True),),
    (wrapped(lscpu(sections=True), 80, stripped=False),),
    (wrapped(lscpu(), 66, stripped=True),),
    (textwrap.indent(lscpu(), "    "),),                                             # pasted as code
    (textwrap.indent(lscpu(), "  * "),),                                             # as a list
    (textwrap.indent(grepped(), "> > "), textwrap.indent(CPUINFO, "> ")),            # in a reply
    ("Model: a board\nSerial: none\n" + lscpu() + "Model: a disk\n",),
    (as_json(nested=False),),
    (as_json(nested=True),),
    (as_json(nested=True), grepped()),
    (lscpu(), grepped(), CPUINFO),
    ("".join(f"==> {SYS}/vulnerabilities/{name} <==\n{text}\n\n" for name, text in LINES.items()), lscpu()),
    (grepped().replace(":", "\x1b[m\x1b[36m:\x1b[m", 1), CPUINFO),                   # grep --color
])  # fmt: skip
def test_the_same_from_every_source(texts: tuple[str, ...]) -> None:
    """Whatever the form, the answer is that on the machine's own files."""
    host, own = read(*texts), read_host(CASE)
    assert answers(host) == answers(own)
    assert host.differences == own.differences
    identity = host.identity
    assert (identity.vendor, identity.family, identity.model_number, identity.stepping) == ("GenuineIntel", 6, 158, 10)
    assert (identity.smt, identity.guest, identity.flags) == (True, False, own.identity.flags)


def test_the_vulnerabilities_alone() -> None:
    """Without a processor nothing rests on flags that no line shows, and it may be a guest; the rest is as ever."""
    host, own = read(grepped()), read_host(CASE)
    assert (host.identity.model, host.identity.guest, host.identity.smt) == (None, None, True)
    expected = answers(own) | {"l1tf": ("partly", ())}
    assert answers(host) == expected
    (l1tf,) = (one for one in host.vulnerabilities if one.name == "l1tf")
    assert l1tf.remains[0] == "whether the processor has flush_l1d is not told (cpuinfo, or lscpu, would)"


def test_a_line_shows_a_flag() -> None:
    """That IBPB is off says that the processor has it; without the word nobody knows."""
    for line, verdict in (("Vulnerable; IBPB: disabled", "covered"), ("Vulnerable", "partly")):
        host = read(f"{SYS}/vulnerabilities/spectre_v2:{line}\n{SYS}/smt/active:0\n")
        assert {one.name: one.verdict.value for one in host.vulnerabilities}["spectre_v2"] == verdict


def test_smt_files_in_a_text() -> None:
    """`grep .` of smt/ says whether siblings are there, and whether there could be some."""
    lines = f"{SYS}/vulnerabilities/mds:Mitigation: Clear CPU buffers; SMT disabled\n"
    for control, unnecessary in (
        ("off", ["VERW at every return", "SMT off (with a stun)"]),
        ("notsupported", ["VERW at every return"]),
    ):
        host = read(lines + f"{SYS}/smt/active:0\n{SYS}/smt/control:{control}\n")
        assert list(host.redundant) == unnecessary
        assert host.identity.smt is False


def test_a_guest_by_what_its_kernel_says() -> None:
    """Without cpuinfo the kernel's own words tell a guest."""
    for line in (
        "mds:Mitigation: Clear CPU buffers; SMT Host state unknown",
        "old_microcode:Unknown: running under hypervisor",
    ):
        assert read(f"{SYS}/vulnerabilities/{line}").identity.guest is True
    assert read(lscpu() + "Hypervisor vendor:   KVM\n").identity.guest is True


def test_checker() -> None:
    """The checker's findings: its own words as the kernel's, the worst of several CVEs, and what nobody reads."""
    host = read(terse(), CPUINFO)
    found = {one.name: one for one in host.vulnerabilities}
    assert {name: one.verdict.value for name, one in found.items() if one.verdict is not HostVerdict.NOT_TOLD} == {
        "CVE-2018-3640": "unknown",
        "CVE-2023-20593": "not needed",
        "gather_data_sampling": "not covered",
        "itlb_multihit": "not covered",
        "l1tf": "partly",
        "mds": "not covered",
        "meltdown": "covered",
        "spec_rstack_overflow": "not needed",
        "spec_store_bypass": "not covered",
        "spectre_v1": "partly",
        "spectre_v2": "partly",
        "srbds": "unknown",
        "tsx_async_abort": "partly",
    }
    assert found["meltdown"].redundant == ("PTI",)
    assert found["meltdown"].now == "Mitigation: PTI (says the checker)"
    assert found["l1tf"].redundant == ("L1D flushes at VM entry",)
    assert found["gather_data_sampling"].unread == ("A new wording",)
    assert found["spectre_v2"].redundant == ("IBRS (with a stun)", "IBPB at a change of processes")


def test_every_word_of_the_checkers_means_a_line() -> None:
    """What its words are put into is a line that is read, of the vulnerability that they are about."""
    for one in _checker().words:
        names = [name for name, mechanism in mechanisms().items() if one.cve in {"", *mechanism.cves}]
        read = [read_line(one.line, mechanisms()[name]) for name in names]
        assert any(line.status is not LineStatus.UNREAD and not line.unread for line in read), one


@pytest.mark.parametrize(("cve", "vulnerable", "words", "verdict"), [
    ("CVE-2017-5754", True, "PTI is needed to mitigate the vulnerability", "covered"),
    ("CVE-2017-5754", False, "Xen Dom0s are safe and do not require PTI", "unknown"),
    ("CVE-2017-5754", False, "offline mode: PTI will mitigate the vulnerability if enabled at runtime", "unknown"),
    ("CVE-2018-12126", True, f"{UP_TO_DATE}, but you must disable SMT for a complete mitigation", "partly"),
    ("CVE-2018-12126", True, NEITHER, "not covered"),
    ("CVE-2023-20569", True, "Your microcode is too old", "partly"),
    ("CVE-2018-12126", False, "This is fine", "unknown"),
    ("CVE-2018-12126", None, "This is not known", "unknown"),
])  # fmt: skip
def test_checkers_words(cve: str, vulnerable: bool | None, words: str, verdict: str) -> None:
    """Its words alone, on a processor with all flags and siblings; what nobody reads is unknown, be it "OK"."""
    finding = json.dumps([{"NAME": "x", "CVE": cve, "VULNERABLE": vulnerable, "INFOS": words}])
    told = [one for one in read(finding, CPUINFO).vulnerabilities if one.verdict is not HostVerdict.NOT_TOLD]
    assert [one.verdict.value for one in told] == [verdict]


def test_checker_with_a_processor() -> None:
    """Its newer form has the processor, what it can do, and the kernel's line."""
    host = read(comprehensive())
    assert (host.identity.model, host.identity.stepping, host.identity.microcode) == ("skylake-6600u", 10, "0xf8")
    found = {one.name: one for one in host.vulnerabilities}
    assert found["meltdown"].now == "Mitigation: PTI"
    assert found["spectre_v2"].verdict is HostVerdict.PARTLY
    assert "the processor has no flush_l1d (cpuinfo)" in found["l1tf"].remains
    assert host.identity.guest is None


def test_the_kernels_line_counts_before_the_checkers() -> None:
    """Together, the checker adds what the kernel does not say."""
    together = answers(read(terse(), grepped(), CPUINFO))
    own = answers(read_host(CASE))
    assert {name: together[name] for name in own} == own
    assert together.keys() - own.keys() == {"CVE-2018-3640", "CVE-2023-20593"}


def test_folder_and_lscpu() -> None:
    """A folder without cpuinfo, and lscpu's output beside it."""
    host = read_host(CASE / "vulnerabilities", HostText("lscpu", lscpu()))
    assert answers(host) == answers(read_host(CASE))


@pytest.mark.parametrize(("texts", "message"), [
    (("hello\n",), "text 0: nothing about a machine in it: give the output of `grep"),
    (("",), "text 0: nothing about a machine in it"),
    ((CPUINFO,), "no vulnerability in what was given: add the output of `grep"),
    (("[1, 2]",), "text 0: neither of `lscpu --json` nor of `spectre-meltdown-checker --batch json`"),
    (('{"lscpu": ',), "text 0: not JSON"),
    ((grepped(), "mds: Not affected\n"), 'text 1: mds: "Not affected", where text 0 has "Mitigation: Clear CPU bu'),
    ((CPUINFO, "model: 85\n" + grepped()), "text 1: model 85, where text 0 has 158: give files of one machine"),
    ((lscpu().replace("x86_64", "aarch64"),), "text 0: of aarch64: asikit models x86-64 alone"),
])  # fmt: skip
def test_refusals(texts: tuple[str, ...], message: str) -> None:
    """One line says what is wrong, and where."""
    with pytest.raises(HostError) as caught:
        read(*texts)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_identity_needs_a_processor() -> None:
    """Who measures a processor must know which."""
    with pytest.raises(HostError, match="has no vendor_id"):
        read_identity(HostText("x", grepped()))


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources as arguments, after --from, and from standard input: the same."""
    monkeypatch.setenv("COLUMNS", "120")
    (tmp_path / "grep.txt").write_text(grepped(), encoding="utf-8")
    (tmp_path / "lscpu.txt").write_text(lscpu(), encoding="utf-8")
    expected = asi(capsys, "host", CASE)
    assert expected[0] == 0
    words = {line for line in expected[1].splitlines() if not line.startswith(" ")}
    for arguments in (
        ("--from", tmp_path / "grep.txt", tmp_path / "lscpu.txt"),
        ("--from", CASE),
        (tmp_path / "lscpu.txt",),
    ):
        code, out, err = asi(capsys, "host", *arguments)
        assert (code, err) == (0, "")
        assert words == {line for line in out.splitlines() if not line.startswith(" ")}
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO((grepped() + CPUINFO).encode())))
    assert asi(capsys, "host", "-") == expected
    code, _, err = asi(capsys, "host", tmp_path / "nothing")
    assert code == 2
    assert err.count("\n") == 1


def test_unread_in_the_output(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Text and JSON name what is not read."""
    file = tmp_path / "grep.txt"
    file.write_text(f"{SYS}/vulnerabilities/vmscape:Mitigation: Incantations\n{CPUINFO}", encoding="utf-8")
    assert 'VMSCAPE: asikit does not read "Incantations" in what the kernel says' in asi(capsys, "host", file)[1]
    document = json.loads(asi(capsys, "host", file, "--json")[1])
    (entry,) = (one for one in document["vulnerabilities"] if one["name"] == "vmscape")
    assert (entry["asi"], entry["unread"], entry["redundant"]) == ("unknown", ["Incantations"], [])
    assert "retbleed" in document["not_told"]
    assert document["cpu"]["model"] == "skylake-6600u"


def test_guest_in_the_output(capsys: pytest.CaptureFixture[str]) -> None:
    """The differences from the model, what is not told, and that siblings are unknown."""
    out = " ".join(asi(capsys, "host", GUEST)[1].split())
    assert "Unlike this machine, the model lacks l1tf, mds, meltdown: prices of these are not this machine's." in out
    assert "sibling threads unknown" in out
    assert "Of these cascade-lake-4210r has: gather_data_sampling, indirect_target_selection" in out
