"""Page faults, in kernel and in user mode, and what comes of them."""

from __future__ import annotations

from typing import Any

import pytest

from asikit.machine.kernel import KernelOopsError, Machine, MachineConfig, SegmentationFault
from asikit.machine.mm import GFP_USER
from asikit.protocol import ProtocolConfig
from tests.machine.kernel.core.running import SECRET, Program, Recorder, machine, secret, seen, spawn


def test_a_sensitive_touch_exits_once() -> None:
    """The first touch of sensitive memory in a round trip exits, the second costs nothing, the next exits again."""
    target = machine()
    address, other = secret(target), secret(target)

    def program(user: Program) -> None:
        user.call(lambda: sum(user.kernel.access.load_u64(each) for each in (address, other, address)))
        user.touch(address)
        user.getpid()

    spawn(target, program)
    report = target.run()
    assert report.faults == {"asi": 2}
    assert report.exits_by_reason["page_fault"] == 2
    # Three system calls return; the last one ends the process.
    assert (report.round_trips, report.round_trips_without_exit) == (3, 1)


def test_asi_faults_are_not_events() -> None:
    """An observer sees no nested entry for a fault that only ASI makes; the same events with ASI on and off."""

    def events(asi: bool) -> list[tuple[object, ...]]:
        target = machine(asi=asi)
        recorder = Recorder()
        target.observe(recorder)
        address = secret(target)

        def program(user: Program) -> None:
            user.touch(address)
            mapped = user.mmap(4096)
            user.call(lambda: user.kernel.uaccess.copy_to_user(mapped, b"demand"))

        spawn(target, program)
        target.run()
        return recorder.events

    assert events(asi=True) == events(asi=False)


def test_a_copy_that_faults() -> None:
    """A copy to user memory maps what is missing; where it may not write it ends short, with the rest's size."""
    target = machine()
    results: list[object] = []

    def program(user: Program) -> None:
        address = user.mmap(8192)
        user.munmap(address + 4096, 4096)
        uaccess = user.kernel.uaccess

        def handler() -> int:
            results.append(uaccess.copy_to_user(address, bytes(100)))
            results.append(uaccess.copy_to_user(address + 4090, b"0123456789"))
            results.append(uaccess.copy_from_user(address + 4090, 10))
            results.append(uaccess.copy_to_user(1 << 50, b"kernel half"))
            results.append(uaccess.copy_from_user(user.kernel.layout.direct_map.start, 8))
            results.append(user.kernel.cpu.hw.ac)
            return 0

        user.call(handler)

    spawn(target, program)
    target.run()
    assert results == [0, 4, b"012345", 11, b"", False]


def test_segmentation_faults() -> None:
    """What user code may not access raises in user mode; the program may go on."""
    target = machine()
    caught: list[int] = []

    def program(user: Program) -> None:
        kernel = user.kernel
        for address in (0x1000, kernel.layout.direct_map.start, 1 << 60):
            try:
                user.load(address, 1)
            except SegmentationFault as fault:
                caught.append(fault.address)
            assert kernel.cpu.hw.cpl == 3
        user.getpid()

    spawn(target, program)
    target.run()
    assert len(caught) == 3
    assert caught[0] == 0x1000


@pytest.mark.parametrize("asi", [True, False])
def test_a_wild_pointer_is_an_oops(asi: bool) -> None:
    """The kernel's own mistakes end the run, and say where; a program cannot catch them."""
    target = machine(asi=asi)

    def program(user: Program) -> None:
        def handler() -> int:
            with user.kernel.function("buggy_function"):
                return user.kernel.access.load_u64(user.kernel.layout.vmalloc.end - 8)

        try:
            user.call(handler)
        except Exception as error:
            raise AssertionError from error

    spawn(target, program)
    with pytest.raises(KernelOopsError, match=r"kernel read of 0x.* in buggy_function <- do_syscall_64: page fault"):
        target.run()


def test_user_memory_without_permission_is_an_oops() -> None:
    """SMAP: kernel code that reads user memory without saying so, though the page is there."""
    target = machine()

    def program(user: Program) -> None:
        address = user.mmap(4096)
        user.store(address, b"mine")
        user.touch(address)

    spawn(target, program)
    with pytest.raises(KernelOopsError, match=r"kernel read of"):
        target.run()


def test_accesses_that_cross_pages() -> None:
    """From a nonsensitive page into a sensitive one: one access, faults where it must, right data."""
    target = machine()
    kernel = target.kernel
    order = kernel.direct_map.pageblocks.order
    # Two frames of one allocation, the mapping of the first one taken away.
    pages = kernel.layout.virt(kernel.allocator.alloc_pages(GFP_USER, 1) << 12)
    kernel.access.store(pages + 4090, SECRET)
    assert order == 9

    def program(user: Program) -> None:
        user.call(lambda: user.seen.append(kernel.access.load(pages + 4090, len(SECRET))))
        user.call(lambda: kernel.access.store(pages + 4092, b"crossing"))

    task = spawn(target, program)
    target.run()
    assert SECRET in seen(task)
    assert kernel.access.load(pages + 4092, 8) == b"crossing"


@pytest.mark.parametrize("region", ["vmalloc", "percpu", "modules", "kernel_image", "fixmap", "cpu_entry_area"])
def test_without_a_region_only_exits_change(region: str) -> None:
    """I10: any mapping less costs exits (a stack's even double faults), and changes no result."""

    def outcome(**fields: Any) -> tuple[list[object], int, int]:  # noqa: ANN401 - any field
        target = machine(**fields)
        address = secret(target)

        def program(user: Program) -> None:
            user.getpid()
            user.touch(address)
            mapped = user.mmap(8192)
            user.store(mapped, b"hello")
            user.load(mapped, 5)

        task = spawn(target, program)
        report = target.run()
        return seen(task), report.exits, report.faults.get("double", 0)

    results, exits, double = outcome()
    less, more_exits, more_double = outcome(unmapped=frozenset({region}))
    assert less == results == outcome(asi=False)[0]
    assert double == 0
    assert more_exits >= exits
    assert (more_double > 0) == (region == "vmalloc")
    if region == "kernel_image":
        assert more_exits > exits


def test_without_a_page_of_the_direct_map() -> None:
    """I10 for one page, of the kernel image; its neighbour is not concerned."""
    layout = machine().kernel.layout
    address = layout.virt(600 << 12)  # the kernel image's, which is nonsensitive
    for unmapped, expected in ((frozenset[int](), 0), (frozenset({address}), 1), (frozenset({address + 4096}), 0)):
        target = machine(unmapped=unmapped)
        spawn(target, lambda user: user.touch(address))
        assert target.run().faults.get("asi", 0) == expected


def test_time_is_the_same_with_asi() -> None:
    """Faults, exits and domains of ASI take no logical time, so that one CPU's schedule is the same."""

    def clock(**fields: Any) -> tuple[int, ...]:  # noqa: ANN401 - any field
        target = Machine(MachineConfig(timer_period=100, **fields))
        address = secret(target)

        def program(user: Program) -> None:
            for _ in range(5):
                user.touch(address)
                mapped = user.mmap(8192)
                user.store(mapped, b"hello")
                user.munmap(mapped, 8192)

        spawn(target, program)
        spawn(target, program)
        return target.run().clock

    off = clock(asi=False)
    assert clock() == off
    assert clock(protocol=ProtocolConfig(noflush=True)) == off
    assert clock(protocol=ProtocolConfig(pti=True)) == off
