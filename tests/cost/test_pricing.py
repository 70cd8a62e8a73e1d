"""Costs by hand, by chance, and by brute force."""

from __future__ import annotations

import random
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import pytest

from asikit.cost import BaseTime, CostError, Range, cpu_parameters, price
from asikit.cost.expression import value_of
from asikit.machine.x86 import Bug, cpu_names, load_cpu
from asikit.replay import load_policy
from asikit.trace import Trace
from tests.builders import TraceBuilder
from tests.cost.running import GFP_USER, cpu, exact, ranged, round_trips, rows

if TYPE_CHECKING:
    from asikit.cost import CostRow

SAMPLES = Path(str(files("asikit.data") / "samples"))
ALL = ("none", "linux", "blanket", "asi")


def by_hand(row: CostRow, values: dict[str, float], instructions: int) -> float:
    """Add up a row's terms for one choice of all parameters, by their units: cycles, ns or shares, over the base."""
    base = instructions * values["cpi"]
    total = 0.0
    for term in row.terms:
        amount = term.count
        units = {row.parameters[name].unit.value if name in row.parameters else "ns" for name in term.price}
        for name in term.price:
            amount *= values[name]
        total += amount * (values["frequency"] if "ns" in units else base if "cycles" not in units else 1)
    return total / base


def test_an_exit_by_hand(tmp_path: Path) -> None:
    """One of four calls exits: one fault, one predictor flush, two CR3 writes, and one return stack fill."""
    costs = exact(ibpb=1000, predictor_refill=7, rsb_fill=100, cr3_write=200, page_fault=1045, fault_work=327)
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace")
    (row,) = rows(trace, cpu(costs))
    cycles = 1000 + 7 + 100 + 2 * 200 + 1045 + 327
    assert row.per_exit == Range.exactly(cycles)
    # 14 events of 10 instructions, one cycle each; the recording's first return writes CR3 too.
    assert row.overhead.mid == pytest.approx((cycles + 200) / 140)
    assert {name: figures.mid * 140 for name, figures in row.by_source.items() if figures.mid} == pytest.approx(
        {"predictor_flush": 1000, "predictor_refill": 7, "rsb_fill": 100, "cr3_writes": 600, "page_faults": 1372}
    )
    assert (row.exits, row.round_trips_with_exit) == (1, 1)


def test_data_flushes_are_the_processors(tmp_path: Path) -> None:
    """A processor with MDS clears buffers, one with L1TF flushes the L1D, one with neither does neither."""
    costs = exact(verw=10, l1d_flush=100)
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace")
    found = [rows(trace, cpu(costs, bugs=bugs))[0].overhead.mid * 140 for bugs in ((), (Bug.MDS,), (Bug.L1TF, Bug.MDS))]
    # Twice: at the recording's first return, and after the exit.
    assert found == pytest.approx([0, 20, 220])


def test_blanket_by_hand(tmp_path: Path) -> None:
    """Each crossing pays: four entries flush predictors and write CR3, five returns clear buffers and write it."""
    costs = exact(ibpb=1000, verw=10, cr3_write=200)
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace")
    (row,) = rows(trace, cpu(costs, bugs=(Bug.MDS,)), mitigations=("blanket",))
    # The recording's first return has no entry, so the protocol is asked for nothing at it but its CR3 write and VERW.
    assert row.overhead.mid * 140 == pytest.approx(4 * 1000 + 4 * 200 + 5 * 200 + 5 * 10)


def test_linux_by_hand(tmp_path: Path) -> None:
    """PTI at each of four entries and five returns; VERW at each return; retpolines by the kernel's instructions."""
    costs = exact(cr3_write=200, verw=10, kernel_indirect_branches=0.01, retpoline=30)
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace")
    (row,) = rows(trace, cpu(costs, bugs=(Bug.MELTDOWN, Bug.MDS, Bug.SPECTRE_V2)), mitigations=("linux",))
    kernel = 10 + 30 + 3 * 20  # the piece before the first return, a call with an exit, three without
    assert row.overhead.mid * 140 == pytest.approx(9 * 200 + 5 * 10 + kernel * 0.01 * 30)


def test_none_is_free(tmp_path: Path) -> None:
    """No mitigation adds nothing, exactly."""
    (row,) = rows(round_trips(3, exiting=1).write(tmp_path / "t.asitrace"), cpu(exact()), mitigations=("none",))
    assert row.overhead == Range.exactly(0)
    assert row.by_source == {}


def test_refill_of_translations_by_hand(tmp_path: Path) -> None:
    """Each return into the restricted space loses what the next call uses; NOFLUSH loses nothing."""
    trace = round_trips(4, exiting=4).write(tmp_path / "t.asitrace")
    costs = exact(tlb_walk=20, user_translations=3, used_again=0.5)
    (row,) = rows(trace, cpu(costs))
    instructions = 10 + 4 * 40 - 10 + 10
    # Five loads of the restricted space and four of the unrestricted one, each missing the one large page once; the
    # guess adds half of what was touched before an exit: one large page each.
    per_switch = (4 + 4 + 4 / 2) / 5
    assert row.by_source["tlb_refill"].mid * instructions == pytest.approx(5 * per_switch * 20 + 5 * 3 * 20)
    assert row.per_exit is not None
    assert row.per_exit.mid == pytest.approx(per_switch * 20 + 3 * 20)
    (kept,) = rows(trace, cpu(costs), policy="allowlist-2022")
    assert "tlb_refill" not in kept.by_source


def test_what_is_used_again_after_an_exit(tmp_path: Path) -> None:
    """Two small pages in one large page are read before each exit: at the least neither is used again, at most both."""
    trace = round_trips(4, exiting=4, pages=2).write(tmp_path / "t.asitrace")
    (row,) = rows(trace, cpu(exact() | ranged(used_again=(0, 0.25, 1))))
    found = row.parameters["translations_per_switch"]
    # Five loads of the restricted space, four with a call after them; four of the unrestricted one.
    assert found.range == Range((4 + 4) / 5, (4 + 4 + 0.25 * 4) / 5, (4 * 2 + 4 + 4 * 2) / 5)


def test_lines_by_hand(tmp_path: Path) -> None:
    """An L1D flush takes at most what the L1D holds, at best nothing."""
    trace = round_trips(4, exiting=4, pages=20).write(tmp_path / "t.asitrace")
    (row,) = rows(trace, cpu(exact(l1d_line_refill=2, lines_per_page=6, user_lines=10), bugs=(Bug.L1TF,)))
    lines = row.parameters["lines_per_flush"].range
    assert (lines.low, lines.mid, lines.high) == (0, 21 * 6 + 10, 21 * 6 + 10)
    (full,) = rows(trace, cpu(exact(l1d_line_refill=2, lines_per_page=64), bugs=(Bug.L1TF,)))
    assert full.parameters["lines_per_flush"].range.high == 512
    assert full.by_source["l1d_refill"].high == pytest.approx(5 * 512 * 2 / (10 + 4 * 230))


def test_code_by_hand(tmp_path: Path) -> None:
    """The code of asi_exit runs at an exit, that of asi_enter at each return that loads a restricted space."""
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace")
    (row,) = rows(trace, cpu(exact(transition_work=60)))
    assert row.per_exit == Range.exactly(120)
    assert row.by_source["transitions"].mid * 140 == pytest.approx(60 + 2 * 60)


def test_no_ibpb_is_said(tmp_path: Path) -> None:
    """A processor that has no IBPB, or whose hypervisor hides it, flushes no predictors, and the row says so."""
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace")
    (row,) = rows(trace, cpu(exact(ibpb=1000, cr3_write=1), features=()))
    assert "predictor_flush" not in row.by_source
    assert "mine has no IBPB, or a hypervisor hides it: no predictor flush is priced." in row.notes


def test_stun_by_hand(tmp_path: Path) -> None:
    """An exit waits for the sibling, which then stands still until the round trip's end."""
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace")
    (row,) = rows(trace, cpu(exact(ipi=100, sibling_busy=0.5, frequency=3)), smt=True)
    # 100 ns at 3 GHz, for this thread and half of it for the sibling's; 10 of 140 instructions unrestricted.
    assert row.by_source["stun"].mid == pytest.approx((300 + 150) / 140 + 0.5 * 10 / 140)
    (blanket,) = rows(trace, cpu(exact(smt_off=0.25)), mitigations=("blanket",), smt=True)
    assert blanket.overhead.mid == pytest.approx(0.25)


def test_seconds_instead_of_instructions(tmp_path: Path) -> None:
    """With a measured time the clock turns cycles into time; instructions do not matter."""
    trace = round_trips(4, exiting=1).write(tmp_path / "t.asitrace")
    costs = exact(ibpb=1000) | ranged(frequency=(1, 2, 4))
    (row,) = rows(trace, cpu(costs), base_time=BaseTime(seconds=1e-6))
    assert row.overhead == Range(0.25, 0.5, 1.0)
    (stun,) = rows(trace, cpu(exact(ipi=100) | ranged(frequency=(1, 2, 4))), base_time=BaseTime(seconds=1e-6), smt=True)
    assert stun.overhead == Range.exactly(0.1)


def test_ephmap_by_hand(tmp_path: Path) -> None:
    """A read of the page cache through an ephemeral mapping costs its parts, and no exit."""
    b = TraceBuilder()
    b.return_user()
    for _ in range(3):
        stack = ("_copy_to_iter", "copy_page_to_iter")
        b.entry_syscall(0).touch_read(kind="shmem", gfp=0x100CC0, stack=stack).return_user()
    (row,) = rows(b.write(tmp_path / "t.asitrace"), cpu(exact(tlb_single_flush=350, ephmap_work=100)), policy="ephmap")
    assert row.exits == 0
    assert row.overhead.mid == pytest.approx(3 * 450 / 100)
    assert row.per_ephmap_ns == Range.exactly(450)


@pytest.mark.parametrize("name", ["generic", "skylake-6600u", "zen2-7452"])
def test_no_choice_of_parameters_lies_outside(name: str) -> None:
    """Hundreds of random choices of every parameter at once, added up by hand, are inside; corners reach the ends."""
    model = load_cpu(name)
    result = price(
        Trace.open(SAMPLES / "kvm-guest.asitrace"),
        [model],
        policies=[load_policy("denylist-2025")],
        mitigations=ALL,
        smt=True,
    )
    dice = random.Random(7)
    for row in result.rows:
        ranges = {key: one.range for key, one in (dict(cpu_parameters(model)) | dict(row.parameters)).items()}
        slack = 1e-9 * row.overhead.high
        reached = []
        for trial in range(300):
            corner = trial % 3 == 0
            values = {
                key: dice.choice((one.low, one.high)) if corner else dice.uniform(one.low, one.high)
                for key, one in ranges.items()
            }
            share = by_hand(row, values, result.instructions)
            assert row.overhead.low - slack <= share <= row.overhead.high + slack
            reached.append(share)
        worst = {key: one.low if key == "cpi" else one.high for key, one in ranges.items()}
        best = {key: one.high if key == "cpi" else one.low for key, one in ranges.items()}
        assert by_hand(row, worst, result.instructions) == pytest.approx(row.overhead.high)
        assert by_hand(row, best, result.instructions) == pytest.approx(row.overhead.low)
        assert by_hand(row, {key: one.mid for key, one in ranges.items()}, result.instructions) == pytest.approx(
            row.overhead.mid
        )


@pytest.mark.parametrize("costs", [exact(), exact() | ranged(ibpb=(300, 1000, 4000), verw=(10, 500, 700))])
def test_break_even_by_brute_force(costs: dict[str, dict[str, object]], tmp_path: Path) -> None:
    """Traces in which ever more calls exit: ASI beats the blanket mitigation up to the fraction that was said."""
    fixed = exact(ibpb=1000, rsb_fill=100, cr3_write=200, page_fault=1045, fault_work=327, verw=500, tlb_walk=0)
    model = cpu(fixed | {name: cost for name, cost in costs.items() if "low" in cost}, bugs=(Bug.MDS,))
    trips = 16
    said = rows(round_trips(trips, exiting=4).write(tmp_path / "said.asitrace"), model)[0].break_even
    assert said is not None
    assert said.observed == pytest.approx(4 / trips, abs=0.02)
    wins = []
    for exiting in range(trips + 1):
        trace = round_trips(trips, exiting=exiting).write(tmp_path / f"{exiting}.asitrace")
        asi, blanket = rows(trace, model, mitigations=("asi", "blanket"))
        wins.append(asi.per_round_trip.mid < blanket.per_round_trip.mid)
    crossing = wins.index(False)
    assert wins == [True] * crossing + [False] * (trips + 1 - crossing)
    # One round trip more is the recording's first return, which has no entry.
    assert (crossing - 1) / trips - 0.07 <= said.fraction.mid <= crossing / trips + 0.07


def guest(trips: int, *, exiting: int) -> TraceBuilder:
    """Give a trace of a guest whose VMM runs between its exits, so that each return changes the domain."""
    b = TraceBuilder()
    b.return_user()
    for trip in range(trips):
        b.entry_syscall(16).touch_read(label="vmm").vm_entry().vm_exit().touch_read(label="host")
        if trip < exiting:
            b.touch_read(kind="shmem", gfp=GFP_USER, label="sensitive")
        b.return_user()
    return b


def test_break_even_with_flushes_that_are_no_exits(tmp_path: Path) -> None:
    """What direct switches between domains cost without any exit leaves less for exits until ASI loses."""
    model = cpu(exact(ibpb=1000, cr3_write=200, page_fault=1045, verw=50), bugs=(Bug.MDS,))
    asi, blanket = rows(guest(10, exiting=0).write(tmp_path / "0"), model, mitigations=("asi", "blanket"))
    assert asi.exits == 0
    assert asi.overhead.mid > 0
    assert asi.per_exit is not None
    assert asi.break_even is not None
    left = (blanket.per_round_trip.mid - asi.per_round_trip.mid) / asi.per_exit.mid
    assert asi.break_even.fraction.mid == pytest.approx(left)
    (some,) = rows(guest(10, exiting=4).write(tmp_path / "4"), model)
    assert some.break_even is not None
    # An exit replaces the flush and the CR3 write of the direct switch that would follow: fewer of them are left over.
    assert left <= some.break_even.fraction.mid <= left + 4 * 2 * 1250 / (some.round_trips * asi.per_exit.mid)


def test_break_even_ends_by_brute_force(tmp_path: Path) -> None:
    """Its ends are the extremes over many choices of the parameters, each priced for itself."""
    wide = ranged(ibpb=(300, 1000, 4000), verw=(10, 500, 700), cr3_write=(150, 200, 400), page_fault=(800, 1000, 1500))
    trace = round_trips(20, exiting=5).write(tmp_path / "t.asitrace")
    said = rows(trace, cpu(exact(rsb_fill=100) | wide, bugs=(Bug.MDS,)))[0].break_even
    assert said is not None
    found = []
    for number in range(16):
        ends = {
            name: (cost["low"], cost["high"])[number >> place & 1] for place, (name, cost) in enumerate(wide.items())
        }
        even = rows(trace, cpu(exact(rsb_fill=100, **ends), bugs=(Bug.MDS,)))[0].break_even
        assert even is not None
        found.append(even.fraction.mid)
    assert said.fraction.low == pytest.approx(min(found))
    assert said.fraction.high == pytest.approx(max(found))


def test_sensitivity(tmp_path: Path) -> None:
    """The parameter whose range moves the answer most stands first, with the answers at its ends; exact ones do not."""
    costs = exact(page_fault=1000) | ranged(ibpb=(100, 200, 300), cr3_write=(10, 20, 500))
    (row,) = rows(round_trips(4, exiting=1).write(tmp_path / "t.asitrace"), cpu(costs))
    assert [item.parameter for item in row.sensitivity] == ["cr3_write", "ibpb"]
    first = row.sensitivity[0]
    assert (first.low * 140, first.high * 140) == pytest.approx((1200 + 3 * 10, 1200 + 3 * 500))


def test_terms_and_shares_say_the_same() -> None:
    """The sum of products in the JSON form has the overhead's value on every processor."""
    models = [load_cpu(name) for name in cpu_names()]
    result = price(
        Trace.open(SAMPLES / "kvm-guest.asitrace"), models, policies=[load_policy("ephmap")], mitigations=ALL
    )
    assert len(result.rows) == 4 * len(models)
    for row in result.rows:
        middle = {name: one.range.mid for name, one in row.parameters.items()}
        assert value_of(row.shares, middle) == pytest.approx(row.overhead.mid)
        assert sum(figures.mid for figures in row.by_source.values()) == pytest.approx(row.overhead.mid)
        assert row.overhead.low <= row.overhead.mid <= row.overhead.high


def test_refusals(tmp_path: Path) -> None:
    """What makes no sense is refused in one line."""
    trace = round_trips(2, exiting=1).write(tmp_path / "t.asitrace")
    model = cpu(exact())
    for words, message in (
        ({"policy": "blanket"}, "policy blanket is not ASI's; ask for --mitigation blanket or none instead"),
        (
            {"mitigations": ("asi", "linus")},
            'no mitigation "linus"; the nearest is "linux" (there are none, asi, ',
        ),
    ):
        with pytest.raises(CostError) as caught:
            rows(trace, model, **words)
        assert str(caught.value).startswith(message)
    with pytest.raises(CostError, match="mine has no sibling threads: leave --smt out"):
        rows(trace, msgspec.structs.replace(model, threads=1), smt=True)
