"""The bugs that the reference names (section 7), put in on purpose: each is caught by the invariant that it breaks.

In tests/protocol, as they are about taints alone: KVM's policy with `=`, DATA_MASK without GUEST_DATA, six taints
instead of seven. In tests/machine/mm: the mirror that makes a sensitive page present, the unmap that is never done.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from asikit.machine.kernel import InvariantError, Machine, MachineConfig
from asikit.machine.mm import GFP_KERNEL, GFP_USER, OutOfMemoryError
from asikit.protocol import AsiClass, ExitReason, PcidLayout, Protocol, ProtocolConfig, Space, Taint
from asikit.trace import PageKind
from tests.machine.kernel.core.running import Program, Recorder, machine, secret, seen, spawn

if TYPE_CHECKING:
    from collections.abc import Callable

    from asikit.machine.kernel.core.percpu import CpuContext


def two_processes(target: Machine) -> None:
    """Round trips of two processes that touch sensitive memory, so that predictors have another mm's training."""
    address = secret(target)

    def program(user: Program) -> None:
        for _ in range(3):
            user.getpid()
            user.touch(address)
            user.call(user.kernel.sched.yield_)

    spawn(target, program)
    spawn(target, program)
    target.run()


STANDARD = ProtocolConfig()
NOFLUSH = ProtocolConfig(noflush=True)


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        pytest.param(
            lambda p: p.reordered("asi_exit.write_cr3", before="asi_exit.flush_control"), "I4", id="exit: CR3 first"
        ),
        pytest.param(lambda p: p.without("asi_exit.flush_control"), "I4", id="exit: predictors not flushed"),
        pytest.param(lambda p: p.without("asi_exit.taint_kernel_data"), "I4", id="exit: no KERNEL_DATA before CR3"),
        pytest.param(
            lambda p: p.reordered("asi_exit.taint_kernel_data", after="asi_exit.write_cr3"),
            "I4",
            id="exit: KERNEL_DATA after CR3",
        ),
        pytest.param(
            lambda p: p.reordered("__asi_enter.set_curr_asi", after="__asi_enter.write_cr3"),
            "I3",
            id="enter: curr_asi after CR3",
        ),
        pytest.param(
            lambda p: p.reordered("asi_exit.clear_curr_asi", before="asi_exit.write_cr3"),
            "I3",
            id="exit: curr_asi before CR3",
        ),
        pytest.param(lambda p: p.without("__asi_enter.flush_data"), "I2", id="enter: buffers not flushed"),
    ],
)
def test_an_order_that_is_wrong(edit: Callable[[Protocol], Protocol], name: str) -> None:
    """The driver executes whatever order the protocol has; debug mode sees what is wrong with it."""
    target = machine(protocol=edit(Protocol(STANDARD)))
    with pytest.raises(InvariantError) as caught:
        two_processes(target)
    assert caught.value.name == name


def test_the_right_order_passes() -> None:
    """The same scenario with nothing edited."""
    two_processes(machine())
    two_processes(machine(protocol=NOFLUSH))


def test_enter_with_cr3_before_the_predictor_flush() -> None:
    """I4 in the other direction: another process' training in the predictors, and CR3 already restricted."""
    edited = Protocol(STANDARD).reordered("__asi_enter.write_cr3", before="__asi_enter.flush_control")
    target = machine(protocol=edited)
    kernel = target.kernel
    cpu = kernel.cpu
    mm = kernel.contexts.new()
    kernel.sched.switch_mm(kernel.contexts.of(mm))
    other = Taint.OTHER_MM_CONTROL | Taint.OTHER_MM_DATA
    cpu.thread = cpu.thread._replace(cpu=cpu.thread.cpu._replace(taints=int(other)))
    with pytest.raises(InvariantError, match="I4"):
        kernel.asi.run("asi_enter_userspace")


def test_a_missing_shootdown() -> None:
    """I9: memory is unmapped, and only the CPU that did it flushes; another has it in its TLB."""

    def only_local(target: Machine) -> None:
        smp = target.kernel.smp

        def call(cpus: list[CpuContext], function: Callable[[CpuContext], None], what: str) -> None:
            del what
            for cpu in cpus:
                if cpu is target.kernel.cpu:
                    function(cpu)

        smp.call = call  # type: ignore[assignment, method-assign]

    target = machine(cpus=2, seed=3)
    only_local(target)
    with pytest.raises(InvariantError, match=r"I9 is broken.*stale translation"):
        unmap_under_a_sibling_thread(target)


def unmap_under_a_sibling_thread(target: Machine) -> None:
    """Two threads use a page; one unmaps it, and the other goes on in user mode."""
    shared: dict[str, int] = {}

    def unmapper(user: Program) -> None:
        shared["address"] = address = user.mmap(4096)
        user.store(address, b"mapped")
        while "used" not in shared:
            user.compute(1)
        user.munmap(address, 4096)
        shared["done"] = 1

    def other(user: Program) -> None:
        while "address" not in shared:
            user.compute(1)
        user.store(shared["address"], b"used")
        shared["used"] = 1
        while "done" not in shared:
            user.compute(1)

    first = spawn(target, unmapper, cpu=0, pinned=True)
    spawn(target, other, mm=first.mm, cpu=1, pinned=True)
    target.run()


def test_with_the_shootdown_nothing_is_stale() -> None:
    """With the interrupt sent nothing is stale, in several schedules and with generations."""
    for seed in range(4):
        unmap_under_a_sibling_thread(machine(cpus=2, seed=seed))
        unmap_under_a_sibling_thread(machine(cpus=2, seed=seed, protocol=NOFLUSH))


@pytest.mark.parametrize(("flush", "pages"), [("tlb_flush_user", 2), ("tlb_flush_user_range", 1)])
def test_flush_that_forgets_the_domain(flush: str, pages: int) -> None:
    """With generations: the flusher's CPU is in its domain and drops only the unrestricted translations (I9)."""
    edited = Protocol(NOFLUSH).without(f"{flush}.flush_domain")
    target = machine(protocol=edited)

    def program(user: Program) -> None:
        address = user.mmap(2 * 4096)
        user.store(address, b"mapped")
        user.store(address + 4096, b"keeps the page table")
        user.getpid()
        user.load(address, 6)
        user.munmap(address, pages * 4096)

    spawn(target, program)
    with pytest.raises(InvariantError, match="I9"):
        target.run()


def test_a_top_level_entry_copied_wrong() -> None:
    """I8: a domain without one of the kernel's top-level entries, as a wrong range in asi_init would make it."""
    target = machine()
    kernel = target.kernel
    copy = kernel.tables.copy_pgd_entries

    def short(source: int, target: int, first: int = 256, last: int = 512) -> None:
        copy(source, target, first, last - 1 if first == 256 else last)

    kernel.tables.copy_pgd_entries = short  # type: ignore[method-assign]
    with pytest.raises(InvariantError, match=r"I8 is broken.*top-level entry 511"):
        two_processes(target)


def test_two_top_level_entries_assumed() -> None:
    """I8: the prototype cloned vmemmap as exactly two top-level entries; a region that has more loses the rest."""
    target = machine()
    kernel = target.kernel
    first = kernel.layout.pgd_index(kernel.layout.vmalloc.start)
    assert kernel.domains.nonsensitive_pgd is not None
    root = kernel.layout.virt(kernel.domains.nonsensitive_pgd << 12)
    for index in range(first + 2, kernel.layout.pgd_index(kernel.layout.vmalloc.end - 1) + 1):
        kernel.access.store_u64(root + index * 8, 0)
    with pytest.raises(InvariantError, match=rf"I8 is broken.*top-level entry {first + 2} of asi_nonsensitive_pgd"):
        two_processes(target)


def test_user_half_in_a_domain_that_must_not_have_it() -> None:
    """I8: KVM's class does not map user addresses."""
    target = machine()
    kernel = target.kernel

    def program(user: Program) -> None:
        def init() -> int:
            context = kernel.contexts.of(user.mm)
            kernel.domains.init(context, AsiClass.KVM)
            pgd, _ = context.domains[Space.KVM]
            kernel.tables.copy_pgd_entries(context.pgd, pgd, 0, 256)
            return 0

        user.store(user.mmap(4096), b"mapped")
        user.call(init)

    spawn(target, program)
    with pytest.raises(InvariantError, match=r"I8 is broken.*user half of restricted kvm"):
        target.run()


def test_no_memory_for_a_domain() -> None:
    """The prototype's asi_init goes on without memory and copies through a NULL pgd; here nothing is left behind."""
    target = machine()
    kernel = target.kernel
    allocate, counts = kernel.allocator.alloc_pages, kernel.tally.allocations
    in_use = counts["pages"] - counts["frees"]
    tables = 0

    def failing(*args: object, **kwargs: object) -> int:
        nonlocal tables
        if kwargs.get("kind") is PageKind.PAGE_TABLE:
            tables += 1
            if tables == 2:  # the first is the mm's own top-level table
                raise OutOfMemoryError("none left")
        return allocate(*args, **kwargs)  # type: ignore[arg-type]

    before = kernel.physical.read(0, 4096)
    kernel.allocator.alloc_pages = failing  # type: ignore[method-assign]
    with pytest.raises(OutOfMemoryError, match="no memory for page tables of domain userspace"):
        kernel.contexts.new()
    kernel.allocator.alloc_pages = allocate  # type: ignore[method-assign]
    assert kernel.domains.domains.table == ()
    assert [context.id for context in kernel.contexts] == [0]
    assert kernel.physical.read(0, 4096) == before, "nothing was copied to frame 0"
    assert counts["pages"] - counts["frees"] == in_use, "nothing was leaked"
    spawn(target, lambda user: user.getpid())
    assert target.run().round_trips > 0


def test_pcids_are_distinct() -> None:
    """The prototype's static_assert is the wrong way round; it means that no two address spaces share a PCID."""
    layout = PcidLayout(pti=True)
    pcids = [layout.pcid(asid, space, user_half=half) for asid in range(6) for space in Space for half in (False, True)]
    assert len(set(pcids)) == len(pcids)


def test_touch_in_the_critical_section() -> None:
    """I1: sensitive memory touched between enter and user mode; its fault's return would enter again, for ever."""
    target = machine()
    address = secret(target)
    entry = target.kernel.entry
    original = entry.about_to_resume

    def touching(cpu: CpuContext) -> None:
        original(cpu)
        target.kernel.access.load(address, 8)

    entry.about_to_resume = touching  # type: ignore[method-assign]
    spawn(target, lambda user: user.getpid())
    with pytest.raises(InvariantError, match=r"I1 is broken.*in a critical section"):
        target.run()


def exit_without_effect() -> Protocol:
    """An exit whose write of CR3 changes the state, and asks nothing of the hardware."""
    return Protocol(STANDARD).rewriting(lambda path, op: replace(op, asks=None) if path == "asi_exit.write_cr3" else op)


def test_a_retry_that_never_ends() -> None:
    """I5, which needs no debug mode: an exit that leaves CR3 as it is."""
    edited = exit_without_effect()
    target = Machine(MachineConfig(), protocol=edited)
    address = secret(target)
    spawn(target, lambda user: user.touch(address))
    with pytest.raises(InvariantError, match="I5"):
        target.run()


def test_cr3_that_is_not_what_the_state_says() -> None:
    """I1, with the same edit in debug mode."""
    edited = exit_without_effect()
    target = machine(protocol=edited)
    address = secret(target)
    spawn(target, lambda user: user.touch(address))
    with pytest.raises(InvariantError, match=r"I1 is broken.*CR3 is"):
        target.run()


def test_a_bit_that_lies() -> None:
    """I6: a pageblock's bit and its restricted mapping disagree."""
    target = machine()
    kernel = target.kernel
    page = kernel.allocator.alloc_pages(GFP_USER)
    assert kernel.invariants is not None
    kernel.invariants.after_alloc(page, 0)
    blocks = kernel.direct_map.pageblocks
    blocks.set_sensitive(page >> blocks.order << blocks.order, 1 << blocks.order, sensitive=False)
    with pytest.raises(InvariantError, match=r"I6 is broken"):
        kernel.invariants.after_alloc(page, 0)


def test_a_flip_without_zeroing() -> None:
    """I6: memory that became nonsensitive still has an old secret in it."""
    target = machine()
    kernel = target.kernel
    pfn = kernel.allocator.alloc_pages(GFP_KERNEL)
    block = pfn >> kernel.direct_map.pageblocks.order
    kernel.access.store(kernel.layout.virt(pfn << 12), b"an old secret")
    assert kernel.invariants is not None
    with pytest.raises(InvariantError, match=r"I6 is broken.*not zeroed"):
        kernel.invariants.after_flip(block, sensitive=False)


def test_entries_say_where_they_come_from() -> None:
    """The prototype's trace had a mistake with user_mode(): a fault in the kernel is not one of user mode."""
    target = machine()
    recorder = Recorder()
    target.observe(recorder)

    def program(user: Program) -> None:
        address = user.mmap(8192)
        user.store(address, b"user mode's fault")
        user.call(lambda: user.kernel.uaccess.to_user(address + 4096, b"the kernel's"))

    task = spawn(target, program)
    report = target.run()
    faults = [event for event in recorder.events if event[-2:] == ("exception", 14)]
    assert faults == [(0, "entry", "exception", 14), (0, "nested", "exception", 14)]
    assert report.faults == {"user": 1, "kernel": 1, "asi": report.faults["asi"]}
    assert report.exits_by_reason[ExitReason.PAGE_FAULT] == report.faults["asi"] + 1
    assert len(seen(task)) == 2
