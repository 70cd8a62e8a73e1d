"""Every line that Linux can print about a vulnerability is read, and what none can print never counts as covered."""

from __future__ import annotations

import re
import tomllib
from functools import cache
from itertools import combinations, product
from pathlib import Path

import pytest

from asikit.cost import HostText, HostVerdict, read_host
from asikit.cost._host_lines import Exposure, LineStatus, Means, mechanisms, read_line

STRINGS = tomllib.loads((Path(__file__).parent / "hosts/strings.toml").read_text(encoding="utf-8"))
NAMES = sorted({entry["name"] for entry in STRINGS["lines"]})
BEGINS = {"Mitigation": LineStatus.MITIGATED, "Vulnerable": LineStatus.VULNERABLE, "Unknown": LineStatus.UNKNOWN}
"""With what a line begins, but for "Not affected", "KVM: ..." and "Processor vulnerable"."""
CPUINFO = "vendor_id: GenuineIntel\nsiblings: 4\ncpu cores: 4\nflags: ibpb md_clear flush_l1d\n"
NO_VERDICT = {HostVerdict.UNKNOWN, HostVerdict.NOT_COVERED}


@cache
def printed(name: str) -> tuple[str, ...]:
    """Return the lines that a kernel can print about a vulnerability: every head with every tail of every list.

    A piece is read for itself, so of the lists of tails only two at a time go through all that they have.
    """
    found = list(STRINGS["common"])
    for entry in STRINGS["lines"]:
        if entry["name"] != name:
            continue
        tails = entry.get("tails", [])
        found += [head + "".join(tail[-1] for tail in tails) for head in entry["heads"]]
        for one, other in combinations(range(len(tails)), 2):
            choices = [tail if place in {one, other} else tail[:1] for place, tail in enumerate(tails)]
            found += ["".join(parts) for parts in product(entry["heads"], *choices)]
        if len(tails) == 1:
            found += ["".join(parts) for parts in product(entry["heads"], tails[0])]
    return tuple(dict.fromkeys(found))


def lscpu(line: str) -> str:
    """Return a line as lscpu prints it."""
    begin = "Mitigation: "
    return f"Mitigation; {line.removeprefix(begin).replace(':', '')}" if line.startswith(begin) else line


def test_every_file_is_listed() -> None:
    """The strings are of all vulnerabilities that asikit knows."""
    assert set(mechanisms()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_string_is_read(name: str) -> None:
    """Nothing of a line is left over, as the kernel writes it, as lscpu does, and whatever its capitals."""
    mechanism = mechanisms()[name]
    for line in printed(name):
        read = read_line(line, mechanism)
        assert read.unread == (), line
        assert read.status is not LineStatus.UNREAD, line
        for other in (lscpu(line), line.lower(), line.upper(), f"  {line}\n"):
            assert read_line(other, mechanism) == read, other


@pytest.mark.parametrize("name", NAMES)
def test_the_status_is_the_kernels(name: str) -> None:
    """What the line begins with is what the kernel means."""
    for line in printed(name):
        head = re.match(r"(?:KVM: )?(Mitigation|Vulnerable|Unknown)", line)
        expected = BEGINS[head.group(1)] if head else LineStatus.NOT_AFFECTED
        assert read_line(line, mechanisms()[name]).status is (
            LineStatus.VULNERABLE if line == "Processor vulnerable" else expected
        )


@pytest.mark.parametrize("name", NAMES)
def test_what_the_kernel_calls_vulnerable_is(name: str) -> None:
    """In whole if the line begins with it, in part if a piece of it says so."""
    for line in printed(name):
        today = read_line(line, mechanisms()[name]).exposure
        if line.startswith("Unknown"):
            assert today is Exposure.UNKNOWN
        elif re.match(r"(KVM: |Processor )?Vulnerable", line, re.IGNORECASE):
            assert today is Exposure.VULNERABLE, line
        else:
            assert today is (Exposure.PARTLY if "vulnerable" in line.lower() else Exposure.NO), line


@pytest.mark.parametrize("name", NAMES)
def test_no_microcode_is_not_covered(name: str) -> None:
    """Whatever its capitals: what rests on the microcode is not covered, what has no secret to load is in part."""
    mechanism = mechanisms()[name]
    for line in printed(name):
        if "no microcode" not in line.lower():
            continue
        verdict = verdicts(f"{name}:{line}\n")[name]
        partly = Means.UNMAP in mechanism.by
        assert verdict is (HostVerdict.PARTLY if partly else HostVerdict.NOT_COVERED), line


@pytest.mark.parametrize("name", NAMES)
def test_unknown_is_unknown(name: str) -> None:
    """What the kernel does not know nobody else does."""
    for line in printed(name):
        if line.startswith("Unknown"):
            assert verdicts(f"{name}:{line}\n")[name] is HostVerdict.UNKNOWN, line


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "words", ["Mitigation: Incantations", "Mitigation: PTI; Incantations", "Mitigated by faith", "?"]
)
def test_unread_is_never_covered(name: str, words: str) -> None:
    """A line with a piece that no kernel had is named, and makes nothing unnecessary."""
    (found,) = (one for one in read_host(HostText("x", f"{CPUINFO}{name}:{words}")).vulnerabilities if one.name == name)
    assert found.verdict in NO_VERDICT
    assert found.redundant == ()
    assert found.unread
    assert any(f'asikit does not read "{part}"' in found.remains[0] for part in found.unread)


@pytest.mark.parametrize("name", NAMES)
def test_every_piece_is_some_kernels(name: str) -> None:
    """Each regular expression of the data is one of a line that is listed: no wording is made up."""
    texts = [read_line(line, mechanisms()[name]).pieces for line in printed(name)]
    used = {piece for pieces in texts for piece in pieces}
    assert set(mechanisms()[name].pieces) <= used


def verdicts(lines: str) -> dict[str, HostVerdict]:
    """Return the verdicts on what a machine with all flags and without siblings says."""
    return {one.name: one.verdict for one in read_host(HostText("x", CPUINFO + lines)).vulnerabilities}
