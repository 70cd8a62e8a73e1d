"""What `asi host` says that ASI does about a vulnerability, against attacks on the machine."""

from __future__ import annotations

from functools import cache

import pytest

from asikit.attacks import AttackVerdict, Cell, Finding, cells, matrix
from asikit.cost._host_lines import Means, mechanisms

DISCLOSE_NOTHING = {"itlb_multihit", "ghostwrite", "old_microcode"}
FILES = {name: mechanism.bugs for name, mechanism in mechanisms().items() if name not in DISCLOSE_NOTHING}
"""Of each name in sysfs the vulnerabilities that come with the package."""
WITHOUT = {
    Means.UNMAP: "asi-no-unmapping",
    Means.PREDICTOR: "asi-no-predictor-flush",
    Means.BUFFERS: "asi-no-buffer-flush",
    Means.L1D: "asi-no-buffer-flush",
}
NO_STUN = "asi-no-stun"
COLUMNS = ("none", "asi", NO_STUN, *dict.fromkeys(WITHOUT.values()))
SIBLINGS = {"cross_thread", "sibling_guest"}
"""From where the stun protects the kernel."""
ELSEWHERE = {"nmi", "flip", "nonsensitive", "sibling_user"}
"""Vectors that are about something else: NMIs, what is sensitive, two processes that no class keeps apart."""


@cache
def leaking(vulnerability: str) -> dict[str, set[str]]:
    """Return by mitigation the vectors in which a vulnerability leaks."""
    wanted = [cell for cell in cells(COLUMNS, vulnerability=vulnerability) if cell.vector not in ELSEWHERE]
    found: dict[str, set[str]] = {name: set() for name in COLUMNS}
    for finding in map(verdict, wanted):
        if finding.verdict is AttackVerdict.LEAK:
            found[finding.cell.mitigation].add(finding.cell.vector)
    return found


def verdict(cell: Cell) -> Finding:
    """Attack."""
    (finding,) = matrix([cell])
    return finding


def test_every_name_is_tried() -> None:
    """But those that disclose nothing."""
    assert set(mechanisms()) == {*FILES, *DISCLOSE_NOTHING}


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_what_asi_does_about_it(name: str) -> None:
    """Covered is what leaks without mitigation and not under ASI; each means that is named is one it takes."""
    mechanism = mechanisms()[name]
    found = [leaking(each) for each in FILES[name]]
    unmitigated = any(each["none"] - SIBLINGS for each in found)
    left = any(each["asi"] - SIBLINGS for each in found)
    stopped = any(each["none"] - each["asi"] - SIBLINGS for each in found)
    assert unmitigated
    assert (Means.NOTHING in mechanism.by) == (not stopped)
    assert mechanism.partly == (left and stopped)
    for means in set(mechanism.by) - {Means.NOTHING}:
        assert any(each[WITHOUT[means]] - each["asi"] - SIBLINGS for each in found), f"{means} makes no difference"
    assert mechanism.cross_thread == any(each[NO_STUN] - each["asi"] for each in found)
