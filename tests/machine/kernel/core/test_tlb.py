"""TLBs and address spaces: ASIDs, shootdowns, generations."""

from __future__ import annotations

from collections import Counter

import pytest

from asikit.machine.kernel import KernelOopsError, Machine, Observer
from asikit.protocol import AsiClass, DomainId, ProtocolConfig
from tests.machine.kernel.core.running import Program, machine, secret, spawn

VMALLOC = 0xFFFF_C900_0000_0000


class Flushes(Observer):
    """Counts flushes by CPU and kind, and keeps how many pages each was of."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[int, bool]] = Counter()
        self.pages: list[int | None] = []

    def tlb_flush(self, cpu: int, *, kernel: bool, pages: int | None) -> None:
        """Count it."""
        self.seen[cpu, kernel] += 1
        self.pages.append(pages)


def test_six_asids() -> None:
    """A CPU keeps six address spaces apart, init_mm's among them; the seventh takes the place of one, with a flush."""
    target = machine()
    kernel = target.kernel
    kept = 0
    contexts = [kernel.contexts.of(kernel.contexts.new()) for _ in range(7)]
    for rounds in range(2):
        for context in contexts[:5]:
            before = kernel.cpu.hw.cr3_noflush_writes
            with kernel.irqs_off():
                kernel.sched.switch_mm(context)
            kept += rounds and kernel.cpu.hw.cr3_noflush_writes - before
    assert kept == 5, "the second time nothing is flushed"
    assert len({asid.mm for asid in kernel.cpu.asids}) == 6
    for context in contexts:
        kernel.sched.switch_mm(context)
    assert contexts[0].id not in {asid.mm for asid in kernel.cpu.asids}


def test_who_is_interrupted() -> None:
    """A flush of user addresses reaches the CPUs that have the mm loaded; one of kernel addresses reaches all."""
    target = machine(cpus=3, seed=1)
    flushes = Flushes()
    target.observe(flushes)
    started: set[int] = set()
    done: list[int] = []

    def flusher(user: Program) -> None:
        address = user.mmap(4096)
        user.store(address, b"x")
        while len(started) < 2:
            user.compute(1)
        user.munmap(address, 4096)
        user.call(lambda: user.kernel.flusher.flush_tlb_kernel_range(VMALLOC, VMALLOC + 4096))
        done.append(1)

    def spinner(user: Program) -> None:
        user.compute(1)
        started.add(user.kernel.cpu.number)
        while not done:
            user.compute(1)

    first = spawn(target, flusher, cpu=0, pinned=True)
    spawn(target, spinner, mm=first.mm, cpu=1, pinned=True)
    spawn(target, spinner, cpu=2, pinned=True)
    target.run()
    assert flushes.seen[0, True] == flushes.seen[1, True] == flushes.seen[2, True] == 1
    assert flushes.seen[0, False] >= 1
    assert flushes.seen[1, False] >= 1
    assert flushes.seen[1, False] > flushes.seen[2, False], "of the other process' memory only the end of its own"
    report = target.report()
    assert report.tlb.shootdowns >= 2
    assert report.tlb.ipis >= 3
    assert report.exits_by_reason["tlb_flush"] > 0


@pytest.mark.parametrize(("pages", "exits"), [(1, 0), (33, 0), (34, 1)])
def test_short_ranges_do_not_exit(pages: int, exits: int) -> None:
    """Up to 33 pages are flushed by INVLPG in the restricted address space; more by a CR3 write, after an exit."""
    target = machine()
    kernel = target.kernel
    flushes = Flushes()
    reasons: Counter[str] = Counter()

    def program(user: Program) -> None:
        address = user.mmap(pages * 4096)
        for page in range(pages):
            user.store(address + page * 4096, b"x")
        target.observe(flushes)
        before = kernel.tally.reasons.copy()
        user.call(lambda: kernel.flusher.flush_tlb_mm_range(user.mm.id, address, address + pages * 4096))
        reasons.update(kernel.tally.reasons - before)
        target.observers.remove(flushes)

    spawn(target, program)
    target.run()
    assert flushes.pages == [None if exits else pages]
    assert reasons == ({"tlb_flush": 1} if exits else {})


def test_a_lazy_cpu_lets_go() -> None:
    """A CPU that idles on an mm's page tables is asked once, and loads init_mm's instead of flushing."""
    target = machine(cpus=2)
    kernel = target.kernel

    def first(user: Program) -> None:
        user.getpid()

    def second(user: Program) -> None:
        address = user.mmap(4096)
        user.store(address, b"x")
        while kernel.cpus[1].task is not kernel.cpus[1].idle:
            user.compute(1)
        assert kernel.cpus[1].loaded_mm.mm is user.mm
        user.munmap(address, 4096)
        assert kernel.cpus[1].loaded_mm is kernel.contexts.init

    task = spawn(target, second, cpu=0, pinned=True)
    spawn(target, first, mm=task.mm, cpu=1, pinned=True)
    target.run()


def test_calls_with_interrupts_off_are_refused() -> None:
    """Two CPUs that waited for one another would do so for ever."""
    target = machine(cpus=2)

    def program(user: Program) -> None:
        def handler() -> int:
            with user.kernel.irqs_off():
                user.kernel.flusher.flush_tlb_all()
            return 0

        user.call(handler)

    spawn(target, program)
    with pytest.raises(KernelOopsError, match="cpu 0 waits for others to flush their TLB with interrupts off"):
        target.run()


def round_trips(target: Machine) -> None:
    """System calls that exit, and flushes now and then."""
    address = secret(target)

    def program(user: Program) -> None:
        for _ in range(6):
            user.touch(address)
        mapped = user.mmap(4096)
        user.store(mapped, b"x")
        user.munmap(mapped, 4096)
        for _ in range(3):
            user.touch(address)

    spawn(target, program)
    target.run()


def test_generations_keep_translations() -> None:
    """With `noflush` most CR3 writes keep the TLB's entries, and it hits more often; without, none does."""
    published, generations = machine(), machine(protocol=ProtocolConfig(noflush=True))
    round_trips(published)
    round_trips(generations)
    one, other = published.report(), generations.report()
    assert one.exits == other.exits + 1, "a flush of user addresses exits, where there are no generations"
    assert one.cr3_writes_noflush == 0
    assert other.cr3_writes_noflush > other.cr3_writes / 2
    assert other.tlb.misses < one.tlb.misses


def test_generations_are_counted() -> None:
    """Each flush counts: of user addresses in the mm's own domain that maps them, of kernel addresses in all."""
    target = machine(protocol=ProtocolConfig(noflush=True))
    kernel = target.kernel
    mm = kernel.contexts.new()
    before = kernel.flusher.generations.of(DomainId(mm.id, AsiClass.USERSPACE))
    kernel.flusher.flush_tlb_mm_range(mm.id, 0, 4096)
    kernel.flusher.flush_tlb_kernel_range(VMALLOC, VMALLOC + 4096)
    after = kernel.flusher.generations.of(DomainId(mm.id, AsiClass.USERSPACE))
    assert (after.domain - before.domain, after.everywhere - before.everywhere) == (1, 1)
    guest = kernel.flusher.generations.of(DomainId(mm.id, AsiClass.KVM))
    assert guest.domain == 0


def test_a_whole_range_or_page_by_page() -> None:
    """Up to 33 pages are flushed one by one, more than that by PCID."""
    target = machine()
    kernel = target.kernel
    tlb = kernel.cpu.hw.tlb
    for pages, expected in ((1, 1), (33, 33), (34, 1)):
        before = tlb.flushes
        kernel.flusher.flush_tlb_kernel_range(VMALLOC, VMALLOC + pages * 4096)
        assert tlb.flushes - before == expected
