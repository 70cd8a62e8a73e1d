"""Predictions beside what a real kernel with ASI did: some workloads, and the arithmetic of the comparison."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.record.kernels import debian_kernel
from tests.record.validation.compared import compared, is_close, works_of
from tests.record.validation.real import REASONS, Real, read_real
from tests.record.validation.recorded import Piece, Work, policies, record_works, replay_pieces
from tests.record.validation.table import differences, markdown, of_node

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.record.validation.compared import Compared

SOME = ("pipe4k", "vfork", "mprotect", "madvise", "truncate", "proccmdline", "open")
"""Workloads that copy, switch tasks, flush the TLB, allocate, read another mm and look paths up.

Not fork: how many pages of its own data a C library has copied after it differs from one to the next.
"""


def _silent(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Compared]:
    """Record some workloads, and compare them under the policy of each variant."""
    real, works = read_real(), works_of(SOME, read_real())
    kernel = debian_kernel("6.1")  # of the series that the real one was made of
    trace = record_works(works, tmp_path_factory.mktemp("validation"), kernel, say=_silent)
    return {
        (variant, one.workload): one
        for variant, policy in policies().items()
        for one in compared(variant, replay_pieces(trace, works, policy, node_mapped=variant == "u"), real)
    }


@pytest.mark.needs_qemu
@pytest.mark.needs_busybox
@pytest.mark.needs_cc
@pytest.mark.needs_apt
@pytest.mark.slow
@pytest.mark.parametrize("workload", SOME)
@pytest.mark.parametrize("variant", ["m", "u"])
def test_as_a_real_kernel(variant: str, workload: str, predicted: dict[tuple[str, str], Compared]) -> None:
    """An operation exits as often as on the real kernel: within 2 %, or a hundredth of an exit."""
    one = predicted[variant, workload]
    assert one.real is not None
    assert is_close(one.predicted, one.real), "\n".join(differences({variant: [one]}))


def test_real_figures() -> None:
    """The reasons of each run add up to its exits, and each measured workload is one that can be recorded."""
    real = read_real()
    source = Path(__file__).with_name("validation") / "workloads.c"
    names = set(re.findall(r'^    \{"(\w+)", ', source.read_text(encoding="utf-8"), re.MULTILINE))
    assert len(real) == 30
    assert real.keys() <= names
    for one in real.values():
        for run in (0, 1):
            assert sum(one.by_reason[reason][run] for reason in REASONS) == one.exits["m"][run], one


def piece(work: Work, exits: int, switches: int = 0) -> Piece:
    """Give a piece of which so many exits are page faults, and some more context switches."""
    faults = Counter({"page_fault: a <- b": exits})
    return Piece(work, exits + switches, {"page_fault": exits, "context_switch": switches}, faults)


def measured(exits: int, reasons: Sequence[int], size: int = 100) -> Real:
    """Give what two runs did alike."""
    by_reason = {reason: (count, count) for reason, count in zip(REASONS, reasons, strict=True)}
    return Real("w", "work", size, {"m": (exits, exits), "u": (exits, exits)}, by_reason)


def test_for_each_operation() -> None:
    """Set-up and start cancel out: here 40 exits of set-up, and 14 here against 10 there for a program's start."""
    real = {"w": measured(260, (240, 20, 0, 0)), "nothing": measured(10, (10, 0, 0, 0), 0)}
    pieces = [piece(Work("nothing", 0), 14), piece(Work("w", 100), 254, 21), piece(Work("w", 300), 654, 61)]
    (one,) = compared("m", pieces, real)
    assert one.predicted == pytest.approx(2.2)
    # Of 260 real exits 10 are the start's and 41 the set-up's (a context switch among them): 209 for 100 operations.
    assert one.real == pytest.approx(2.09)
    assert one.by_reason["page_fault"] == pytest.approx((2.0, 1.9))
    assert one.by_reason["context_switch"] == pytest.approx((0.2, 0.19))
    ((cause, exits),) = one.causes
    assert (cause, round(exits, 6)) == ("page_fault: a <- b", 2.0)
    assert not one.is_close


def test_bounds() -> None:
    """A hundredth of an exit, or two in a hundred of them: the larger."""
    assert is_close(0.0, 0.0099)
    assert not is_close(0.0, 0.0101)
    assert is_close(41.8, 41.0)
    assert not is_close(41.83, 41.0)


def test_tables() -> None:
    """Figures beyond the bounds are bold, and their causes are given; what nobody measured has no verdict."""
    real = {"w": measured(260, (240, 20, 0, 0)), "nothing": measured(10, (10, 0, 0, 0), 0)}
    pieces = [piece(Work("nothing", 0), 14), piece(Work("w", 100), 254, 21), piece(Work("w", 300), 654, 61)]
    other = [piece(Work("x", 200), 200), piece(Work("x", 600), 600)]
    results = {variant: compared(variant, [*pieces, *other], real) for variant in ("m", "u")}
    text = markdown(results, "6.1")
    assert "Recorded: Linux 6.1. Within the bounds: 0 of 1 under M, 0 of 1 under U." in text
    assert "| w | 100 | **2.200** | 2.090 | **2.200** | 2.090 |" in text
    assert "| x | 200 | 1.000 | ? | 1.000 | ? |" in text
    assert list(differences(results))[:2] == ["w, M: 2.200 predicted, 2.090 real", "     2.000  page_fault: a <- b"]
    none = compared("u", [piece(work.work, 0) for work in (*pieces, *other)], real)
    assert "| x | 1.000 | 0.000 | `page_fault: a <- b` 1.000 |" in of_node(results["u"], none)
