"""What a walk over a trace counts: against a slow one with sets, against the protocol, and by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from asikit.cost import Range
from asikit.cost.measure import measure
from asikit.cost.pageblocks import PageblockConversions, PageblockCounter
from asikit.mitigations import Occasion, When
from asikit.protocol import EffectKind
from asikit.replay import ALL_CLASSES, ReferenceReplay, ReplayError, load_policy
from asikit.replay._tables import SideTables
from asikit.replay.sensitivity import apply_policy
from asikit.trace import ENTRY_KINDS, RETURN_KINDS, TOUCH_KINDS, EventKind, Trace
from tests.builders import TraceBuilder
from tests.cost.running import GFP_USER, round_trips

if TYPE_CHECKING:
    from asikit.cost.measure import Measured

SAMPLES = Path(str(files("asikit.data") / "samples"))
LARGE = {"direct_map", "kernel_image", "vmemmap"}


@dataclass
class SlowCpu:
    """A CPU of :class:`SlowWalk`."""

    space: str = "unrestricted"
    entered: int | None = 0
    left: int | None = None
    used: dict[str, set[object]] = field(default_factory=dict)
    trip: set[object] = field(default_factory=set)
    since_flush: set[object] | None = None


class SlowWalk:
    """The walk, written down with sets. Which events exit is the reference replay's word."""

    def __init__(self, trace: Trace) -> None:
        places = trace.table("places")
        self.small = [vaddr >> 12 for vaddr in places["vaddr"]]
        self.large = [
            (vaddr >> 21, "large") if region in LARGE else (vaddr >> 12, "small")
            for vaddr, region in zip(places["vaddr"], places["region"], strict=True)
        ]
        self.cpus: dict[int, SlowCpu] = {}
        self.kernel = self.unrestricted = self.out = self.into = 0
        self.missed_small = self.missed_large = self.before_small = self.before_large = 0
        self.flushes: dict[int, int] = {}

    def event(self, cpu: int, clock: int, kind: EventKind, arg: int, *, exits: bool) -> None:
        """Walk over one event."""
        c = self.cpus.setdefault(cpu, SlowCpu())
        if exits:
            self.out += 1
            large = sum(isinstance(thing, tuple) for thing in c.trip)
            self.before_large += large
            self.before_small += len(c.trip) - large
            c.space, c.left = "unrestricted", clock
            c.used["unrestricted"] = set()
        if kind in TOUCH_KINDS:
            self._touch(c, kind, arg)
        elif kind in ENTRY_KINDS:
            c.entered, c.trip = clock, set()
        elif kind in RETURN_KINDS:
            self._return(c, clock, kind)

    def _touch(self, c: SlowCpu, kind: EventKind, place: int) -> None:
        known = c.used.get(c.space)
        if known is not None:  # never loaded: taken for warm
            self.missed_small += self.small[place] not in known
            self.missed_large += self.large[place] not in known
            known |= {self.small[place], self.large[place]}
        c.trip |= {self.small[place], self.large[place]}
        if c.since_flush is not None and kind is not EventKind.TOUCH_FETCH:
            c.since_flush.add(self.small[place])

    def _return(self, c: SlowCpu, clock: int, kind: EventKind) -> None:
        if c.entered is not None:
            self.kernel += clock - c.entered
        if c.left is not None:
            self.unrestricted += clock - c.left
        c.entered = c.left = None
        target = "userspace" if kind is EventKind.RETURN_USER else "kvm"
        if c.space != target:
            self.into += 1
            if c.since_flush is not None:
                self.flushes[len(c.since_flush)] = self.flushes.get(len(c.since_flush), 0) + 1
            c.space, c.since_flush = target, set()
            c.used[target] = set()


def slowly(trace: Trace, measured: Measured) -> SlowWalk:
    """Walk a trace slowly. An event exits if the reference replay counts one more after it."""
    tables = SideTables.of(trace)
    reference = ReferenceReplay(
        measured.policy, ALL_CLASSES, apply_policy(measured.policy, tables), tables.tasks.height
    )
    walk = SlowWalk(trace)
    exits = 0
    for chunk in trace.events():
        for cpu, clock, kind, arg, stack in chunk.iter_rows():
            reference.feed([(cpu, kind, arg, stack)])
            now = reference.exits
            walk.event(cpu, clock, EventKind(kind), arg, exits=now > exits)
            exits = now
    return walk


def check_against_slow(trace: Trace, policy: str) -> None:
    """Compare the two walks."""
    measured = measure(trace, [load_policy(policy)])[1][0]
    slow, fast = slowly(trace, measured), measured.walked
    assert fast.kernel_instructions == slow.kernel
    assert fast.unrestricted_instructions == slow.unrestricted
    assert (fast.switches_out, fast.switches_in) == (slow.out, slow.into)
    assert fast.misses == (slow.missed_large, slow.missed_small)
    assert fast.before_exit == (slow.before_large, slow.before_small)
    assert fast.flushes == dict(sorted(slow.flushes.items()))


def test_walk_of_a_sample_is_the_slow_one() -> None:
    """On a recording with guests, two classes of domains and direct switches between them."""
    check_against_slow(Trace.open(SAMPLES / "kvm-guest.asitrace"), "denylist-2025")


def test_walk_of_a_built_trace_is_the_slow_one(tmp_path: Path) -> None:
    """On two CPUs, with pages that are shared by a large translation, written, read and fetched."""
    b = TraceBuilder()
    for trip in range(30):
        cpu = trip % 2
        b.entry_syscall(0, cpu=cpu)
        for page in range(trip % 5):
            b.touch_read(label=f"{page}", cpu=cpu).touch_write(label=f"{page}", cpu=cpu)
            b.touch_fetch(region="modules", label=f"text {page * trip % 3}", cpu=cpu)
        if trip % 3 == 0:
            b.touch_write(kind="anon", gfp=GFP_USER, label=f"user {trip % 4}", cpu=cpu)
            b.touch_read(label="after", cpu=cpu)
        if trip % 7 == 0:
            b.vm_entry(cpu=cpu).vm_exit(cpu=cpu).touch_read(label="host", cpu=cpu)
        b.return_user(cpu=cpu)
    check_against_slow(b.write(tmp_path / "t.asitrace"), "denylist-2025")


@pytest.mark.parametrize("sample", ["page-cache", "processes", "kvm-guest"])
@pytest.mark.parametrize("policy", ["denylist-2025", "ephmap", "allowlist-2022"])
def test_switches_are_the_protocols(sample: str, policy: str) -> None:
    """The walk changes address spaces where the protocol writes CR3, but for a return that the recording lacks."""
    measured = measure(Trace.open(SAMPLES / f"{sample}.asitrace"), [load_policy(policy)])[1][0]
    written = sum(times for effect, times in measured.effects.items() if effect.kind is EffectKind.WRITE_CR3)
    assert measured.result.exits == measured.walked.switches_out
    assert 0 <= measured.walked.switches_in + measured.walked.switches_out - written <= 1


def test_counts_by_hand(tmp_path: Path) -> None:
    """Three calls of 30 instructions, each reading a page; two then touch user data, 10 instructions before the end."""
    trace = round_trips(3, exiting=2).write(tmp_path / "t.asitrace")
    base, (measured,) = measure(trace, [load_policy("denylist-2025")])
    walked = measured.walked
    assert base.instructions == 120
    assert base.happenings[Occasion.SYSCALL_ENTRY] == base.happenings[Occasion.USER_ENTRY] == 3
    assert base.happenings[Occasion.USER_RETURN] == 4
    # The first return belongs to an entry before the recording; then 2 calls of 30 instructions and one of 20.
    assert walked.kernel_instructions == 10 + 30 + 30 + 20
    assert walked.unrestricted_instructions == 20
    assert (walked.switches_out, walked.switches_to_userspace, walked.switches_to_kvm) == (2, 3, 0)
    # Both pages lie in one large page: each load of an address space misses it once. With small pages the same.
    assert walked.misses == (2 + 3, 2 + 3)
    # The page read before each exit may be read again after it.
    assert walked.before_exit == (2, 2)
    assert walked.flushes == {2: 2}
    assert base.walked.flushes == {1: 1, 2: 2}


def test_context_switches_to_another_mm(tmp_path: Path) -> None:
    """Of the switches of mm on each CPU: neither exec's, nor the kernel's patching, nor the end of a process."""
    b = TraceBuilder()
    for cpu in (0, 1):
        b.return_user(cpu=cpu)
    b.entry_syscall(59).mm_switch(3).task_switch("1", cpu=1)
    b.task_switch("2").mm_switch(2).mm_switch(9).mm_switch(2).task_switch("0").mm_switch(0)
    b.mm_switch(4, cpu=1).task_switch("3").task_switch("2").mm_switch(3).return_user()
    base, _ = measure(b.write(tmp_path / "t.asitrace"), [])
    assert base.happenings[Occasion.MM_SWITCH] == 7
    assert base.happenings[Occasion.TASK_SWITCH] == 5
    assert base.happenings[Occasion.PROCESS_SWITCH] == 3


@pytest.mark.parametrize("rows_per_part", [1, 3, 1000])
def test_first_after(rows_per_part: int, tmp_path: Path) -> None:
    """A mark is a CPU's: set by any of the events that are named, tested and cleared by the first occasion after it."""
    b = TraceBuilder()
    b.return_user().return_user(cpu=1)
    b.entry_syscall(16).vm_entry().vm_exit().vm_entry().vm_exit().return_user()  # one mark of two exits
    b.entry_syscall(0).return_user()  # nothing since
    b.entry_syscall(16, cpu=1).vm_entry(cpu=1).vm_exit(cpu=1)
    b.entry_syscall(0).return_user()  # the other CPU's exit is not this one's
    b.return_user(cpu=1).entry_nmi(cpu=1).return_user(cpu=1)
    b.entry_syscall(24).task_switch("2").mm_switch(2).vm_entry().vm_exit().vm_entry().vm_exit().return_user()
    returns = When(Occasion.USER_RETURN, (Occasion.VM_EXIT,))
    others = When(Occasion.USER_RETURN, (Occasion.VM_EXIT, Occasion.NMI_ENTRY))
    calls = When(Occasion.USER_ENTRY, (Occasion.VM_EXIT,))
    entries = When(Occasion.VM_ENTRY, (Occasion.PROCESS_SWITCH,))
    trace = b.write(tmp_path / "t.asitrace", rows_per_part=rows_per_part)
    base, _ = measure(trace, [], [returns, others, calls, entries, When(Occasion.VM_EXIT)])
    assert base.conditional == {returns: 3, others: 4, calls: 2, entries: 1}
    assert base.times(returns) == 3
    assert base.times(When(Occasion.VM_EXIT)) == 5


def test_touch_of_no_place_is_refused(tmp_path: Path) -> None:
    """The loop follows no reference that was not checked."""
    b = TraceBuilder()
    b.return_user().entry_syscall(0).event(EventKind.TOUCH_READ, 7).return_user()
    with pytest.raises(ReplayError, match="a touch refers to place 7 of 0"):
        measure(b.write(tmp_path / "t.asitrace"), [])


def test_pageblocks(tmp_path: Path) -> None:
    """Two pageblocks: one changes its sensitivity twice, one never; what was never touched is not counted."""
    b = TraceBuilder()
    b.return_user().entry_syscall(0)
    frames = [(0, GFP_USER), (512, GFP_USER), (1, 0xCC0), (2, GFP_USER), (513, GFP_USER)]
    rows = []
    for number, (frame, gfp) in enumerate(frames):
        row = b.allocation(gfp=gfp, label=str(number))
        b._rows["allocations"][row]["frame"] = frame
        rows.append(row)
        page = b._row("pages", f"p{number}", frame=frame, kind="anon", cache=None, allocation=row)
        place = b._row(
            "places", f"l{number}", vaddr=0xFFFF_8880_0000_0000 + 4096 * frame, region="direct_map", page=page
        )
        b.event(EventKind.PAGE_ALLOC, row).event(EventKind.TOUCH_WRITE, place)
    b.event(EventKind.PAGE_ALLOC, b.allocation(gfp=GFP_USER, label="untouched")).page_free(rows[0]).return_user()
    blocks = measure(b.write(tmp_path / "t.asitrace"), [load_policy("denylist-2025")])[1][0].pageblocks
    assert (blocks.to_nonsensitive.low, blocks.to_nonsensitive.mid, blocks.to_nonsensitive.high) == (0, 1, 1)
    assert (blocks.to_sensitive.low, blocks.to_sensitive.mid, blocks.to_sensitive.high) == (0, 1, 1)
    assert blocks.unknown == 1


def test_freed_memory_is_converted_once() -> None:
    """Memory allocated and freed again, each time elsewhere, is one pageblock at its peak, and three at the worst."""
    counter = PageblockCounter(
        sensitivity=np.array([0, 0, 0, 1, 1, 1]),
        block=np.array([0, 1, 2, 0, 1, 2]),
        pages=np.array([1, 1, 1, 512, 512, 512]),
    )
    alloc, free = int(EventKind.PAGE_ALLOC), int(EventKind.PAGE_FREE)
    events = [(alloc, 0), (alloc, 1), (alloc, 2), (alloc, 3), (free, 3), (alloc, 4), (free, 4), (alloc, 5)]
    kind, arg = zip(*events, strict=True)
    counter.feed(np.array(kind, np.uint8), np.array(arg, np.uint32))
    assert counter.result() == PageblockConversions(Range(0, 1, 3), Range(0, 0, 0), 0)
