"""What Linux does on each processor, against what its sysfs files say there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from asikit.cost import cpu_parameters, priced_mitigation
from asikit.errors import AsikitError
from asikit.machine.x86 import Bug, cpu_names, load_cpu
from asikit.mitigations import MitigationError, shipped_mitigations

if TYPE_CHECKING:
    from pathlib import Path

# By processor: the words that /sys/devices/system/cpu/vulnerabilities has there (Linux 6.16 to 7.1, mitigations=auto),
# as far as a trace can count the work behind them. Cascade Lake has no VERW: TAA's line is "Mitigation: TSX disabled".
EXPECTED = {
    "broadwell-e5-2640v4": {"PTI", "retpolines", "RSB", "RSB at VM exit", "IBPB", "VERW", "L1D", "VMSCAPE"},
    "skylake-6600u": {"PTI", "IBRS", "RSB", "RSB at VM exit", "IBPB", "VERW", "L1D", "VMSCAPE"},
    "cascade-lake-4210r": {"swapgs", "RSB", "PBRSB", "IBPB", "BHI", "ITS", "VMSCAPE"},
    "ice-lake-10351g1": {"swapgs", "RSB", "PBRSB", "IBPB", "BHI", "ITS"},
    "ice-lake-6354": {"swapgs", "RSB", "PBRSB", "IBPB", "BHI", "ITS"},
    # BHI_DIS_S does not cost what a trace can count.
    "sapphire-rapids-8480": {"swapgs", "RSB", "PBRSB", "IBPB", "VMSCAPE"},
    "emerald-rapids-8592": {"swapgs", "RSB", "PBRSB", "IBPB", "VMSCAPE"},
    "granite-rapids-6972p": {"swapgs", "RSB", "PBRSB", "IBPB", "VMSCAPE"},
    "sierra-forest-6780e": {"swapgs", "RSB", "PBRSB", "IBPB", "VMSCAPE"},
    "alder-lake-12900k": {"swapgs", "RSB", "PBRSB", "IBPB", "VERW", "VMSCAPE"},
    "raptor-lake-13900k": {"swapgs", "RSB", "PBRSB", "IBPB", "VERW", "VMSCAPE"},
    # Without SMT no SRSO, so Retbleed's thunk; with SMT SRSO's replaces it.
    "zen-1200": {"retpolines", "unret", "returns", "RSB", "RSB at VM exit", "IBPB", "division", "VMSCAPE"},
    "zen-plus-2600x": {"retpolines", "untrained", "safe RET", "RSB", "RSB at VM exit", "IBPB", "division", "VMSCAPE"},
    "zen2-7452": {"retpolines", "untrained", "safe RET", "RSB", "RSB at VM exit", "IBPB", "VMSCAPE"},
    "zen3-5600x": {"retpolines", "untrained", "safe RET", "RSB", "RSB at VM exit", "IBPB", "VERW", "VMSCAPE"},
    "zen4-9654": {"untrained", "safe RET", "RSB", "IBPB", "VERW", "VMSCAPE"},
    "zen5-9755": {"RSB", "IBPB", "VMSCAPE"},
}

WORDS = {
    "PTI: user mode": "PTI",
    "LFENCE after SWAPGS": "swapgs",
    "retpolines": "retpolines",
    "IBRS on at entry": "IBRS",
    "untrained return thunk at entry": "unret",
    "every return through the untrained": "returns",
    "safe return thunk untrained": "untrained",
    "every return through the safe": "safe RET",
    "a jump more at each return": "ITS",
    "RSB filled at each switch": "RSB",
    "RSB filled after each VM exit": "RSB at VM exit",
    "CALL and LFENCE": "PBRSB",
    "IBPB when the mm changes": "IBPB",
    "what the predictor has to learn": "IBPB",
    "IBPB at the first return": "VMSCAPE",
    "branch history cleared": "BHI",
    "VERW before each return": "VERW",
    "L1D flush at some VM entries": "L1D",
    "a division": "division",
}


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_linux(name: str) -> None:
    """Each processor gets what Linux gives it, and nothing else."""
    work = [one for one in priced_mitigation("linux").on(load_cpu(name)) if one.costs]
    found = {word for one in work for start, word in WORDS.items() if one.name.startswith(start)}
    assert found == EXPECTED[name]
    assert all(any(one.name.startswith(start) for start in WORDS) for one in work)


def test_each_work_has_a_bug_and_a_source() -> None:
    """Nothing is done on a processor that does not have what it is against, and each entry says who says so."""
    for mitigation in map(priced_mitigation, shipped_mitigations()):
        for work in mitigation.work:
            assert work.source
            assert all(
                work.vulnerability in load_cpu(cpu).bugs or mitigation.name != "linux"
                for cpu in cpu_names()
                if work.acts_on(load_cpu(cpu)) and work.vulnerability is not Bug.MDS
            )
            for product in work.costs:
                assert set(product) <= cpu_parameters(load_cpu("generic")).keys()


HEAD = 'title = "mine"\n[[work]]\nvulnerability = "srso"\nname = "x"\nsource = "a test"\ncounts_as = "rsb_fill"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + 'at = ["user_entry"]\ncosts = [["ipbp"]]', 'no cost "ipbp"'),
        (HEAD + 'at = ["user_entry"]\ncosts = [["ibpb", "verw"]]', "one of ibpb, verw must be a time"),
        (HEAD + 'at = ["user_entry"]\ncosts = [["smt_off"]]', "one of smt_off must be a time"),
        (
            HEAD + 'at = ["entry"]\ncosts = [["ibpb"]]',
            'work.at: "entry" is not one of exception_entry, idle, interrupt_entry, ',
        ),
        (HEAD + 'when = "often"', '[work] has no key "when" (its keys: any_bug, at, '),
        (HEAD, "x: costs and counts_as go together"),
        (
            HEAD + 'at = ["user_entry"]\nfirst_after = ["syscall_entry"]\ncosts = [["ibpb"]]',
            "x: first_after must not name an occasion that is in at",
        ),
        (
            HEAD + 'at = ["kernel_instruction"]\nfirst_after = ["vm_exit"]\ncosts = [["ibpb"]]',
            "x: first_after is about events, and kernel_instruction is none",
        ),
        (
            HEAD.replace('counts_as = "rsb_fill"', "") + 'first_after = ["vm_exit"]\nis = ["pti"]',
            "x: say at what occasions: at",
        ),
        (HEAD + 'at = ["user_return"]\nfirst_after = ["vmexit"]', 'work.first_after: "vmexit" is not one of '),
        (HEAD + 'costs = [["ibpb"]]', "x: say at what occasions: at"),
        (HEAD.replace('counts_as = "rsb_fill"', ""), "x: give is, flushes, hides or costs"),
        (HEAD + 'is = ["ptti"]', 'work.is: "ptti" is not one of '),
        ("[[work", "not a TOML file"),
    ],
)
def test_refusals(text: str, message: str, tmp_path: Path) -> None:
    """A file that makes no sense is refused in a line that names it."""
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(AsikitError) as caught:
        priced_mitigation(str(file))
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    """A file that is not there is one line too."""
    with pytest.raises(MitigationError, match="cannot read the mitigation: No such file"):
        priced_mitigation(str(tmp_path / "none.toml"))
